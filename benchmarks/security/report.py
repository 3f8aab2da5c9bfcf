"""Rows of figures with a verdict each."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)


@dataclass
class Report:
    """Collects rows, and says at the end whether all are good.

    Attributes:
        failures: What went wrong, in words.
    """

    failures: list[str] = field(default_factory=list)

    def table(self, title: str, *columns: str) -> Table:
        """A table whose last column is the verdict; `add` adds to it, and the caller prints it."""
        return Table(*columns, "", title=title, header_style="bold", title_justify="left")

    def add(self, table: Table, is_good: bool, *cells: object) -> None:
        """Adds a row."""
        table.add_row(*map(str, cells), "PASS" if is_good else "FAIL")
        if not is_good:
            self.failures.append(f"{table.title}: {', '.join(map(str, cells))}")
