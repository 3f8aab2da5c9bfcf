"""Networks as a format-neutral graph of layers, and the places where it can be cut.

A layer is an operator that depends on the network's inputs; weights, constants and what is computed from them alone
are present on both sides and are no layers. Layers are in topological order, so cut `c` gives the first `c` of them to
the device and the rest to the server. What crosses is every value that is made before the cut (or is an input) and
used after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from loadpart_common.errors import CutError
from loadpart_common.tensors import BATCH, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from loadpart_common.families import Family


class Value(NamedTuple):
    """A tensor of a graph: output `element` of layer `layer`, or input `element` of the network when `layer` is -1."""

    layer: int
    element: int


@dataclass(frozen=True, slots=True)
class Layer:
    """An operator of a network.

    Attributes:
        name: Its unique name, which says where it is in the network.
        kind: The operator's name in the model's format, such as `Conv2D`; for people to read.
        family: The family of operators to which it belongs.
        inputs: The values that it takes, without weights and constants.
        outputs: Specifications of its output tensors.
        flops: Floating-point operations for one item of the batch; a multiply-add counts as two.
        weight_bytes: Bytes of the weights that it reads.
    """

    name: str
    kind: str
    family: Family
    inputs: tuple[Value, ...]
    outputs: tuple[TensorSpec, ...]
    flops: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """A stretch of layers that must stay in one piece: cuts `first` < c <= `last` are refused.

    Attributes:
        first: Its first layer.
        last: Its last layer.
        layer: The layer that is the reason.
        why: The reason, as it follows on the layer's name in messages.
    """

    first: int
    last: int
    layer: int
    why: str = "which changes memory in place, from the layers that share it"


@dataclass(frozen=True, slots=True)
class Cut:
    """A place to cut.

    Attributes:
        index: Number of layers before it.
        live: Values that cross, in topological order.
        specs: Their specifications, in the same order.
    """

    index: int
    live: tuple[Value, ...]
    specs: tuple[TensorSpec, ...]

    def nbytes(self, batch: int = 1) -> int:
        """Bytes that cross for a batch, before any codec."""
        return sum(spec.nbytes(batch) for spec in self.specs)


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of a network that runs as one: layers `first` to `stop` - 1.

    Attributes:
        first: Its first layer.
        stop: The layer after its last one.
        inputs: Values that it takes.
        outputs: Values that it gives: first those that later layers use, then the other outputs of the network.
    """

    first: int
    stop: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass(frozen=True)
class Graph:
    """A network: inputs, layers in topological order, and which values are its outputs."""

    inputs: tuple[TensorSpec, ...]
    layers: tuple[Layer, ...]
    outputs: tuple[Value, ...]
    barriers: tuple[Barrier, ...] = ()

    @property
    def layer_count(self) -> int:
        """The number of layers, which is also the index of the last cut."""
        return len(self.layers)

    @cached_property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """Specifications of the outputs."""
        return tuple(self.spec(value) for value in self.outputs)

    @cached_property
    def cuts(self) -> tuple[Cut, ...]:
        """Every valid cut, in order; the first is full offload, the last fully local."""
        return tuple(self._cut(index) for index in range(self.layer_count + 1) if self._barrier_at(index) is None)

    @cached_property
    def _cut_by_index(self) -> dict[int, Cut]:
        return {cut.index: cut for cut in self.cuts}

    @cached_property
    def _last_use(self) -> dict[Value, int]:
        """The last layer that uses each value."""
        return {value: index for index, layer in enumerate(self.layers) for value in layer.inputs}

    def spec(self, value: Value) -> TensorSpec:
        """Specification of a value."""
        return self.inputs[value.element] if value.layer < 0 else self.layers[value.layer].outputs[value.element]

    def cut(self, index: int) -> Cut:
        """The cut that leaves `index` layers on the device.

        Raises:
            CutError: The network has fewer layers, or memory effects forbid this cut.
        """
        found = self._cut_by_index.get(index)
        if found is not None:
            return found
        barrier = self._barrier_at(index)
        if barrier is None:
            raise CutError(f"cut {index} is out of range: expected 0 (no layer before it) to {self.layer_count} (all)")
        layer = self.layers[barrier.layer]
        raise CutError(
            f"cut {index} would separate layer {layer.name!r} ({layer.kind}), {barrier.why}: "
            f"expected at most {barrier.first} or at least {barrier.last + 1}"
        )

    def head(self, index: int) -> Segment:
        """The segment that the device runs for a cut; for the last cut, the whole network.

        Raises:
            CutError: The cut is not valid.
        """
        return self.segment(0, self.cut(index).index)

    def tail(self, index: int) -> Segment:
        """The segment that the server runs for a cut; for the last cut, an empty one.

        Raises:
            CutError: The cut is not valid.
        """
        return self.segment(self.cut(index).index, self.layer_count)

    def segment(self, first: int, stop: int) -> Segment:
        """Layers `first` to `stop` - 1 as one piece; both must be valid cuts."""
        key = (first, stop)
        if key not in self._segments:
            used = {value for layer in self.layers[first:stop] for value in layer.inputs if value.layer < first}
            made = [value for value in self.cut(stop).live if value.layer >= first]
            outputs = [value for value in self.outputs if first <= value.layer < stop]
            self._segments[key] = Segment(first, stop, tuple(sorted(used)), tuple(dict.fromkeys([*made, *outputs])))
        return self._segments[key]

    @cached_property
    def _segments(self) -> dict[tuple[int, int], Segment]:
        return {}

    def cut_only_at(self, cuts: Collection[int], why: str) -> Graph:
        """The same network with barriers around all but some cuts.

        Args:
            cuts: The cuts that stay valid; the first and the last one always do.
            why: See `Barrier.why`.
        """
        kept = sorted({cut.index for cut in self.cuts} & {0, *cuts, self.layer_count})
        added = [Barrier(first, last - 1, first, why) for first, last in pairwise(kept) if last - first > 1]
        return replace(self, barriers=(*self.barriers, *added))

    def _barrier_at(self, index: int) -> Barrier | None:
        return next((barrier for barrier in self.barriers if barrier.first < index <= barrier.last), None)

    def _cut(self, index: int) -> Cut:
        live = tuple(sorted(value for value, last in self._last_use.items() if value.layer < index <= last))
        return Cut(
            index=index,
            live=live,
            specs=tuple(self.spec(value) for value in live),
        )

    @property
    def takes_batches(self) -> bool:
        """Whether the network takes any batch size; if not, it takes only the one in its shapes."""
        return all(spec.shape[:1] == (BATCH,) for spec in self.inputs)

    @property
    def smallest_batch(self) -> int:
        """The smallest batch size that the network takes: 1, or the fixed one."""
        shape = self.inputs[0].shape
        return 1 if self.takes_batches or not shape else shape[0]


def output_specs(layer: str, tensors: list[tuple[str, tuple[int, ...]]]) -> tuple[TensorSpec, ...]:
    """Specifications of a layer's outputs, named after the layer, and by element if there are several."""
    if len(tensors) == 1:
        return (TensorSpec(layer, *tensors[0]),)
    return tuple(TensorSpec(f"{layer}:{element}", *tensor) for element, tensor in enumerate(tensors))


def unique_names(names: Iterable[str]) -> list[str]:
    """The names, with a number added to those that came before."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique
