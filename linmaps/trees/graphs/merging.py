"""Operations of a graph that are done twice, done once: the forward that a loss, its gradient and a Fisher matrix share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.utils._pytree as torch_pytree
from torch import Tensor
from torch.fx import Graph, Node

from linmaps.trees.graphs.watching import written

ATEN = torch.ops.aten
SAME = {ATEN.clone.default, ATEN.detach.default, ATEN.alias.default}
ZEROS = {ATEN.new_zeros.default, ATEN.zeros.default, ATEN.zeros_like.default}
VIEWS = {ATEN.view.default, ATEN._unsafe_view.default, ATEN.expand.default, ATEN.t.default, ATEN.transpose.int}
PRODUCTS = {ATEN.mm.default, ATEN.bmm.default}  # of a tangent of zeros, as forward mode has it for inputs


def merge(graph: Graph) -> None:
    """Equal operations on equal inputs become the first of them, copies and sums with 0 their input; in place.

    The 0 that forward mode has for the tangent of an input is 0 in its matrix products too.

    What lies in memory that is written to, or that is given back, is left as it is: outputs stay apart from each other.

    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> f = lambda x: (x.clone() + 1).exp() * (x + 1).exp()
    >>> made = make_fx(f, tracing_mode="fake")(torch.zeros(2))
    >>> merge(made.graph)
    >>> [str(n.target) for n in made.graph.nodes if n.op == "call_function"]
    ['aten.add.Tensor', 'aten.exp.default', 'aten.mul.Tensor']
    """
    changed = {m for node in graph.nodes for m in _written(node)}
    given = {m for node in graph.nodes if node.op == "output" for t in node.all_input_nodes for m in _memory(t)}
    first: dict[Any, Node] = {}
    nothing: set[Node] = set()
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if any(m in changed for t in (node, *node.all_input_nodes) for m in _memory(t)):
            continue
        if node.target in ZEROS or (node.target in (*VIEWS, *PRODUCTS) and nothing.intersection(node.all_input_nodes)):
            nothing.add(node)
        found = _input_of_copy(node, nothing) or first.setdefault(_key((node.target, node.args, node.kwargs)), node)
        if found is not node and not any(m in given for m in _memory(node)):
            node.replace_all_uses_with(found)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _written(node: Node) -> Iterator[int]:
    """The memory that an operation writes to."""
    if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
        for t in written(node.target, node.args, node.kwargs):
            if isinstance(t, Node):
                yield from _memory(t)


def _memory(node: Node) -> set[int]:
    """What of the memory a node's tensors lie in."""
    tensors = [t for t in torch_pytree.tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
    return {t.untyped_storage()._cdata for t in tensors}


def _input_of_copy(node: Node, nothing: set[Node]) -> Node | None:
    """What a copy is of, or a sum with zeros, where it lies alike in memory."""
    like: Any = None
    if node.target in SAME:
        like = node.args[0]
    elif (
        node.target is ATEN.add.Tensor and nothing.intersection(node.args) and not node.kwargs
    ):  # alpha= scales the other
        like = next((t for t in node.args if t not in nothing), None)
    if not isinstance(like, Node):
        return None
    form = lambda t: (t.shape, t.stride(), t.dtype, t.device, t.is_conj(), t.is_neg())
    return like if form(node.meta["val"]) == form(like.meta["val"]) else None


def _key(part: Any) -> Any:
    """Numbers by their type and bits, as 1 == 1.0 == True and 0.0 == -0.0."""
    if isinstance(part, (tuple, list)):
        return tuple(map(_key, part))
    if isinstance(part, dict):
        return tuple((name, _key(t)) for name, t in sorted(part.items()))
    if isinstance(part, slice):
        return slice, _key((part.start, part.stop, part.step))
    if isinstance(part, float):
        return float, part.hex()
    return type(part), part
