"""The Gram matrix Theta = J J' of all examples and outputs: the empirical neural tangent kernel, layer by layer.

B, B2 examples, C outputs, S positions, I inputs, O outputs of a layer, n parameters of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fisher.checks import doors, finiteness
from fisher.checks.arguments import parameters
from fisher.checks.axes import OUTPUT, batch_size, one_shape
from fisher.collector.blocks.uses import UNUSED, Layer
from fisher.collector.collection import LayerCollection
from fisher.collector.exact_rows import of_layer
from fisher.collector.products import example_gradients, joined
from fisher.function_space.fmat import AXES, FMatDense, Kernel
from fisher.function_space.rows import sweep
from fisher.trials import functions, modes
from fisher.trials.data import inputs, several
from linmaps import trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.numerics.numeric import total


class Rows(NamedTuple):
    """The rows of J that belong to a layer, `[B, C, n]`."""

    rows: Tensor

    def pair(self, other: Rows, kind: Kernel) -> Tensor:
        return _outer(self.rows, other.rows, kind)


class Product(NamedTuple):
    """What makes rows g a' at one position: a `[B, I]` (a one last for a bias) and g `[B, C, O]`."""

    a: Tensor
    g: Tensor

    def pair(self, other: Product, kind: Kernel) -> Tensor:
        inputs = self.a @ other.a.mT
        return _outer(self.g, other.g, kind) * (inputs[:, None, :, None] if kind == "full" else inputs)


class Table(NamedTuple):
    """What makes the rows of a lookup: entries `[B, S]`, where `size` stands for nothing, and g `[B, C, S, O]`."""

    entries: Tensor
    g: Tensor
    size: int

    def pair(self, other: Table, kind: Kernel) -> Tensor:
        left, right = self.entries[:, :, None, None], other.entries
        same = ((left == right) & (left < self.size)).to(self.g.dtype)
        spread = torch.einsum("bsxt,xkto->bsxko", same, other.g)
        how = {"full": "bcso,bsxko->bcxk", "outputs": "bcso,bsxco->cbx", "trace": "bcso,bsxco->bx"}[kind]
        return torch.einsum(how, self.g, spread)


Features = dict[str, Any]  # one of these for each layer that moves the output


@full_precision("f")
@typed
def gram(
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    x2: Any = None,
    *,
    kind: Kernel = "full",
    chunk_size: int | None = None,
    centered: bool = False,
    layers: LayerCollection | None = None,
    check: bool = True,
    check_finite: bool = True,
) -> FMatDense:
    """Theta = J(x) J(x2)', no mean taken: the empirical neural tangent kernel of `f(params, x)` `[B, *out]`.

    kind: "full" `[B, C, B2, C]`; "outputs" `[C, B, B2]`, the kernel of each output; "trace" `[B, B2]`, their sum.
    x, x2: one batch, or an iterable of batches; x2 = None is x itself (symmetric, positive semi-definite).
    centered: each J minus its mean over examples.  layers: from `LayerCollection.from_function`; made and checked here if
    not given (two forwards, four backwards more); of a sub-collection, J with respect to its leaves.  chunk_size: output
    columns differentiated at once.  check, check_finite: as in `jacobian`; ValueError as there.

    Each batch is swept once: one forward, one backward over C columns.  A layer used once at one position is summed as
    (a a2' + 1) (g g2'), memory B (I + C O), (B C)^2 (O + 1) multiplications for a pair of batches; a lookup as (is it the
    same entry) (g g2'), without its table; of any other the rows of J are made, memory B C n.  Composes with vmap over
    stacked params, grad, jacrev, jacfwd.

    A kernel that does not fit in memory is made by blocks of rows, `gram(f, params, part, x, layers=layers)` for each part of the
    examples, and written as it is made: `linmaps.trees.save(block, f"{n}.safetensors")`.

    Jacot, Gabriel and Hongler (2018); products per layer: Novak, Sohl-Dickstein and Schoenholz (2022).

    >>> import torch
    >>> f = lambda p, x: torch.tanh(x @ p["w"] + p["b"])
    >>> K = gram(f, {"w": torch.ones(2, 3), "b": torch.zeros(3)}, torch.ones(5, 2))
    >>> K, K.kernel.shape
    (FMatDense(full, 15 x 15, float32, cpu), torch.Size([5, 3, 5, 3]))
    """
    if kind not in AXES:
        raise ValueError(f"kind: got {kind!r}, expected one of {list(AXES)}")
    f = doors.function(f)
    doors.options(chunk_size=chunk_size, layers=layers)
    params = parameters(params, check_finite)
    parts = _parts(x, "x", check_finite)
    others = None if x2 is None else _parts(x2, "x2", check_finite)
    widest = several([*parts, *(others or [])])
    if check:
        functions.function(f, params, widest, finite=check_finite)
    if layers is None:
        layers = LayerCollection.from_function(f, params, widest, check=check and check_finite)
    params = layers.layout.check(params, "params (of the LayerCollection)")
    made = [features(f, params, part, layers, chunk_size) for part in [*parts, *(others or [])]]
    n = len(parts)
    one_shape([tuple(y.shape) for y, _ in made], OUTPUT)
    left, right = [rows for _, rows in made[:n]], [rows for _, rows in made[n:]]
    if others is None:
        kernel = _symmetric(left, kind)
    else:
        kernel = _grid([[_pair(a, b, kind) for b in right] for a in left], kind)
    theta = FMatDense(kernel, kind, x2 is None)
    if check_finite:
        finiteness.finite(theta, "gram", modes.NO_DERIVATIVE)
    return theta.centered() if centered else theta


def _parts(x: Any, name: str, check_finite: bool) -> list[Any]:
    found = [part for part in inputs(x, name, "gram", check_finite) if batch_size(part)]
    if not found:
        raise ValueError(f"{name}: got no example, expected at least one")
    return found


def features(
    f: Callable[..., Tensor], params: Any, x: Any, layers: LayerCollection, chunk_size: int | None
) -> tuple[Tensor, Features]:
    """y, and what makes the rows of J that belong to each layer, of one forward and one backward over the C columns.

    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.ones(2, 3)}
    >>> found = features(f, p, torch.ones(5, 2), LayerCollection.from_function(f, p, torch.ones(5, 2)), None)[1]["w"]
    >>> found.a.shape, found.g.shape
    (torch.Size([5, 2]), torch.Size([5, 3, 3]))
    """
    y, inputs, g, rows = sweep(f, params, x, layers, chunk_size)
    found: Features = {}
    for layer in layers:
        if layer.by_leaf:
            found[layer.name] = Rows(of_layer(layer, rows).transpose(0, 1))
        elif layer.family != UNUSED:
            found[layer.name] = _of_layer(layer, [inputs[k] for k in layer.uses], [g[k] for k in layer.uses])
    if not found:  # no leaf moves the output
        found[""] = Rows(trees.leaves(params)[0].new_zeros(batch_size(x), math.prod(y.shape[1:]), 0))
    return y, found


def _of_layer(layer: Layer, a: list[Tensor], g: list[Tensor]) -> Any:
    if layer.kronecker and not layer.grouped and not layer.inner:
        a_, g_ = joined(layer, a, g)
        if layer.diagonal:
            return Table(a_, g_.transpose(0, 1), layer.shape[1])
        if a_.shape[1] == 1:
            return Product(a_[:, 0], g_[:, :, 0].transpose(0, 1))
    return Rows(example_gradients(layer, a, g).transpose(0, 1).flatten(2))


def _symmetric(parts: list[Features], kind: Kernel) -> Tensor:
    """Blocks above the diagonal, and those below as their transposes."""
    above = {(i, j): _pair(a, b, kind) for i, a in enumerate(parts) for j, b in enumerate(parts) if i <= j}
    flip = lambda k: k.permute(2, 3, 0, 1) if kind == "full" else k.mT
    n = range(len(parts))
    return _grid([[above[i, j] if i <= j else flip(above[j, i]) for j in n] for i in n], kind)


def _grid(blocks: list[list[Tensor]], kind: Kernel) -> Tensor:
    down, across = (0, 2) if kind == "full" else (-2, -1)
    return torch.cat([torch.cat(row, across) for row in blocks], down)


def _pair(left: Features, right: Features, kind: Kernel) -> Tensor:
    """The kernel of two batches: the sum over layers."""
    parts = [one.pair(right[name], kind) for name, one in left.items()]
    return total(parts)


def _outer(rows: Tensor, columns: Tensor, kind: Kernel) -> Tensor:
    """Inner products of rows `[B, C, n]` and columns `[B2, C, n]`."""
    (b, c, n), b2 = rows.shape, len(columns)
    if kind == "full":
        return (rows.reshape(b * c, n) @ columns.reshape(b2 * c, n).mT).reshape(b, c, b2, c)
    if kind == "outputs":
        return rows.transpose(0, 1) @ columns.permute(1, 2, 0)
    return rows.reshape(b, c * n) @ columns.reshape(b2, c * n).mT
