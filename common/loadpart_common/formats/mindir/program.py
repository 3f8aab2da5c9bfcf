"""The main function of a MindIR file: its layers, the tensors that flow between them, and the forbidden cuts.

Nodes are constants, helpers (`Load` reads a weight, `MakeTuple` and `TupleGetItem` pack and unpack, `UpdateState` and
`Depend` order memory effects with a token, the monad) or operators. An operator that depends on an input of the
network is a layer; one that takes a monad changes memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeGuard

import numpy as np

from loadpart.mindir.v1 import mindir_pb2
from loadpart_common.errors import ModelError
from loadpart_common.formats.mindir.dtypes import DTYPE_BY_NUMBER
from loadpart_common.formats.mindir.nodes import integers, reporting_damage, shapes, title
from loadpart_common.graph import Value

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Tree: TypeAlias = "Value | tuple[Tree, ...] | None"
"""What a name stands for: a tensor of the graph, a tuple, or (None) something made of weights and constants alone."""

_HELPERS = frozenset({"Load", "UpdateState", "Depend", "MakeTuple", "TupleGetItem"})
_CONTROL_FLOW = frozenset({"Switch", "SwitchLayer", "Partial", "Call", "While", "If"})
_MONADS = frozenset({mindir_pb2.ATTRIBUTE_TYPE_UMONAD, mindir_pb2.ATTRIBUTE_TYPE_IOMONAD})


def is_packed(tree: Tree) -> TypeGuard[tuple[Tree, ...]]:
    """Whether a tree is a tuple of trees."""
    return isinstance(tree, tuple) and not isinstance(tree, Value)


class Output(NamedTuple):
    """An output of the program: the name of its value, and the monads that must be computed before it."""

    name: str
    monads: tuple[str, ...]


class Program:
    """The nodes of a MindIR model, interpreted.

    Attributes:
        model: The message, without the elements of its weights.
        nodes: Every node, by name, in file order.
        weights: Shape of each weight, by name.
        layer_nodes: The node of each layer, by the layer's index.
        layer_of: Index of each layer, by the name of its node.
        outputs: The outputs, flattened.
        effects: Indices of the layers that change memory.
    """

    def __init__(self, model: mindir_pb2.Model) -> None:
        """Reads a model.

        Raises:
            ModelError: The model has control flow, dynamic shapes other than the batch, or weights that it changes; the
                message names the node.
        """
        self.model = model
        with reporting_damage():
            self._read(model)

    def _read(self, model: mindir_pb2.Model) -> None:
        self.nodes = {node.name: node for node in model.graph.node}
        self._primitives = {primitive.name: primitive for primitive in model.primitives}
        self._inputs = {info.name: Value(-1, i) for i, info in enumerate(model.graph.input)}
        self.weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.parameter}
        self._weight_types = {tensor.name: tensor.data_type for tensor in model.graph.parameter}
        self._kinds = {name: self._kind(node) for name, node in self.nodes.items()}
        self._monads: set[str] = set()
        self._trees: dict[str, Tree] = {}
        self.layer_nodes: list[mindir_pb2.Node] = []
        self.layer_of: dict[str, int] = {}
        self.effects: list[int] = []
        self._walk()
        self.outputs = tuple(output for info in model.graph.output for output in self._flat_outputs(info.name))

    def kind(self, name: str) -> str:
        """Operator kind of a node; `Constant` of a constant; empty for inputs and weights."""
        return self._kinds.get(name, "")

    def inputs(self, name: str) -> Sequence[str]:
        """Names of a node's inputs."""
        return self.nodes[name].input

    def is_input(self, name: str) -> bool:
        """Whether a name is that of an input of the network."""
        return name in self._inputs

    def is_monad(self, name: str) -> bool:
        """Whether a name stands for a monad."""
        return name in self._monads

    def tree(self, name: str) -> Tree:
        """What a name stands for."""
        return self._trees[name]

    def members(self, name: str) -> Iterator[str]:
        """The names that a tuple packs, however deep; the name itself when it is no packed tuple."""
        if self.kind(name) == "MakeTuple":
            for member in self.nodes[name].input:
                yield from self.members(member)
        else:
            yield name

    def constant(self, name: str) -> tuple[int, ...] | None:
        """The integers of a constant (one for a scalar); None when the name is no constant of integers."""
        if self.kind(name) != "Constant":
            return None
        (attribute,) = self.nodes[name].attribute
        return tuple(integers(attribute))

    def attributes(self, name: str, *keys: str) -> tuple[int, ...]:
        """The integers of the first attribute among `keys` that a node's primitive has; empty when it has none."""
        primitive = self._primitives[self.nodes[name].op_type.removeprefix("REF::")]
        by_name = {attribute.name: attribute for attribute in primitive.attribute}
        return next((tuple(integers(by_name[key])) for key in keys if key in by_name), ())

    def text(self, name: str, key: str) -> str:
        """The text of an attribute of a node's primitive; empty when it has none."""
        primitive = self._primitives[self.nodes[name].op_type.removeprefix("REF::")]
        return next((each.s.decode() for each in primitive.attribute if each.name == key), "")

    def _kind(self, node: mindir_pb2.Node) -> str:
        if node.op_type == "Constant":
            return "Constant"
        primitive = self._primitives.get(node.op_type.removeprefix("REF::"))
        if primitive is None or primitive.op_type in _CONTROL_FLOW:
            what = primitive.op_type if primitive else "a call of another function"
            raise ModelError(f"node {title(node)} is control flow ({what}), which cannot be cut")
        return primitive.op_type

    def _walk(self) -> None:
        """Gives every name its tree and every layer its index, in file order, which is topological."""
        self._trees.update(self._inputs)
        self._trees.update(dict.fromkeys(self.weights))
        wanted = self._reachable()
        for name, node in self.nodes.items():
            if name not in wanted:
                continue
            missing = next((source for source in node.input if source not in self._trees), None)
            if missing is not None:
                raise ModelError(f"node {title(node)} uses {missing!r}, which nothing before it makes")
            kind = self._kinds[name]
            if kind == "UpdateState" or (kind == "Constant" and node.attribute[0].type in _MONADS):
                self._monads.add(name)
            if kind == "Constant" or kind in _HELPERS:
                self._trees[name] = self._helper_tree(kind, node)
            else:
                self._trees[name] = self._operator_tree(node)

    def _reachable(self) -> set[str]:
        """Names that the outputs need, memory effects included."""
        wanted: set[str] = set()
        pending = [info.name for info in self.model.graph.output]
        while pending:
            name = pending.pop()
            if name not in wanted:
                wanted.add(name)
                pending.extend(self.nodes[name].input if name in self.nodes else ())
        return wanted

    def _helper_tree(self, kind: str, node: mindir_pb2.Node) -> Tree:
        if kind in {"Constant", "UpdateState"}:
            return None
        if kind == "MakeTuple":
            trees = tuple(self._trees[source] for source in node.input)
            return trees if any(tree is not None for tree in trees) else None
        first = self._trees[node.input[0]]
        if kind != "TupleGetItem" or first is None:
            return first
        element = self.constant(node.input[1])
        if not element or not is_packed(first):
            raise ModelError(f"node {title(node)} takes a varying element of a tuple, which cannot be cut")
        return first[element[0]]

    def _operator_tree(self, node: mindir_pb2.Node) -> Tree:
        changes_memory = any(source in self._monads for source in node.input)
        if not changes_memory and all(self._trees[source] is None for source in node.input):
            return None  # made of weights and constants: each side computes it
        weight = next((source for source in node.input if changes_memory and source in self.weights), None)
        if weight is not None:
            raise ModelError(
                f"node {title(node)} changes the weight {weight!r}; only networks without state can be served "
                "(was it exported in training mode?)"
            )
        index = len(self.layer_nodes)
        self.layer_nodes.append(node)
        self.layer_of[node.name] = index
        if changes_memory:
            self.effects.append(index)
        count = len(list(shapes(node)))
        return Value(index, 0) if count == 1 else tuple(Value(index, element) for element in range(count))

    def _flat_outputs(self, name: str, monads: tuple[str, ...] = ()) -> Iterator[Output]:
        kind = self.kind(name)
        if kind == "Depend":
            source, monad = self.nodes[name].input[:2]
            yield from self._flat_outputs(source, (*monads, monad))
        elif kind == "MakeTuple":
            for source in self.nodes[name].input:
                yield from self._flat_outputs(source, monads)
        else:
            yield Output(name, monads)

    def weight_bytes(self, name: str) -> int:
        """Bytes of a weight's elements."""
        return math.prod(self.weights[name]) * np.dtype(DTYPE_BY_NUMBER[self._weight_types[name]]).itemsize

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor for one item of the batch; None when the name is no tensor."""
        if name in self._inputs:
            dims: tuple[int, ...] = tuple(self.model.graph.input[self._inputs[name].element].tensor.dims)
        elif name in self.weights:
            dims = self.weights[name]
        else:
            node = self.nodes[name]
            tensors = list(shapes(node)) if self._kinds[name] not in {"Constant", "UpdateState"} else []
            if len(tensors) != 1:
                return None
            dims = tuple(tensors[0].dims)
        return tuple(max(size, 1) for size in dims)
