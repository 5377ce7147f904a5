"""Widen the residual stream of a network: embeddings, norms, all that reads it and all that writes it, the function kept.

E the width of the stream, k new entries.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from growth.checks.doors import count, door
from growth.closed_form.draws import in_rows
from growth.reading.transformers.streams import Leaf, Stream, stream_of
from growth.surgery.resize import magnitude
from growth.surgery.same import Check, Function, asked, same_function
from linmaps import trees
from linmaps.checks import alike
from linmaps.trees import path_str
from linmaps.trees.keys import Path
from linmaps.trees.tree import Tree

Norm = Literal["rms", "layer", "none"]
NORMS = get_args(Norm)


@door("f")
def widen_stream(
    params: Tree,
    layers: Any,
    k: int,
    generator: torch.Generator | None = None,
    *,
    norm: Norm | None = None,
    draws: Tensor | None = None,
    f: Function = None,
    x: Any = None,
    check: Check | None = None,
) -> Tree:
    """`params` with k more entries in the residual stream, computing the same function; the new ones are silent at first.

        stream x -> [c x, 0]        embeddings, writers W -> [c W; 0], b -> [c b; 0]        readers R -> [R / c, V]
        norms: weight -> [weight, 1], bias -> [c bias, 0]                                  c = √((E + k) / E)

    V random.  c keeps the mean of squares that norms divide by, with its eps, so this is exact for RMSNorm, in front of layers
    or behind them.  LayerNorm takes the mean off first: then writers and embeddings lose their mean over the stream,
    x -> [c (x - mean x), 0], which changes nothing where the stream is read through LayerNorms alone; norms behind layers, whose
    output is read as it is, cannot be kept so.  Without norms c = 1.  New entries come last, so `grow_like` carries state.

    layers: the paths by role, `{"embeddings": ..., "writers": ..., "readers": ..., "norms": ..., "scales": ..., "tied": ...}`:
    embeddings are leaves with the stream last (tokens, positions, class tokens), writers layers whose outputs are added to it,
    readers layers whose inputs it is (of q, k, v each, and the last layer), scales factors of its entries, tied pairs
    (embedding that is the last layer too, norm in front of that): its norm takes 1 / c² (RMSNorm alone).  Or a
    `fisher.LayerCollection`, if embeddings say E and no layer has E on both sides; layers that have E by chance are taken for
    readers and writers, which f and x tell.
    norm: "rms", "layer", "none"; None: "none" without norms, "layer" if all have biases; name it where norms have no leaves.  f
    must take the width from params.
    draws `[k, N]`: standard normal numbers in place of a generator, N = the entries of a column of all readers.
    f, x (or check=(f, x)): held against each other as in `widen`; without them f raises later for readers and writers left out.

    Raises ValueError (path, got, expected) for leaves of another width, roles that are open, tied layers or scales of a stream
    with LayerNorm, norms of unknown kind, missing randomness, and where f is another function.

    >>> import torch
    >>> p = {"e": torch.ones(2, 1), "n": torch.ones(1), "r": torch.ones(1, 1)}
    >>> roles = {"embeddings": ["e"], "norms": ["n"], "readers": ["r"]}
    >>> widen_stream(p, roles, 3, draws=torch.ones(3, 1), norm="rms")["r"]
    tensor([[0.5000, 1.0000, 1.0000, 1.0000]])
    """
    stream = stream_of(params, layers)
    held = asked(f, x, check)
    if held is not None:
        again = None if generator is None else generator.clone_state()
        same_function(held, params, widen_stream(params, layers, k, again, norm=norm, draws=draws), stream)
    count(k, cure="to remove entries take them out of all leaves")
    E, kind = stream.width, _kind(stream, norm)
    if not E:
        raise ValueError(f"{stream}: got width 0, expected at least one entry")
    first = stream.into[0][0]
    every = [*stream.into, *stream.out, *stream.gains, *stream.shifts, *stream.scales]
    alike([trees.get(params, p) for p, _ in every], "layers", [trees.get(params, first)], path_str(first))
    if not k:
        return params
    numbers = _drawn(params, stream, k, generator, draws)
    c = 1.0 if kind == "none" else math.sqrt((E + k) / E)
    new: dict[Path, Tensor] = {}
    for path, axis in stream.into:
        t = trees.get(params, path)
        t = t - t.mean(axis, keepdim=True) if kind == "layer" else t
        new[path] = _longer(c * t, axis, k, 0.0)
    for path, axis in stream.out:
        t = trees.get(params, path)
        fresh = numbers[path].reshape(k, t.shape[0], *t.shape[2:]).movedim(0, 1)
        new[path] = torch.cat([t / c, magnitude(t) * fresh.to(t)], axis)
    for path, axis in (*stream.gains, *stream.scales):
        t = trees.get(params, path)
        new[path] = _longer(t / c**2 if path in stream.before_tied else t, axis, k, 1.0)
    tied = {_beside(p) for p in stream.before_tied}
    for path, axis in stream.shifts:
        t = trees.get(params, path)
        new[path] = _longer(t / c if path in tied else c * t, axis, k, 0.0)
    for path, t in new.items():
        params = trees.replace(params, path, t)
    return params


def _beside(weight: Path) -> Path:
    """The path of the bias of a norm."""
    return (*weight[:-1], f"{str(weight[-1]).removesuffix('weight')}bias")


def _longer(t: Tensor, axis: int, k: int, value: float) -> Tensor:
    shape = (*t.shape[:axis], k, *t.shape[axis + 1 :])
    return torch.cat([t, t.new_full(shape, value)], axis)


def _kind(stream: Stream, norm: str | None) -> str:
    if norm is not None and norm not in NORMS:
        raise ValueError(f"norm: got {norm!r}, expected one of {list(NORMS)}")
    biased = {_beside(p) for p, _ in stream.gains} == {p for p, _ in stream.shifts}
    if norm is None and stream.gains and not biased:
        raise ValueError(
            f"norm: got None for norms without bias, as {path_str(stream.gains[0][0])}, expected 'rms' or 'layer' (which takes "
            "the mean off)"
        )
    kind = norm or ("layer" if stream.gains else "none")
    if kind == "none" and stream.gains:
        raise ValueError(f"norm: got 'none' with norms, as {path_str(stream.gains[0][0])}, expected 'rms' or 'layer'")
    for what, found in (("tied layers", stream.before_tied), ("scales", [p for p, _ in stream.scales])):
        if kind == "layer" and found:
            raise ValueError(
                f"{path_str(found[0])}: {what} in a stream with LayerNorm, expected none: what is written must lose its mean, "
                "which they do not let through; untie them, or put scales into the layers that they follow"
            )
    return kind


def _drawn(
    params: Any, stream: Stream, k: int, generator: torch.Generator | None, draws: Tensor | None
) -> dict[Path, Tensor]:
    """Standard normal numbers of k new inputs of each reader, `[k, outputs kernel]`."""
    leaves: list[tuple[Leaf, Tensor]] = [(leaf, trees.get(params, leaf[0])) for leaf in stream.out]
    sizes = [t.numel() // t.shape[1] for _, t in leaves]
    like = trees.get(params, stream.into[0][0])
    each = f"for each new entry a column of {', '.join(path_str(leaf[0]) for leaf, _ in leaves)}"
    draws = in_rows(k, sum(sizes), like, generator, draws, stream, each)
    return {leaf[0]: part for (leaf, _), part in zip(leaves, draws.split(sizes, 1))}
