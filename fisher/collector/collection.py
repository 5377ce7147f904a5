"""Layers found: f is watched once, and what was found is held against autograd."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fisher.checks import doors, purity
from fisher.checks.arguments import inputs, parameters
from fisher.checks.axes import batch_size
from fisher.collector import witness
from fisher.collector.backwards import ruled
from fisher.collector.blocks.grouping import leaves_to_layers as _layers
from fisher.collector.blocks.uses import EXACT, UNUSED
from fisher.collector.layers import Layers
from fisher.collector.modules import called
from fisher.collector.trace import Tracer
from fisher.collector.watching.known import distinct
from linmaps import trees
from linmaps.checks.precision import full_precision
from linmaps.trees import Layout, path_str
from linmaps.trees.graphs.tracing import traced
from linmaps.trees.keys import Path


@trees.static
@dataclasses.dataclass(frozen=True, repr=False)
class LayerCollection(Layers):
    """The layers of a function: which leaf gets which block.  Made by `from_function`; print it to see the table.

    block: "kronecker" (factors), "through" (leaves of weights that f computes from leaves alone; kind: what computes them),
    "exact", or "none" (no gradient).  bytes: what PMatKFAC keeps under its limits.
    """

    @classmethod
    @full_precision("f")
    def from_function(
        cls,
        f: Callable[..., Tensor],
        params: Any,
        x: Any,
        *,
        check: bool = True,
        strict: bool = False,
        exact: Sequence[str | Path | list[str]] = (),
    ) -> LayerCollection:
        """Watch `f(params, x)` once and find what each leaf is.

        check: see where the examples are in each use, that they do not mix, that f is not random, and compare, for each leaf,
        autograd's gradient with the sum over uses of g'a, or with the rows of single examples (two forwards and two or three
        backwards more, or some more).  strict: raise where a leaf has no rule, instead of
        giving it an exact block.  exact: paths of leaves to be given an exact block in any case; a list of paths shares one:
        `exact=["embedding", ["scale", "shift"]]`.

        Raises ValueError (path, what was met, the cure) for a hidden use, mixed examples, an integer leaf.

        >>> import torch
        >>> f = lambda p, x: torch.relu(x @ p["w"] + p["b"]) * p["scale"]
        >>> p = {"w": torch.ones(2, 3), "b": torch.zeros(3), "scale": torch.ones(3)}
        >>> LayerCollection.from_function(f, p, torch.ones(4, 2))
        LayerCollection: 3 leaves, 12 parameters, 2 blocks, 108 B
        layer  block      kind    out x in  uses  bytes  leaves  note
        scale  exact      scale   3 x 3        1   36 B  scale
        w      kronecker  matmul  3 x 3        1   72 B  w, b
        """
        f = doors.function(f)
        if traced():
            raise ValueError(
                "layers: got none while a graph is made (linmaps.trees.compiled, torch.compile), expected those of f, which "
                "show in numbers alone; find them before, LayerCollection.from_function(f, params, x), and pass layers= (of "
                "growth: to statistics, with optimal_delta and optimal_neurons in place of a whole step)"
            )
        params, x = parameters(params), inputs(x)
        layout = Layout.of(params)
        params = distinct(params)
        if check and batch_size(x) == 1:  # where the examples are shows only among several
            x = trees.map(lambda t: torch.cat([t, t]), x)
        doors.of_type(exact, (str, Sequence), "exact", "paths of leaves, or lists of those that share a block")
        exact = (exact,) if isinstance(exact, str) else exact
        together = [
            [leaf for name in group for leaf in _leaves_at(name, layout)] for group in exact if isinstance(group, list)
        ]
        alone = [leaf for name in exact if not isinstance(name, list) for leaf in _leaves_at(name, layout)]
        forced = dict.fromkeys([*alone, *(leaf for group in together for leaf in group)], "asked for")
        _once([*alone, *(leaf for group in together for leaf in group)])

        def attempt(only_weights: frozenset[int]) -> LayerCollection | frozenset[int]:
            runs: list[tuple[Tracer, bool]] = []  # of each run: a second one has none of the first one's notes

            def run(params: Any, x: Any) -> Tensor:
                tracer = Tracer(batch_size(x), only_weights)
                y = tracer.run(f, params, x)
                runs.append((tracer, ruled(y)))
                return y

            y, back = purity.watched(run, params, x)
            tracer, sure = runs[-1]
            uses = tracer.resolved()
            opaque = {p: f"used by {name}: no rule" for p, name in tracer.opaque.items()} | forced
            make = lambda uses, opaque: cls(
                _layers(layout, uses, opaque, tracer.parts, together, tracer.alone), uses, layout
            )
            made = make(uses, opaque)
            if not check or not tracer.batch:
                return made
            seen = witness.Evidence.of(f, params, x, made, y, back, sure, tracer.dtypes)
            witness.examples_apart(seen)
            axes = witness.batch_axis(seen)
            mixed = {u.constant for k, u in enumerate(uses) if u.constant is not None and k in axes and axes[k] is None}
            if mixed:  # a product with constants that holds no examples, although one of its axes is as long
                return only_weights | mixed
            lost = {p: "its batch axis was not found" for k, a in axes.items() if a is None for p in uses[k].paths}
            found = {k: axis for k, axis in axes.items() if axis is not None}
            uses = tuple(dataclasses.replace(u, axis=found.get(k, u.axis)) for k, u in enumerate(uses))
            return witness.complete(make(uses, lost | opaque), seen)

        made: LayerCollection | frozenset[int] = frozenset()
        while isinstance(made, frozenset):
            made = attempt(made)
        if made.layers and all(layer.family == UNUSED for layer in made):
            warnings.warn(
                "f: no leaf of params moves its output, so that every matrix is zero; f is a function of the params that it is "
                "given (of a module f, params = fisher.functional(module))",
                stacklevel=2,
            )
        without = [layer for layer in made if layer.family == EXACT]
        if strict and without:
            layer = without[0]
            raise ValueError(
                f"{layer.name}: {layer.note}; add one with fisher.rules.register or pass strict=False to give it an exact "
                "block"
            )
        return made

    @classmethod
    def from_model(cls, model: Any, params: Any, x: Any, **options: Any) -> LayerCollection:
        """The layers of a module, of `f(p, x) = model(x)` with the parameters p; options as of `from_function`.

        params: a dict by the names of the module's parameters, or None for its own.

        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
        >>> [layer.kind for layer in LayerCollection.from_model(model, None, torch.ones(4, 2))]
        ['linear', 'scale']
        """
        if params is None:
            params = {name: t.detach() for name, t in model.named_parameters()}
        return cls.from_function(called(model), params, x, **options)


def _once(leaves: list[Path]) -> None:
    twice = sorted({path_str(p) for p in leaves if leaves.count(p) > 1})
    if twice:
        raise ValueError(f"exact: names {twice} twice, expected each leaf in one block")


def _leaves_at(path: str | Path, layout: Layout) -> list[Path]:
    """The leaves at or under a path: `hidden` names hidden.weight and hidden.bias."""
    name = path_str(path)
    found = [p for p in layout.paths if path_str(p) == name or path_str(p).startswith(name + ".")]
    if not found:
        raise ValueError(f"{name}: no such leaf, expected one of {[path_str(p) for p in layout.paths]}")
    return found
