"""What single nodes of a MindIR file say: shapes, integers, their place in the network."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from loadpart.mindir.v1 import mindir_pb2
from loadpart_common.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TUPLES = frozenset({mindir_pb2.ATTRIBUTE_TYPE_TUPLE, mindir_pb2.ATTRIBUTE_TYPE_LIST})


@contextlib.contextmanager
def reporting_damage() -> Iterator[None]:
    """Reports whatever goes wrong while the block reads a model as damage of the file.

    A damaged file may parse as a message and still be invalid, in more ways than can be listed.

    Raises:
        ModelError: The block could not make sense of the file.
    """
    try:
        yield
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ModelError(f"the model is damaged: {error!r}") from error


def integers(attribute: mindir_pb2.Attribute) -> Iterator[int]:
    """The integers in an attribute, those in nested tuples among them."""
    if attribute.type in _TUPLES:
        for element in attribute.values:
            yield from integers(element)
    elif attribute.HasField("i"):
        yield attribute.i
    else:
        yield from attribute.ints


def shapes(node: mindir_pb2.Node) -> Iterator[mindir_pb2.Tensor]:
    """Shape and type of a node's output; several for a tuple."""
    shape = next((attribute for attribute in node.attribute if attribute.name == "shape"), None)
    if shape is None:
        raise ModelError(f"node {title(node)} has no shape: was the model exported with `file_format='MINDIR'`?")
    elements = shape.values if shape.type in _TUPLES else [shape]
    for element in elements:
        yield element.tensors[0] if element.tensors else mindir_pb2.Tensor()


def title(node: mindir_pb2.Node) -> str:
    """A node as messages name it."""
    return repr(place(node) or node.name)


def place(node: mindir_pb2.Node) -> str:
    """Where a node stands in the network.

    `Default/features-SequentialCell/0-Conv2d/Conv2D-op0` is `features/0/Conv2D-op0`.
    """
    *cells, operator = node.domain.removeprefix("Default/").split("/")
    return "/".join([*(cell.rpartition("-")[0] or cell for cell in cells), operator])
