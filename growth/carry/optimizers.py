"""Swap the parameters of a live `torch.optim` optimizer for resized ones, with all that it remembers of them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from growth.carry.carrier import Carrier, Fill
from growth.reading.pairs import Pair
from growth.reading.transformers.heads import Heads
from growth.surgery.head_places import Attention
from growth.surgery.moves import Move, Moves, growing, shrinking
from growth.surgery.pruning import Units
from linmaps import trees
from linmaps.checks.annotations import typed
from linmaps.trees import path_str
from linmaps.trees.tree import Tree


@typed
def swap_parameters(
    optimizer: Optimizer,
    params: Any,
    grown: Tree,
    *,
    pair: Pair | Heads | None = None,
    units: Units | None = None,
    fill: Fill = "zero",
    heads: Attention = None,
) -> Tree:
    """`grown` as new leaves for autograd, which stand in `optimizer` where those of params stood.

    This changes the optimizer given, and is the one function of the package that changes an argument: `param_groups` keep
    their options, their order and their identity (learning-rate schedulers go on), moments are resized as by `grow_like`,
    and nothing of the optimizer refers to the old tensors any more.  `state_dict()` of the optimizer and `grow_like` do
    the same for a new optimizer, without a change.

    Of a module `growth.into_module(module, grown, optimizer=optimizer)` does this and gives the larger module.

    params: a tree with the very tensors that the optimizer has, such as `dict(model.named_parameters())`, whose order
    does not matter; it may have more leaves (buffers, frozen ones), the optimizer more tensors.
    grown: the resized tree, of `grow`, `widen`, `prune`, ...; pair, units: after `prune(params, pair, units)` these two.
    The answer is a tree like grown of copies that require grad where the old leaf did, `nn.Parameter` where it was one;
    what is one tensor in params (tied) stays one.  Gradients (`.grad`) start as None.
    fill, heads: as in `grow_like`.  L-BFGS: its vectors are padded too; new entries join its memory with their next gradient.

    Raises ValueError, before anything is changed: for grown trees that do not match (as `grow_like`, `prune_like`), if the
    optimizer has none of the tensors of params (copies?), if it lacks one that was resized and requires grad, for
    state that `grow_like` does not know.  TypeError for another optimizer.

    >>> import torch
    >>> params = {"a": torch.ones(1, 2, requires_grad=True), "b": torch.ones(3, 1, requires_grad=True)}
    >>> optimizer = torch.optim.SGD(params.values(), lr=0.1)
    >>> larger = swap_parameters(optimizer, params, {"a": torch.ones(2, 2), "b": torch.ones(3, 2)})
    >>> [p.shape for p in optimizer.param_groups[0]["params"]], optimizer.param_groups[0]["params"][1] is larger["b"]
    ([torch.Size([2, 2]), torch.Size([3, 2])], True)
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer: got {type(optimizer).__name__}, expected a torch.optim.Optimizer; functional states go by grow_like"
        )
    if (pair is None) != (units is None):
        raise ValueError("pair, units: got one of them, expected both (after prune) or none (after growth)")
    moves = growing(params, grown, heads) if pair is None or units is None else _pruning(params, grown, pair, units)
    carrier = Carrier(moves, fill)
    known = _known(params, grown, moves)
    held = [t for group in optimizer.param_groups for t in group["params"]]
    _check(optimizer, held, params, moves, known)

    # all that can fail comes first
    order = [known[id(t)][0] if id(t) in known else Move(tuple(t.shape), tuple(t.shape)) for t in held]
    carried = {}
    for t, move in zip(held, order):
        if t in optimizer.state:
            carried[id(t)] = carrier.entry(optimizer.state[t], move, order)
    made = {key: _leaf(old, new) for key, (_, old, new) in known.items()}

    for group in optimizer.param_groups:
        group["params"][:] = [made.get(id(t), t) for t in group["params"]]  # the list itself: L-BFGS keeps it
    for t in held:
        if t in optimizer.state:
            del optimizer.state[t]
            optimizer.state[made.get(id(t), t)] = carried[id(t)]
    if hasattr(optimizer, "_numel_cache"):
        optimizer._numel_cache = None
    flat, treedef = trees.flatten(params)
    return cast(Tree, treedef.unflatten([made[id(t)] for t in flat]))


def _leaf(old: Tensor, new: Tensor) -> Tensor:
    made = new.detach().clone()
    if isinstance(old, torch.nn.Parameter):
        return torch.nn.Parameter(made, requires_grad=old.requires_grad)
    return made.requires_grad_(old.requires_grad)


def _pruning(params: Any, pruned: Any, pair: Pair | Heads, units: Units) -> Moves:
    moves = shrinking(params, pair, units)
    trees.check_like(pruned, params, "pruned", shapes=False)
    for (path, move), t in zip(moves.leaves.items(), trees.leaves(pruned)):
        if tuple(t.shape) != move.new:
            raise ValueError(
                f"pruned: {path_str(path)} has shape {tuple(t.shape)}, expected {move.new} after prune(params, pair, units); "
                "give the pair and the units that it was pruned by"
            )
    return moves


def _known(params: Any, grown: Any, moves: Moves) -> dict[int, tuple[Move, Tensor, Tensor]]:
    """(move, old tensor, new tensor) by the identity of the old tensor."""
    known: dict[int, tuple[Move, Tensor, Tensor]] = {}
    for (path, move), old, new in zip(moves.leaves.items(), trees.leaves(params), trees.leaves(grown)):
        other = known.setdefault(id(old), (move, old, new))[2]
        if other is not new and (other.shape != new.shape or not torch.equal(other, new)):
            raise ValueError(
                f"{path_str(path)}: is one tensor with another leaf of params (tied) but resized otherwise, expected the same; "
                "untie them before growing"
            )
    return known


def _check(
    optimizer: Optimizer, held: list[Tensor], params: Any, moves: Moves, known: dict[int, tuple[Move, Tensor, Tensor]]
) -> None:
    has = {id(t) for t in held}
    if not has & set(known):
        raise ValueError(
            "optimizer: holds none of the tensors of params, expected the very same ones, not copies; give the tree that it "
            "was made for, such as dict(model.named_parameters())"
        )
    for (path, move), t in zip(moves.leaves.items(), trees.leaves(params)):
        if t.requires_grad and not move.still and id(t) not in has:
            raise ValueError(
                f"{path_str(path)}: is resized and requires grad, but the optimizer does not hold it, expected all such leaves "
                "in its param_groups; add it with optimizer.add_param_group, or freeze it"
            )
