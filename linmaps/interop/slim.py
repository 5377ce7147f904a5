"""Modules of NeuroMANCER's slim, known by class name, attributes and shapes, without an import.  n, m: inputs, outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import parametrizations

from linmaps.checks.modules import check_untouched, has_forward_of, initialised, parametrized, value_of
from linmaps.composed.cell import RNNCell
from linmaps.composed.compose import Scale
from linmaps.families.eigenvalues.power_bound import PowerBound
from linmaps.families.eigenvalues.stable_split import StableSplit
from linmaps.families.entries.gates import L0
from linmaps.families.entries.identity import Identity
from linmaps.families.entries.lasso import Lasso, LassoReLU
from linmaps.families.entries.linear import IdentityInit, Linear
from linmaps.families.entries.non_negative import NonNegative
from linmaps.families.entries.perron import PerronFrobenius
from linmaps.families.entries.split import Split
from linmaps.families.entries.stochastic import LeftStochastic, RightStochastic
from linmaps.families.entries.unit_norm import Axis
from linmaps.families.entries.weight_norm import WeightNorm
from linmaps.families.singular_values.bounded import BoundedNorm
from linmaps.families.singular_values.null_space import TrivialNullSpace
from linmaps.families.singular_values.orthogonal import Orthogonal
from linmaps.families.singular_values.svd import SVD, SVDLearnBounds
from linmaps.families.symmetries.block_skew import BlockSkew
from linmaps.families.symmetries.damped import DampedSkewSymmetric
from linmaps.families.symmetries.gram import PSD
from linmaps.families.symmetries.skew import SkewSymmetric
from linmaps.families.symmetries.symmetric import Symmetric
from linmaps.interop import slim_factors
from linmaps.interop.seen import Found, Seen, with_bias
from linmaps.numerics import lapack
from linmaps.numerics.linalg import negative_determinant
from linmaps.numerics.numeric import eye_like
from linmaps.numerics.packing import pack_upper
from linmaps.numerics.ranges import unbetween


def convert(module: Any) -> Found | None:
    """Spec and params, which may share memory with the module; None for a module that is not known.

    A class derived from a known one is taken for it, unless it says by itself what its matrix is.
    """
    if isinstance(module, torch.nn.Linear):
        return _torch_linear(module) if has_forward_of(module, torch.nn.Linear) else None
    lineage = type(module).__mro__
    for k, cls in enumerate(lineage):
        if any({"forward", "effective_W"} & vars(derived).keys() for derived in lineage[:k]):
            return None
        if cls.__name__ in REFUSED:
            raise ValueError(f"from_module: {cls.__name__} {REFUSED[cls.__name__]}")
        if cls.__name__ in CONVERTERS:
            for part in module.modules():
                check_untouched(part, "from_module")
            seen = Seen(module)
            return with_bias(seen, *CONVERTERS[cls.__name__](seen))
    return None


# --- dense, of one sign, sparse --------------------------------------------------------------------------------------


def _torch_linear(module: torch.nn.Linear) -> Found | None:
    if not initialised(module):
        return None
    found = [p for name in parametrized(module) for p in module.parametrizations[name]]  # type: ignore[index]
    kept = parametrized(module) == ["weight"] and len(found) == 1
    promise = type(found[0]).__name__ if kept and type(found[0]).__module__ == parametrizations.__name__ else ""
    check_untouched(module, "from_module", parametrized=promise in ("_Orthogonal", "_WeightNorm"))
    W = value_of(module, "weight").mT
    n, m = W.shape
    if promise == "_Orthogonal":
        spec = Orthogonal(n, m, det=None if n != m else -1 if negative_determinant(W) else 1)
        return with_bias(Seen(module), spec, spec.from_matrix(W)[0])
    axes: dict[int, Axis] = {0: "out", 1: "in"}
    if promise == "_WeightNorm" and found[0].dim in axes:  # else one norm for all of the weight
        g, V = (t.detach() for t in module.parametrizations["weight"].parameters())  # type: ignore[index, union-attr]
        return with_bias(Seen(module), WeightNorm(n, m, axis=axes[found[0].dim]), {"V": V.mT, "g": g.flatten()})
    return with_bias(Seen(module), Linear(n, m), {"W": W})


def _linear(seen: Seen) -> Found:
    n, m = seen.sizes
    return Linear(n, m), {"W": seen.part("linear").tensor("weight", m, n).mT}


def _identity_init(seen: Seen) -> Found:
    return IdentityInit(*seen.sizes), _linear(seen)[1]


def _identity(seen: Seen) -> Found:
    W = _linear(seen)[1]["W"]
    if not torch.equal(W, eye_like(W, *W.shape)):
        raise ValueError(f"{seen.title} that is no identity any more; use linmaps.Linear with its weight")
    return Identity(*seen.sizes), {}


def _non_negative(seen: Seen) -> Found:
    return NonNegative(*seen.sizes, method="relu"), {"W": seen.tensor("weight", *seen.sizes)}


def _split(seen: Seen) -> Found:
    return Split(*seen.sizes, method="relu"), {k: seen.part(k).tensor("weight", *seen.sizes) for k in ("B", "C")}


def _lasso_relu(seen: Seen) -> Found:
    params = {k: seen.tensor(f"{k}_param", *seen.sizes) for k in ("u", "v")}
    return LassoReLU(*seen.sizes, gamma=seen.number("gamma")), params


def _lasso(seen: Seen) -> Found:
    spec = Lasso(*seen.sizes, gamma=seen.number("gamma"))
    return spec, spec.project(_lasso_relu(seen)[1])


def _l0(seen: Seen) -> Found:
    options: dict[str, Any] = {key: seen.number(key) for key in ("droprate_init", "temperature", "lamda")}
    spec = L0(*seen.sizes, weight_decay=seen.number("prior_prec"), **options)
    return spec, {"W": seen.tensor("weight", *seen.sizes), "q": seen.tensor("qz_loga", *seen.sizes)}


# --- stochastic ------------------------------------------------------------------------------------------------------


def _right_stochastic(seen: Seen) -> Found:
    logits = seen.tensor("weight", *seen.sizes)
    return RightStochastic(*seen.sizes), {"logits": logits[:, 1:] - logits[:, :1]}


def _left_stochastic(seen: Seen) -> Found:
    logits = seen.tensor("weight", *seen.sizes)
    return LeftStochastic(*seen.sizes), {"logits": logits[1:] - logits[:1]}


def _perron_frobenius(seen: Seen) -> Found:
    spec = PerronFrobenius(*seen.sizes, **seen.bounds)
    low, high = spec.sigma_min, spec.sigma_max
    # an entry of scaling is a factor of its entry of W; one factor per row and the softmax reach the same matrices
    factors = low + (high - low) * (-seen.tensor("scaling", *seen.sizes)).sigmoid()
    logits = seen.tensor("weight", *seen.sizes)
    r = (factors * logits.softmax(1)).sum(1)
    logits = logits + factors.clamp(min=torch.finfo(factors.dtype).tiny).log()
    return spec, {"logits": logits[:, 1:] - logits[:, :1]} | ({"r": unbetween(low, high, r)} if low < high else {})


def _stable_split(seen: Seen) -> Found:
    (B, b), (C, c) = (_perron_frobenius(seen.part(key)) for key in ("B", "C"))
    low, high = B.sigma_min + C.sigma_min, B.sigma_max + C.sigma_max
    of_B, of_C = B._weight(b).sum(1), C._weight(c).sum(1)
    params = {"B": b["logits"], "C": c["logits"], "share": (of_B / of_C).log()}
    spec = StableSplit(*seen.sizes, sigma_min=low, sigma_max=high)
    return spec, params | ({"budget": unbetween(low, high, of_B + of_C)} if low < high else {})


# --- symmetric, skew, positive ---------------------------------------------------------------------------------------


def _symmetric(seen: Seen) -> Found:
    W = seen.tensor("weight", seen.n, seen.n)
    return Symmetric(seen.n), {"upper": pack_upper((W + W.mT) / 2)}


def _skew(seen: Seen) -> Found:
    return SkewSymmetric(seen.n), {"upper": pack_upper(seen.tensor("weight", seen.n, seen.n), diagonal=1)}


def _damped_skew(seen: Seen) -> Found:
    gamma, W = seen.tensor("gamma", 1, 1).reshape(()), seen.tensor("weight", seen.n, seen.n)
    size = abs(float(gamma))
    if size == 0:
        return _skew(seen)
    # nothing bounds gamma there, so the bounds are ours to choose: the default ones, widened to hold it
    spec = DampedSkewSymmetric(seen.n, sigma_min=min(0.1, size / 2), sigma_max=max(0.5, 2 * size))
    free = unbetween(spec.sigma_min, spec.sigma_max, gamma.abs())
    if gamma < 0:
        return spec, {"upper": pack_upper(W, diagonal=1), "gamma": free}
    return Scale(spec, -1.0), {"map": {"upper": -pack_upper(W, diagonal=1), "gamma": free}}


def _psd(seen: Seen) -> Found:
    return PSD(seen.n, rank=seen.n, eps=0.0), {"A": seen.tensor("weight", seen.n, seen.n)}


def _block_skew(seen: Seen) -> Found:
    return BlockSkew(seen.n), {"A": seen.tensor("weight", seen.n // 2, seen.n // 2)}


def _null_space(seen: Seen) -> Found:
    (n, m), rank = seen.sizes, seen.get("rank", int)
    G1, G2 = seen.tensor("Gl1", rank, n), seen.tensor("Gl2", m - n, n)
    spec = TrivialNullSpace(n, m, rank=min(rank, n), epsilon=seen.number("epsilon"))
    params = {"G1": lapack.qr(G1)[1] if rank > n else G1, "G2": G2}
    return spec, {key: params[key] for key in spec.shapes()}


# --- bounded norms and spectra ---------------------------------------------------------------------------------------


def _bounded_norm(seen: Seen) -> Found:
    if seen.number("p") != 2:
        raise ValueError(
            f"{seen.title} with p={seen.number('p')}, expected 2: a norm of the entries, which only for p=2 is that of a "
            "matrix; use linmaps.BoundedNorm with another norm, and its leaf W"
        )
    return BoundedNorm(*seen.sizes, **seen.bounds, p="fro", soft=True), _linear(seen)[1]


def _power_bound(seen: Seen) -> Found:
    return PowerBound(seen.n, max_p=seen.number("max_p"), method="soft"), {"W": seen.tensor("W", seen.n, seen.n)}


def _svd_leaves(seen: Seen) -> dict[str, Any]:
    (n, m), r = seen.sizes, min(seen.sizes)
    p = -seen.tensor("sigma", n, 1)[:r, 0]
    return {"U": seen.tensor("U", n, n)[:, :r], "V": seen.tensor("V", m, m)[:r], "p": p}


def _svd(seen: Seen) -> Found:
    spec, leaves = SVD(*seen.sizes, **seen.bounds), _svd_leaves(seen)
    return spec, {k: leaves[k] for k in spec.shapes()}


def _svd_learn_bounds(seen: Seen) -> Found:
    low, high = (seen.tensor(key) for key in ("sigma_min", "sigma_max"))
    if not 0 < low < high:
        raise ValueError(
            f"{seen.title} whose learned bounds are {float(low):.6g} and {float(high):.6g}, expected 0 < sigma_min < "
            "sigma_max; use linmaps.SVD or linmaps.Spectral with from_matrix"
        )
    bounds = {"high": high.log(), "ratio": torch.logit(low / high)}
    return SVDLearnBounds(*seen.sizes), _svd_leaves(seen) | bounds


# --- recurrent cells -------------------------------------------------------------------------------------------------


def _rnn_cell(seen: Seen) -> Found:
    parts = {}
    for key, name in (("hidden", "lin_hidden"), ("input", "lin_in")):
        module = seen.get(name, torch.nn.Module)
        found = convert(module)
        if found is None:
            raise TypeError(f"{seen.title} whose {key} map is a {type(module).__name__}, which is not one of slim")
        parts[key] = found
    activation = seen.get("nonlin", object)
    if isinstance(activation, torch.nn.Module) and list(activation.parameters()):
        raise ValueError(f"{seen.title} whose nonlin has parameters; use a function such as torch.tanh")
    spec = RNNCell(parts["hidden"][0], parts["input"][0], activation)
    return spec, {key: params for key, (_, params) in parts.items()}


CONVERTERS: dict[str, Callable[[Seen], Found]] = {
    "Linear": _linear,
    "IdentityInitLinear": _identity_init,
    "IdentityLinear": _identity,
    "NonNegativeLinear": _non_negative,
    "SplitLinear": _split,
    "LassoLinear": _lasso,
    "LassoLinearRELU": _lasso_relu,
    "L0Linear": _l0,
    "RightStochasticLinear": _right_stochastic,
    "LeftStochasticLinear": _left_stochastic,
    "PerronFrobeniusLinear": _perron_frobenius,
    "StableSplitLinear": _stable_split,
    "SymmetricLinear": _symmetric,
    "SkewSymmetricLinear": _skew,
    "DampedSkewSymmetricLinear": _damped_skew,
    "PSDLinear": _psd,
    "SymplecticLinear": _block_skew,
    "TrivialNullSpaceLinear": _null_space,
    "BoundedNormLinear": _bounded_norm,
    "PowerBoundLinear": _power_bound,
    "SVDLinear": _svd,
    "SVDLinearLearnBounds": _svd_learn_bounds,
    "OrthogonalLinear": slim_factors.orthogonal,
    "SpectralLinear": slim_factors.spectral,
    "SymmetricSpectralLinear": slim_factors.symmetric_spectral,
    "ButterflyLinear": slim_factors.wrapped_butterfly,
    "Butterfly": slim_factors.butterfly,
    "Permutation": slim_factors.permutation,
    "RNNCell": _rnn_cell,
}

# reason, and what to use
REFUSED = {
    "SchurDecompositionLinear": "has a matrix that does not depend on its gamma and P as trained; train a linmaps.Schur",
    "GershgorinLinear": "has no parameters to copy; train a linmaps.Gershgorin",
    "SymmetricSVDLinear": "has a matrix that is not symmetric; use linmaps.SymmetricSVD, or linmaps.Linear with its matrix",
}
