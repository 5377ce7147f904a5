"""From given weights to a spec and params: one matrix, or several as one joint tensor.  Weights are torch's, [out, in]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from linmaps import trees
from linmaps.checks import Params, size
from linmaps.checks.annotations import typed
from linmaps.checks.doors import door
from linmaps.checks.modules import check_untouched, has_forward_of, initialised, value_of
from linmaps.factorized.kinds.names import FactorizationName, Implementation
from linmaps.factorized.spec import Factorized
from linmaps.factorized.tensors.ranks import Rank
from linmaps.numerics.dtypes import working_dtype
from linmaps.numerics.numeric import frobenius
from linmaps.numerics.shapes import tensorized_shape


@trees.static
class Factorization(tuple[Factorized, dict[str, Tensor]]):
    """The pair (spec, params), with the relative error reached, a scalar tensor, as `error`; prints what it is.

    >>> import torch, linmaps
    >>> result = linmaps.factorize(torch.eye(6), rank=1)
    >>> spec, params = result
    >>> round(result.error.item(), 3)
    0.913
    """

    error: Tensor

    def __new__(cls, spec: Factorized, params: dict[str, Tensor], error: Tensor) -> Factorization:
        self = super().__new__(cls, (spec, params))
        self.error = error
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.error)

    def __repr__(self) -> str:
        spec = self[0]
        plain = not torch._C._functorch.is_functorch_wrapped_tensor(self.error)
        error = f"{float(self.error):.4g}" if plain else "inside a transform"
        dense = spec.n_layers * spec.in_features * spec.out_features
        layers = f"{spec.n_layers} x " if spec.n_layers > 1 else ""
        return (
            f"{spec.factorization} of {layers}{spec.in_features} x {spec.out_features} as {spec.in_shape} x "
            f"{spec.out_shape}, ranks {spec.ranks}: {round(spec.ratio * dense):,} of {dense:,} parameters "
            f"({100 * spec.ratio:.1f} %), relative error {error}"
        )


@door
@typed
def factorize(
    weight: Any,
    bias: Any = None,
    *,
    factorization: FactorizationName = "tt",
    rank: Rank = "same",
    n_modes: int = 3,
    in_shape: Sequence[int] | None = None,
    out_shape: Sequence[int] | None = None,
    implementation: Implementation = "auto",
    checkpointing: bool = False,
    compat: bool = False,
    n_sweeps: int | None = None,
    sketch: Sequence[Tensor] | None = None,
    start: Sequence[Tensor] | None = None,
    n_power: int = 1,
    verbose: bool = False,
) -> Factorization:
    """The spec and params of a tensorized matrix near a weight [out, in], `spec.apply(params, x) ~ x @ weight.T + bias`.

    weight: a tensor [out, in], a torch.nn.Linear or torch.nn.Embedding (whose rows are then `spec.rows(params, idx)`), or a
    list of them, which become the layers of one joint tensor.  bias: a tensor [out] or None; for a list, a list of both
    (a missing one becomes zeros where another has one).  in_shape, out_shape: modes; `tensorized_shape(n, n_modes)` unless
    given.  Other options are those of `Factorized` and of its `from_matrix`.

    The result is a pair that also has `error`, the relative error `|W - weight.T| / |weight|` of the params as returned (in
    their dtype), and prints it; verbose prints at once.  Nothing is shared with the source.  It is differentiable in a
    weight given as a tensor, and `torch.func.vmap(lambda w: factorize(w, ...)[1])` maps it; modules are detached.

    Which kind: on weights of trained layers lowrank and tt reach smaller errors than the others at equal budgets.

    ValueError or TypeError for other shapes or dtypes, an empty list, or options that `Factorized` refuses.

    >>> import torch, linmaps
    >>> weight = torch.arange(64.0).sin().reshape(4, 16)  # of rank two
    >>> result = linmaps.factorize(weight, torch.zeros(4), factorization="lowrank", rank=0.7)
    >>> result
    lowrank of 16 x 4 as (2, 2, 4) x (1, 2, 2), ranks 2: 40 of 64 parameters (62.5 %), relative error ...e-0...
    >>> spec, params = result
    >>> spec.apply(params, torch.ones(3, 16)).shape
    torch.Size([3, 4])
    """
    weights = list(weight) if isinstance(weight, (list, tuple)) else [weight]
    given = list(bias) if isinstance(bias, (list, tuple)) else [bias] * len(weights)
    if not weights or len(given) != len(weights) or (len(weights) > 1 and isinstance(bias, Tensor)):
        raise ValueError(
            f"factorize: got {len(weights)} weights and {'one bias' if isinstance(bias, Tensor) else len(given)}, expected "
            "at least one weight and a list of as many biases, each a tensor or None"
        )
    pairs = [_pair(w, b, k) for k, (w, b) in enumerate(zip(weights, given))]
    W = _alike("weight", [w for w, _ in pairs])
    n_out, n_in = W.shape[1:]
    biases = None
    if any(b is not None for _, b in pairs):
        biases = _alike("bias", [W.new_zeros(n_out) if b is None else b.to(W.dtype) for _, b in pairs])
    shapes = []
    for key, n, shape in (("in_shape", n_in, in_shape), ("out_shape", n_out, out_shape)):
        shapes.append(tensorized_shape(n, n_modes) if shape is None else tuple(shape))
        if torch.Size(shapes[-1]).numel() != n:
            raise ValueError(f"factorize: {key} is {shapes[-1]}, expected sizes whose product is {n}, as of the weight")
    spec = Factorized(
        *shapes,
        factorization=factorization,
        rank=rank,
        implementation=implementation,
        n_layers=len(weights),
        checkpointing=checkpointing,
        compat=compat,
        bias=biases is not None,
    )
    if spec.n_layers == 1:
        W, biases = W[0], None if biases is None else biases[0]
    params, _ = spec.from_matrix(W.mT, bias=biases, n_sweeps=n_sweeps, sketch=sketch, start=start, n_power=n_power)
    params = {k: t.clone(memory_format=torch.contiguous_format) for k, t in params.items()}
    result = Factorization(spec, params, relative_error(spec, params, W))
    if verbose:
        tqdm.write(repr(result))
    return result


@door
@typed
def relative_error(spec: Factorized, params: Params, weight: Tensor) -> Tensor:
    """`|W - weight.T| / |weight|`, Frobenius norms, of a torch weight [out, in], or [L, out, in] for several layers.

    Half precision is compared in float32.  Of a weight 0 it is 0 if W is 0 too, else infinite.

    >>> import torch, linmaps
    >>> spec = linmaps.Factorized((2, 2), (3,), factorization="lowrank", rank=1)
    >>> params = spec.init(torch.Generator())
    >>> linmaps.factorized.relative_error(spec, params, spec.effective_W(params).T)
    tensor(0.)
    """
    W = spec.effective_W(trees.map(lambda t: t.to(working_dtype(t.dtype)), dict(params)))
    if tuple(weight.mT.shape) != tuple(W.shape):
        raise ValueError(f"relative_error: weight has shape {tuple(weight.shape)}, expected {tuple(W.mT.shape)}")
    target = weight.to(working_dtype(weight.dtype)).mT
    gap, size = frobenius(W - target), frobenius(target)
    return torch.where(gap > 0, gap / torch.where(size > 0, size, 1.0) * torch.where(size > 0, 1.0, torch.inf), gap)


@typed
def sketches(
    spec: Factorized, generator: torch.Generator, *, oversampling: int = 8, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Gaussian matrices for a randomized decomposition by `spec.from_matrix(W, sketch=...)` or `factorize(..., sketch=...)`.

    oversampling: columns beyond the ranks; a step that would have all columns gets a sketch without any, and is taken
    whole.  Empty for dense, and for cp where it has more terms than its sizes let a core be smaller.

    >>> import torch, linmaps
    >>> spec = linmaps.Factorized((8, 8), (8, 8), factorization="lowrank", rank=4)
    >>> [tuple(s.shape) for s in linmaps.factorized.sketches(spec, torch.Generator())]
    [(64, 12)]
    """
    size(oversampling, "oversampling", 0)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    sizes = (spec.n_layers, spec.out_shape, spec.in_shape)
    return spec._kind.sketches(generator, spec.ranks, *sizes, oversampling=oversampling, dtype=dtype)


def _pair(weight: Any, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias of a tensor or a module."""
    if isinstance(weight, torch.nn.Module):
        weight, own = _of_module(weight, k)
        bias = own if bias is None else bias
    weight, bias = (t.detach() if isinstance(t, torch.nn.Parameter) else t for t in (weight, bias))
    if not isinstance(weight, Tensor) or not (weight.is_floating_point() or weight.is_complex()):
        got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(
            f"factorize: weight {k} is {got}, expected a floating or complex tensor [out, in] or a torch.nn.Linear"
        )
    if weight.ndim != 2 or 0 in weight.shape:
        cure = "; use torch.func.vmap(lambda w: linmaps.factorize(w, ...)[1])(weight)" if weight.ndim == 3 else ""
        raise ValueError(f"factorize: weight {k} has shape {tuple(weight.shape)}, expected [out, in]{cure}")
    if bias is not None and (not isinstance(bias, Tensor) or tuple(bias.shape) != (weight.shape[0],)):
        found = tuple(bias.shape) if isinstance(bias, Tensor) else type(bias).__name__
        raise ValueError(f"factorize: bias {k} is {found}, expected a tensor of shape ({weight.shape[0]},) or None")
    return weight, bias


def _of_module(module: torch.nn.Module, k: int) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias, detached; of an embedding the transposed table, so that rows become inputs."""
    bases = [base for base in (torch.nn.Linear, torch.nn.Embedding) if has_forward_of(module, base)]
    if not bases or not initialised(module):
        raise TypeError(
            f"factorize: weight {k} is a {type(module).__name__}, expected a tensor [out, in], or an initialised "
            f"torch.nn.Linear or torch.nn.Embedding without a forward of its own{_instead(module)}"
        )
    check_untouched(module, f"factorize: weight {k}", parametrized=True)
    if getattr(module, "max_norm", None) is not None:
        raise ValueError(
            f"factorize: weight {k} is an Embedding with max_norm={module.max_norm}, which changes rows as they are looked up, "
            "expected None; scale the rows of its weight before"
        )
    weight = value_of(module, "weight")
    if bases == [torch.nn.Embedding]:
        return weight.mT, None
    return weight, None if module.bias is None else value_of(module, "bias")


def _instead(module: torch.nn.Module) -> str:
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        return "; of a convolution linmaps.factorize_conv(conv.weight, conv.bias)"
    if next(module.children(), None) is None:
        return ""
    return (
        "; of a model factorize layer by layer, spec, params = linmaps.factorize(model.layer), and put the result in its place: "
        "model.layer = linmaps.Module(spec, params=params)"
    )


def _alike(what: str, tensors: list[Tensor]) -> Tensor:
    for k, t in enumerate(tensors):
        first = tensors[0]
        if (t.shape, t.dtype, t.device) != (first.shape, first.dtype, first.device):
            raise ValueError(
                f"factorize: {what} {k} is {tuple(t.shape)} of {t.dtype} on {t.device}, expected {tuple(first.shape)} of "
                f"{first.dtype} on {first.device}, as the first; convert it"
            )
    return torch.stack(tensors)
