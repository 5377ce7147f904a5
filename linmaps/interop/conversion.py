"""A module taken over by value: its spec and its params; nothing is shared with the module."""

from __future__ import annotations

from typing import Any

import torch

from linmaps import trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import HALF
from linmaps.interop import slim, tltorch


@typed
def from_module(module: torch.nn.Module) -> tuple[Any, dict[str, Any]]:
    """The spec and params that do what a module does, `spec.apply(params, x) == module(x)`, as detached copies.

    Besides `torch.nn.Linear`, it takes the structured maps of NeuroMANCER's slim and the tensorized layers of tensorly-torch,
    recognised by the name of their class, its attributes and their shapes, without an import.  A derived class is taken
    for its base, unless it has a `forward` or `effective_W` of its own: that is refused, as are forward hooks (pruning, the
    older weight norm) and parametrizations whose promise no spec here keeps.  The module is read,
    never moved.  Leaves keep dtype and device.  W is the matrix without the bias; a bias that a module has but does not use
    is dropped.  A spec of parts with a bias is an `Affine` of it.

    | module | spec | what becomes of it |
    |---|---|---|
    | torch.nn.Linear, Linear | Linear | W [in, out] is the transposed weight |
    | a torch.nn.Linear with torch's weight_norm | WeightNorm | of torch.nn.utils.parametrizations; Linear for dim=None |
    | a torch.nn.Linear made orthogonal by torch | Orthogonal | of torch.nn.utils.parametrizations |
    | IdentityInitLinear | IdentityInit | as Linear |
    | IdentityLinear | Identity | ValueError if it was trained |
    | NonNegativeLinear, SplitLinear | NonNegative, Split | method="relu" |
    | LassoLinear, LassoLinearRELU | Lasso, LassoReLU | the former projected, as its forward does |
    | L0Linear | L0 | gate="weight"; without noise, as in eval mode |
    | RightStochasticLinear, LeftStochasticLinear | RightStochastic, LeftStochastic | logits relative to the first |
    | PerronFrobeniusLinear | PerronFrobenius | its scaling, one factor per entry, becomes row sums and logits |
    | StableSplitLinear | StableSplit | with the sums of both parts' bounds: stable only if these say so |
    | SymmetricLinear, SkewSymmetricLinear | Symmetric, SkewSymmetric | packed triangles |
    | DampedSkewSymmetricLinear | -1 times DampedSkewSymmetric | its matrix is skew + gamma I; bounds that hold gamma |
    | PSDLinear | PSD | eps=0 |
    | SymplecticLinear | BlockSkew | its matrix is [[0, A], [-A', 0]], which is not symplectic |
    | TrivialNullSpaceLinear | TrivialNullSpace | a rank beyond in is cut to in |
    | SVDLinear, SVDLinearLearnBounds | SVD, SVDLearnBounds | columns and rows that reach W |
    | BoundedNormLinear | BoundedNorm | soft=True, p="fro" for its p=2 |
    | PowerBoundLinear | PowerBound | method="soft", which bounds the spectral radius, not its square |
    | OrthogonalLinear | Orthogonal | det=(-1)^n |
    | SpectralLinear | Spectral | with a bias, as its forward has always |
    | SymmetricSpectralLinear | SymmetricSpectral | with a bias, as its forward has always |
    | ButterflyLinear, Butterfly | Butterfly | blocks="free"; pairs become complex numbers |
    | Permutation | Permutation | Identity for size 2 |
    | RNNCell | RNNCell | of its two maps, for `RNNCell.step` in place of `apply` |
    | FactorizedLinear | Factorized | compat=True with the ranks of its leaves |
    | SubFactorizedLinear | Factorized | of that one layer |
    | FactorizedEmbedding, SubFactorizedEmbedding | Factorized | bias=False, for `Factorized.rows` |

    TypeError for any other module, and for a `forward` of its own.  ValueError, with what to use instead, for hooks and
    parametrizations, for values or options that no spec holds, and for SchurDecompositionLinear,
    GershgorinLinear and SymmetricSVDLinear.

    >>> import torch, linmaps
    >>> module = torch.nn.Linear(3, 2)
    >>> spec, params = linmaps.from_module(module)
    >>> spec
    Linear(in_features=3, out_features=2, bias=True)
    >>> x = torch.ones(4, 3)
    >>> torch.allclose(spec.apply(params, x), module(x))
    True
    """
    tensorized = tltorch.convert(module)
    if tensorized is not None:
        return tensorized
    found = slim.convert(module)
    if found is None:
        raise TypeError(
            f"from_module: got {type(module).__name__}, expected an initialised torch.nn.Linear or a module of "
            "NeuroMANCER's slim or of tensorly-torch, without a forward of its own; for anything else choose a spec of "
            "linmaps.maps and copy its leaves, whose shapes spec.shapes() tells"
        )
    spec, params = found
    half = next((p.dtype for p in module.parameters() if p.dtype in HALF), None)
    return spec, trees.map(lambda t: t.to(half).clone(memory_format=torch.contiguous_format), params)
