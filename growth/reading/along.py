"""Leaves between two layers with one number per hidden unit, of norms and of the activation: found, and grown along.

p hidden units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from fisher.collector.blocks.uses import Use
from fisher.collector.calls.chains import NORM, Chain, Step
from fisher.collector.rules.forms import Convolution
from growth.reading.pairs import Pair
from linmaps import trees
from linmaps.numerics.dtypes import working
from linmaps.trees import path_str
from linmaps.trees.keys import Path, names

FILL = 0.25  # of new entries, as torch initialises PReLU
NORM_FILLS = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
PRELU = "torch.nn.functional.prelu"


def along_leaves(params: Any, pair: Pair) -> list[tuple[Path, Tensor]]:
    """The leaves that grow along with the pair's units; ValueError for one that is not there or no vector.

    >>> import torch
    >>> along_leaves({"act": {"weight": torch.ones(2)}}, Pair("a", "b", along=("act",)))
    [(('act', 'weight'), tensor([1., 1.]))]
    """
    if not pair.along:
        return []
    at, found = dict(zip(names(trees.paths(params)), trees.paths(params))), []
    for name in map(path_str, pair.along):
        path = at.get(name, at.get(f"{name}.weight"))
        leaf = None if path is None else trees.get(params, path)
        if path is None or not isinstance(leaf, Tensor) or leaf.ndim != 1:
            got = "no such leaf" if path is None else f"got shape {tuple(getattr(leaf, 'shape', ()))}"
            raise ValueError(
                f"{name}: {got} in params, expected a vector [p], one number per hidden unit, as named by along of {pair}"
            )
        found.append((path, leaf))
    return list({path: (path, leaf) for path, leaf in found}.values())


def norm_leaves(params: Any, pair: Pair) -> list[tuple[Path, Tensor, float]]:
    """The leaves of the pair's norm that are there, with the value that a new unit gets: weight and variance 1, else 0.

    >>> import torch
    >>> params = {"n.weight": torch.ones(2), "n.running_mean": torch.ones(2)}
    >>> [(path, fill) for path, _, fill in norm_leaves(params, Pair("a", "b", norm="n"))]
    [(('n.weight',), 1.0), (('n.running_mean',), 0.0)]
    """
    found: list[tuple[Path, float]] = []
    at = {path_str(p): p for p in trees.paths(params)} if pair.norms else {}
    for stem in map(path_str, pair.norms):
        own = [(at[f"{stem}.{n}"], fill) for n, fill in NORM_FILLS.items() if f"{stem}.{n}" in at]
        if not own:
            raise ValueError(
                f"{stem}: no such norm in params, expected leaves {stem}.weight, ... of {sorted(NORM_FILLS)}; a norm without "
                "leaves needs no name"
            )
        found += own
    return [(path, trees.get(params, path), fill) for path, fill in found]


def columns(pair: Pair, path: Path, leaf: Tensor, p: int, flattened: int, before: str) -> int:
    """How many entries of a leaf that grows along belong to one unit: 1, or the positions of a flattened map."""
    each = next((n for n in (1, flattened) if leaf.shape[0] == p * n), None)
    if each is None:
        cure = ", which one number for all units is not: it stays as it is, leave it out" if leaf.shape[0] == 1 else ""
        raise ValueError(
            f"{path_str(path)}: got shape {tuple(leaf.shape)}, expected ({p},), one entry per output of {before}, as named by "
            f"along of {pair}{cure}"
        )
    return each


def joined(pair: Pair, record: Any) -> Pair:
    """The pair with what a record of it (units, statistics) knows to grow along: norms, a depthwise convolution, slopes.

    ValueError where they name two depthwise convolutions, as one pair has but one.

    >>> from types import SimpleNamespace
    >>> str(joined(Pair("a", "b"), SimpleNamespace(pair=Pair("a", "b", norm="n", along=("act",)))))
    "Pair('a', 'b', norm='n', along=('act',))"
    """
    own = getattr(record, "pair", None)
    if own is None:
        return pair
    more: dict[str, Any] = {}
    if not set(own.along) <= set(pair.along):
        more["along"] = (*pair.along, *own.along)
    named = {path_str(p) for p in pair.norms}
    norms = [p for p in own.norms if path_str(p) not in named]
    if norms:
        more["norm"] = [*pair.norms, *norms] if named else own.norm
    if own.depthwise is not None and pair.depthwise is None:
        more["depthwise"] = own.depthwise
    elif own.depthwise is not None and path_str(own.depthwise) != path_str(pair.depthwise):  # type: ignore[arg-type]
        raise ValueError(
            f"depthwise: got {pair}, and a record of {own}, expected the same depthwise convolution in both"
        )
    return dataclasses.replace(pair, **more) if more else pair


@dataclasses.dataclass(frozen=True)
class Way:
    """What stands between two layers, call by call: as it is to a new unit, and (own) to the units there are.

    along: names of the leaves that grow along.
    """

    chain: Chain
    own: Chain
    along: tuple[str, ...] = ()

    def behind(self, chain: Chain) -> Way:
        """This, behind a chain."""
        steps = chain.steps
        return Way(Chain((*steps, *self.chain.steps)), Chain((*steps, *self.own.steps)), self.along)


def way(uses: tuple[Use, ...], params: Any, pair: Pair, p: int, start: int, end: int) -> Way | str:
    """What leads from the output of one use to the input of another, or in words why this is not known.

    To a new unit the pair's norms are the identity, its depthwise convolution takes what is under the centre, and a PReLU with
    one slope for each unit is the one of slope .25.
    """
    found, source = Way(Chain(), Chain()), uses[end].source
    while source is not None:
        k, chain = source
        others = [path for name, paths, _ in chain.steps if name == NORM for path in paths if not _of(pair.norms, path)]
        if others:
            return f"comes from batch_norm of {path_str(others[0])}"
        chain = Chain(tuple(one for one in chain.steps if one[0] != NORM))
        found, use, source = found.behind(chain), uses[k], uses[k].source
        if k == start:
            return found
        if _normed(use, pair):
            continue
        if _deep(use, pair):
            found = found.behind(Chain(_centre(use.form)))
            continue
        why = f"comes from {use.describe()}"
        if use.kind != "prelu" or not isinstance(use.weight, tuple):
            return why
        name, leaf = path_str(use.weight), trees.get(params, use.weight)
        named = {name, name.removesuffix(".weight")} & set(map(path_str, pair.along))
        if leaf.shape[0] == 1 and not named:
            found = found.behind(Chain(((PRELU, (working(leaf),), ()),)))
            continue
        if sum(use.weight == other.weight for other in uses) > 1:
            return f"{why}, whose slopes have another use"
        if len(use.shape) > 2 and not isinstance(uses[start].form, Convolution):  # torch has the slopes along axis 1
            return f"{why}, whose {leaf.shape[0]} slopes are of positions, not of hidden units"
        new: Step = ("torch.nn.functional.leaky_relu", (FILL,), ())
        own: Step = (PRELU, (working(leaf),), ()) if leaf.shape[0] == p else new
        along = found.along if named else (*found.along, name)
        found = Way(Chain((new, *found.chain.steps)), Chain((own, *found.own.steps)), along)
    return "cannot be read"


def _normed(use: Use, pair: Pair) -> bool:
    return any(_of(pair.norms, path) for path in use.paths)


def _deep(use: Use, pair: Pair) -> bool:
    return (
        pair.depthwise is not None
        and isinstance(use.form, Convolution)
        and any(_of([pair.depthwise], path) for path in use.paths)
    )


def _of(stems: Iterable[str | Path], path: Path) -> bool:
    """Whether a leaf is one of these layers."""
    name = path_str(path)
    return any(name == path_str(stem) or name.startswith(f"{path_str(stem)}.") for stem in stems)


def _centre(form: Any) -> tuple[Step, ...]:
    """What a kernel that is 1 at its centre does to a map: it is shifted, cut at both ends, and thinned by the stride."""
    n = len(form.kernel)
    reach = [((size - 1) // 2 * d, (size - 1 - (size - 1) // 2) * d) for size, d in zip(form.kernel, form.dilation)]
    ends = [(left - a, right - b) for (left, right), (a, b) in zip(form.padding, reach)]
    flat = tuple(end for both in reversed(ends) for end in both)
    steps: tuple[Step, ...] = (("torch.nn.functional.pad", (flat,), ()),) if any(flat) else ()
    if any(s > 1 for s in form.stride):
        steps += ((f"torch.nn.functional.avg_pool{n}d", (1, form.stride), ()),)
    return steps


def norm_reads(uses: tuple[Use, ...], pair: Pair, start: int) -> bool:
    """Whether the pair's norm reads the output of this use as it is."""
    sources = [use.source for use in uses if _normed(use, pair)]
    return len(sources) == 1 and sources[0] is not None and sources[0][0] == start and not sources[0][1].steps
