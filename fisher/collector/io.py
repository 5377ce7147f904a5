"""What enters each use, and the gradient at its output: the collector as a public function.

B batch, S shared (positions), I inputs, O outputs, C columns (cotangents at f's output).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fisher.checks import doors
from fisher.checks.arguments import inputs as inputs_as_taken
from fisher.checks.arguments import parameters
from fisher.checks.axes import batch_size
from fisher.collector.collection import LayerCollection
from fisher.collector.taps import column_rows, pull
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision


@full_precision("f")
@typed
def layer_io(
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    layers: LayerCollection,
    cotangent: Callable[[Tensor], Tensor],
    *,
    uses: tuple[int, ...] | None = None,
    inputs_of: tuple[int, ...] = (),
) -> tuple[Tensor, dict[int, tuple[Tensor, Any]]]:
    """`(y, {use: (a, g)})`: what enters each use, a [B, S, I] (ones for a bias alone, patches of a convolution, the
    normalized x of a norm, indices [B, S] of a lookup), and the gradient at its output,
    g [C, B, S, O] = d <cotangent(y)_c, y> / d output.  With groups they are [.., groups, I] and [.., groups, O].

    uses: which, by number (None: all).  inputs_of: more of them, for which g is None: the backward need not reach them.
    One forward and one backward over C columns; memory C B S O per use.  Pure; composes with vmap, grad, jacrev, jacfwd.
    Raises ValueError where the uses met differ from `layers`.

    >>> import torch, fisher
    >>> f = lambda p, x: torch.tanh(x @ p["w"])
    >>> p, x = {"w": torch.ones(2, 3)}, torch.ones(4, 2)
    >>> layers = fisher.LayerCollection.from_function(f, p, x)
    >>> y, io = fisher.layer_io(f, p, x, layers, lambda y: torch.ones_like(y)[None])
    >>> [tuple(t.shape) for t in io[0]]
    [(4, 1, 2), (1, 4, 1, 3)]
    """
    f, params, x = doors.function(f), parameters(params), inputs_as_taken(x)
    wanted = layers.tapped if uses is None else uses
    y, inputs, back = pull(f, params, x, layers, wanted, lambda k, a: a, inputs_of)
    g: dict[int, Any] = column_rows(layers, back(cotangent(y)), batch_size(x))
    return y, {k: (inputs[k], g.get(k)) for k in (*wanted, *inputs_of)}
