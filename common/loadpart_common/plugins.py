"""Registries of interchangeable parts: formats, engines and codecs by name."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Generic, TypeVar

from loadpart_common.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

PLUGINS_VARIABLE = "LOADPART_PLUGINS"
"""Environment variable with modules, separated by commas, that register further parts when they are imported.

Daemon, workers, devices and command lines all read it, since a part that one of them knows is of no use alone.
"""


class Registry(Generic[T]):
    """Parts of one kind by name, each made when it is first asked for: most are heavy to import."""

    def __init__(self, kind: str) -> None:
        """Makes an empty registry.

        Args:
            kind: What the parts are called in messages, such as `engine`.
        """
        self._kind = kind
        self._makers: dict[str, Callable[[], T]] = {}
        self._made: dict[str, T] = {}

    def register(self, name: str, make: Callable[[], T]) -> None:
        """Adds a part; one of the same name is replaced."""
        self._makers[name] = make
        self._made.pop(name, None)

    def __getitem__(self, name: str) -> T:
        """The part of a name.

        Raises:
            SettingsError: There is none of that name; the message lists those that there are.
        """
        part = self._made.get(name)
        if part is None:
            import_plugins()
            make = self._makers.get(name)
            if make is None:
                raise SettingsError(f"{self._kind}: expected one of {', '.join(self)}, got {name!r}")
            part = self._made[name] = make()
        return part

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of their registration."""
        import_plugins()
        return iter(tuple(self._makers))


def import_plugins() -> None:
    """Imports the modules that the environment names; those that are imported already stay as they are.

    Raises:
        SettingsError: There is no such module.
    """
    for name in filter(None, os.environ.get(PLUGINS_VARIABLE, "").split(",")):
        try:
            importlib.import_module(name.strip())
        except ModuleNotFoundError as error:
            raise SettingsError(f"{PLUGINS_VARIABLE}: cannot import {name.strip()!r}: {error}") from error
