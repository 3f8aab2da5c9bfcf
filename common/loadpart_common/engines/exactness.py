"""Where a network can be cut so that both pieces give the bits of the whole, found by trying."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.engines.inputs import random_inputs, smooth_inputs
from loadpart_common.errors import ModelError, OffloadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.engines.base import LoadedModel
    from loadpart_common.graph import Graph, Segment, Value
    from loadpart_common.tensors import Array

_SIZES = (100.0, 3.0, 0.3)
"""Of the random inputs: in networks of 8 bits, large ones are cut off and small ones become nothing."""

_CHEAP = 0.002
"""Share of a network's operations that makes no difference to where it is cut."""


def exact_cuts(
    loaded: LoadedModel, graph: Graph, on_progress: Callable[[int, int], None] = lambda _done, _all: None
) -> list[int]:
    """The cuts at which head and tail together give the same bits as the whole network, for some inputs.

    Which operators an engine fuses and how it lays out their results depends on shapes, not on numbers, so a difference
    shows with any input that reaches the last layers. Noise does not reach those of a detector, which waits for shapes.

    Args:
        loaded: The network in the engine.
        graph: The network.
        on_progress: Called with the cuts that are tried and those of all.

    Raises:
        ModelError: The engine cannot run the network.
    """
    whole = graph.head(graph.layer_count)
    inputs = [
        dict(zip(whole.inputs, random_inputs(graph, whole, seed, most=most), strict=True))
        for seed, most in enumerate(_SIZES)
    ]
    inputs.append(dict(zip(whole.inputs, smooth_inputs(graph, whole, most=max(_SIZES)), strict=True)))
    expected = [_run(loaded, graph, whole, given) for given in inputs]
    exact = []
    likely = likely_cuts(graph)
    for number, index in enumerate(likely):
        on_progress(number, len(likely))
        try:
            if all(_is_exact(loaded, graph, index, *each) for each in zip(inputs, expected, strict=True)):
                exact.append(index)
        except OffloadError:
            continue
    return exact


def likely_cuts(graph: Graph) -> list[int]:
    """The cuts that are worth trying.

    Of cuts in a row with the same bytes and only cheap layers between them, as after a convolution, its normalisation
    and its activation, which engines run as one operator, only the last is.
    """
    cheap = _CHEAP * sum(layer.flops for layer in graph.layers)
    cuts = graph.cuts[1:-1]
    later = [*cuts[1:], graph.cuts[-1]]
    return [
        cut.index
        for cut, after in zip(cuts, later, strict=True)
        if cut.nbytes() != after.nbytes() or sum(layer.flops for layer in graph.layers[cut.index : after.index]) > cheap
    ]


def _is_exact(
    loaded: LoadedModel, graph: Graph, index: int, given: dict[Value, Array], wanted: dict[Value, Array]
) -> bool:
    values = given | _run(loaded, graph, graph.head(index), given)
    values |= _run(loaded, graph, graph.tail(index), values)
    return all(values[value].tobytes() == wanted[value].tobytes() for value in graph.outputs)


def _run(loaded: LoadedModel, graph: Graph, segment: Segment, values: dict[Value, Array]) -> dict[Value, Array]:
    try:
        compiled = loaded.compile(segment, graph.smallest_batch)
        outputs = compiled.run([np.ascontiguousarray(values[value]) for value in segment.inputs])
    except OffloadError:
        raise
    except Exception as error:  # engines' exceptions have no base class of their own
        raise ModelError(f"the engine cannot run the network: {error}") from error
    return dict(zip(segment.outputs, outputs, strict=True))
