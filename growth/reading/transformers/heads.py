"""Heads: the projections of an attention layer by their paths in params, and how their axes are cut into heads.

H heads of queries, G heads of keys and values (G = H, or fewer: grouped queries), each of width d; r inputs, E outputs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from growth.checks.named import layer_name
from growth.reading.layers import layer_at
from linmaps import trees
from linmaps.checks import alike, size
from linmaps.checks.annotations import typed
from linmaps.trees import path_str
from linmaps.trees.keys import Path, names

MOST = 2**16  # heads: more is a mistake
SEPARATE = ("q", "k", "v")


@trees.static
@dataclasses.dataclass(frozen=True)
class Heads:
    """The four projections of multi-head attention, `out(softmax(q k' / √d) v)` in each head, of which more can be made.

    q, k, v, out: paths of the layers, as in a `Pair`: weights `[H d, r]`, `[G d, r]`, `[G d, r]` and `[E, H d]`, stored
    [out, in], and biases, which may be absent.  Rows h d to (h + 1) d are head h's (`unflatten(-1, (H, -1))`).
    packed: the path of a layer that holds all three, q above k above v, weight `[(H + 2 G) d, r]`; then q, k, v are None.
    `"c_attn"` names `c_attn.weight`; `"in_proj"` or `"in_proj_weight"` names the leaves of torch's MultiheadAttention.
    n_heads: H.  n_kv_heads: G, where there are fewer; head g of keys is that of queries g H/G to (g + 1) H/G.

    torch's MultiheadAttention keeps embed_dim = H d, so its heads can be scored (`head_scores`), but not be changed: write the
    layer out for that.  `widen`, `add_heads` and `prune` see this by f and x alone; without them they return leaves that no such
    module takes.

    Where keys and values are in groups, a head is one of these: it goes, and comes, with its H/G heads of queries.

    Raises ValueError for a path that is named twice, q, k, v beside packed, H < 1, or H that is no multiple of G; TypeError
    for other kinds of arguments.

    >>> str(Heads("q", "k", "v", "o", 4)), str(Heads(None, None, None, ("attn", "out_proj"), 4, packed="attn.in_proj"))
    ("Heads('q', 'k', 'v', 'o', 4)", "Heads(packed='attn.in_proj', out='attn.out_proj', n_heads=4)")
    """

    q: str | Path | None
    k: str | Path | None
    v: str | Path | None
    out: str | Path
    n_heads: int
    packed: str | Path | None = None
    n_kv_heads: int | None = None

    def __post_init__(self) -> None:
        wanted = ("out", "packed") if self.packed is not None else (*SEPARATE, "out")
        for name in (*SEPARATE, "packed", "out"):
            path = getattr(self, name)
            if name in wanted and not isinstance(path, (str, tuple)):
                raise TypeError(f"Heads: {name} is {path!r}, expected a dotted string or a tuple of keys")
            if name not in wanted and path is not None:
                raise ValueError(f"Heads: got {name}={path!r} beside packed, expected None: packed holds all three")
        found = [path_str(getattr(self, name)) for name in wanted]
        if len(set(found)) < len(found):
            raise ValueError(
                f"Heads: got {found}, expected {len(found)} different layers; of one that holds q, k and v: packed="
            )
        size(self.n_heads, "Heads: n_heads", 1, MOST)
        if self.n_kv_heads is not None:
            size(self.n_kv_heads, "Heads: n_kv_heads", 1, self.n_heads)
            if self.n_heads % self.n_kv_heads:
                raise ValueError(
                    f"Heads: n_heads is {self.n_heads}, expected a multiple of n_kv_heads={self.n_kv_heads}: each head of "
                    "keys and values is that of as many heads of queries"
                )

    @property
    def groups(self) -> int:
        """How many heads of keys and values there are: what can be added and removed.

        >>> Heads("q", "k", "v", "o", 4).groups, Heads("q", "k", "v", "o", 4, n_kv_heads=2).groups
        (4, 2)
        """
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @typed
    def plus(self, n: int) -> Heads:
        """The same layer after `add_heads(params, heads, n)`; negative n: after `prune(params, heads, heads to drop)`.

        Raises ValueError if none would be left.

        >>> Heads("q", "k", "v", "o", 4, n_kv_heads=2).plus(1)
        Heads(q='q', k='k', v='v', out='o', n_heads=6, packed=None, n_kv_heads=3)
        """
        size(n, "n", 1 - self.groups, MOST)
        groups, queries = self.groups + n, self.n_heads // self.groups
        kv = None if self.n_kv_heads is None else groups
        return dataclasses.replace(self, n_heads=queries * groups, n_kv_heads=kv)

    def __str__(self) -> str:
        kv = "" if self.n_kv_heads is None else f", n_kv_heads={self.n_kv_heads}"
        if self.packed is not None:
            return f"Heads(packed={path_str(self.packed)!r}, out={path_str(self.out)!r}, n_heads={self.n_heads}{kv})"
        paths = ", ".join(repr(path_str(getattr(self, name))) for name in (*SEPARATE, "out"))
        return f"Heads({paths}, {self.n_heads}{kv})"


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of an axis: `heads` heads of a role (q, k, v, out), side by side, of `width` entries each."""

    role: str
    heads: int
    width: int

    @property
    def size(self) -> int:
        return self.heads * self.width


@dataclasses.dataclass(frozen=True)
class HeadAxis:
    """An axis of a leaf, counted from the end, that is cut into heads: its segments one behind the other."""

    path: Path
    axis: int
    segments: tuple[Segment, ...]
    bias: bool = False

    @property
    def size(self) -> int:
        return sum(s.size for s in self.segments)

    def split(self, leaf: Tensor) -> list[Tensor]:
        """The segments of a leaf, each `[heads, width, rest]`, the rest being what is on its other axis (1 of a bias)."""
        front = leaf.movedim(self.axis, 0)
        flat = front.reshape(front.shape[0], -1) if self.bias else front
        return [
            t.unflatten(0, (s.heads, s.width))
            for s, t in zip(self.segments, flat.split([s.size for s in self.segments]))
        ]

    def joined(self, parts: list[Tensor]) -> Tensor:
        """The leaf of such segments, of whatever sizes."""
        flat = torch.cat([t.flatten(0, 1) for t in parts])
        return flat[:, 0] if self.bias else flat.movedim(0, self.axis)


def head_axes(params: Any, heads: Heads, *, stacked: bool = False) -> list[HeadAxis]:
    """The axes of an attention layer that are cut into heads: rows of q, k, v, entries of their biases, columns of out.

    stacked: whether leaves may have axes in front (an ensemble).  Raises ValueError (path, got, expected) for layers that
    are not there or do not match.

    >>> import torch
    >>> params = {"c_attn.weight": torch.zeros(12, 3), "c_proj.weight": torch.zeros(3, 4)}
    >>> [(a.path, a.axis, a.size) for a in head_axes(params, Heads(None, None, None, "c_proj", 2, packed="c_attn"))]
    [(('c_attn.weight',), -2, 12), (('c_proj.weight',), -1, 4)]
    """
    if not isinstance(heads, Heads):
        raise TypeError(f"heads: got {type(heads).__name__}, expected a growth.Heads")
    H, G = heads.n_heads, heads.groups
    if heads.packed is not None:
        layers = [(_packed(params, heads.packed), [("q", H), ("k", G), ("v", G)])]
    else:
        layers = [
            (_leaves(params, path), [(r, n)]) for r, n, path in zip(SEPARATE, (H, G, G), (heads.q, heads.k, heads.v))
        ]
    out = _leaves(params, heads.out)[0]
    found: list[HeadAxis] = []
    width: dict[str, int] = {}
    for (weight, bias), roles in layers:
        rows, total = trees.get(params, weight).shape[-2], sum(n for _, n in roles)
        if rows % total or not rows:
            raise ValueError(
                f"{heads}: {path_str(weight)} has {rows} rows, expected a multiple of {total}, for "
                f"{' + '.join(f'{n} heads of {r}' for r, n in roles)}; weights are stored [out, in]"
            )
        width |= dict.fromkeys((r for r, _ in roles), rows // total)
        cut = tuple(Segment(r, n, rows // total) for r, n in roles)
        found += [HeadAxis(weight, -2, cut)] + ([] if bias is None else [HeadAxis(bias, -1, cut, True)])
    columns = trees.get(params, out).shape[-1]
    if width["q"] != width["k"] or columns != H * width["v"]:
        raise ValueError(
            f"{heads}: widths of the heads do not match: q {width['q']}, k {width['k']}, v {width['v']}, and "
            f"{path_str(out)} takes {columns} inputs, expected the same of q and k, and {H} times that of v; name the layers of "
            "one attention layer, stored [out, in], and n_kv_heads where there are fewer heads of keys and values"
        )
    first = trees.get(params, found[0].path)
    alike(
        [trees.get(params, out), *(trees.get(params, a.path) for a in found)],
        str(heads),
        [first],
        path_str(found[0].path),
    )
    found.append(HeadAxis(out, -1, (Segment("out", H, width["v"]),)))
    return found if stacked else _plain(params, found)


def _plain(params: Any, axes: list[HeadAxis]) -> list[HeadAxis]:
    for a in axes:
        leaf = trees.get(params, a.path)
        if leaf.ndim != 2 - a.bias:
            raise ValueError(
                f"{path_str(a.path)}: got shape {tuple(leaf.shape)}, expected {2 - a.bias} axes; map over an ensemble with "
                "torch.func.vmap"
            )
    return axes


def _leaves(params: Any, stem: Any) -> tuple[Path, Path | None]:
    """The paths of a layer's weight and bias."""
    found = dict(zip(names(trees.paths(params)), trees.paths(params)))
    name = layer_name(found, stem)
    weight = found.get(f"{name}.weight", found.get(name))
    if weight is None:
        layer_at(params, stem)  # which says what there is
    bias = found.get(f"{name}.bias")
    return _checked(params, weight, bias)


def _packed(params: Any, stem: Any) -> tuple[Path, Path | None]:
    """Those of a layer that holds q, k and v: also `in_proj_weight` and `in_proj_bias`."""
    found = dict(zip(names(trees.paths(params)), trees.paths(params)))
    name = path_str(stem).removesuffix("_weight")
    if f"{name}_weight" in found:
        return _checked(params, found[f"{name}_weight"], found.get(f"{name}_bias"))
    return _leaves(params, stem)


def _checked(params: Any, weight: Any, bias: Path | None) -> tuple[Path, Path | None]:
    W, name = trees.get(params, weight), path_str(weight)
    for path in [weight] if bias is None else [weight, bias]:
        t = trees.get(params, path)
        if not (isinstance(t, Tensor) and t.is_floating_point()):
            got = t.dtype if isinstance(t, Tensor) else type(t).__name__
            raise TypeError(f"{path_str(path)}: got {got}, expected a real floating tensor")
    if W.ndim < 2:
        raise ValueError(f"{name}: got shape {tuple(W.shape)}, expected a matrix [out, in]")
    if bias is not None:
        b = trees.get(params, bias)
        alike([b], path_str(bias), [W], name)
        if tuple(b.shape) != tuple(W.shape[:-1]):
            raise ValueError(
                f"{path_str(bias)}: got shape {tuple(b.shape)}, expected {tuple(W.shape[:-1])}, one entry per row of {name}"
            )
    return weight, bias
