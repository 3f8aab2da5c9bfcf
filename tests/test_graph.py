from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadpart_common.errors import CutError
from loadpart_common.families import Family
from loadpart_common.graph import Barrier, Graph, Layer, Value, output_specs
from loadpart_common.tensors import BATCH, TensorSpec


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random networks: every layer takes some of the values before it, and the last values are the outputs."""
    inputs = tuple(
        TensorSpec(f"input{i}", "float32", (BATCH, draw(st.integers(1, 4)))) for i in range(draw(st.integers(1, 3)))
    )
    values = [Value(-1, i) for i in range(len(inputs))]
    layers = []
    for index in range(draw(st.integers(1, 12))):
        taken = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))
        shapes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
        outputs = output_specs(f"layer{index}", [("float32", (BATCH, size)) for size in shapes])
        layers.append(
            Layer(
                f"layer{index}",
                "Any",
                draw(st.sampled_from(Family)),
                tuple(taken),
                outputs,
                draw(st.integers(0, 10**6)),
                0,
            )
        )
        values += [Value(index, k) for k in range(len(outputs))]
    made = [value for value in values if value.layer >= 0]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    return Graph(inputs, tuple(layers), tuple(outputs))


def run(graph: Graph, first: int, stop: int, values: set[Value]) -> set[Value]:
    """Simulates running layers on a set of values; fails when an input of a layer is missing."""
    values = set(values)
    for index in range(first, stop):
        layer = graph.layers[index]
        assert set(layer.inputs) <= values, f"layer {index} lacks an input"
        values |= {Value(index, k) for k in range(len(layer.outputs))}
    return values


@given(graphs())
def test_head_and_tail_have_all_they_need_and_give_all_outputs(graph: Graph) -> None:
    everything = {Value(-1, i) for i in range(len(graph.inputs))}
    for cut in graph.cuts:
        head, tail = graph.head(cut.index), graph.tail(cut.index)
        made = run(graph, 0, cut.index, set(head.inputs))
        assert set(head.outputs) <= made
        crossing = set(head.outputs) | everything
        assert set(cut.live) <= crossing
        finished = run(graph, cut.index, graph.layer_count, set(cut.live))
        assert set(tail.outputs) <= finished
        assert set(graph.outputs) <= set(head.outputs) | set(tail.outputs)
        from_device = [value for value in graph.outputs if value.layer < cut.index]
        assert set(from_device) <= set(head.outputs) | everything
        assert set(graph.outputs) - set(from_device) <= set(tail.outputs)


@given(graphs())
def test_nothing_crosses_that_the_tail_does_not_use(graph: Graph) -> None:
    for cut in graph.cuts:
        used = {value for layer in graph.layers[cut.index :] for value in layer.inputs}
        assert set(cut.live) <= used
        assert list(cut.live) == sorted(cut.live)


def chain(count: int, *barriers: Barrier) -> Graph:
    spec = TensorSpec("x", "float32", (BATCH, 4))
    layers = tuple(
        Layer(
            f"layer{i}",
            "ReLU",
            Family.RELU,
            (Value(i - 1, 0),),
            (TensorSpec(f"layer{i}", "float32", (BATCH, 4)),),
            4,
            0,
        )
        for i in range(count)
    )
    return Graph((spec,), layers, (Value(count - 1, 0),), barriers)


@pytest.mark.parametrize("index", [-1, 6, 1000])
def test_a_cut_out_of_range_is_refused(index: int) -> None:
    with pytest.raises(CutError, match=rf"cut {index} is out of range: expected 0 .* to 5"):
        chain(5).cut(index)


def test_a_cut_within_a_memory_effect_names_the_layer() -> None:
    graph = chain(5, Barrier(first=1, last=3, layer=2))
    assert [cut.index for cut in graph.cuts] == [0, 1, 4, 5]
    with pytest.raises(CutError, match=r"'layer2'.*in place.*at most 1 or at least 4"):
        graph.cut(2)


def test_bytes_scale_with_the_batch() -> None:
    cut = chain(3).cut(1)
    assert cut.nbytes() == 16
    assert cut.nbytes(5) == 80
