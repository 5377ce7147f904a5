"""Modules of slim whose matrix is a product of factors: of reflections, of 2 x 2 blocks, of choices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from linmaps.families.entries.identity import Identity
from linmaps.families.patterns.butterfly import Butterfly
from linmaps.families.patterns.permutation import Permutation
from linmaps.families.singular_values.orthogonal import Orthogonal
from linmaps.families.singular_values.spectral import Spectral
from linmaps.families.singular_values.symmetric_spectral import SymmetricSpectral
from linmaps.interop.seen import Found, Seen, with_bias
from linmaps.numerics.numeric import eye_like

# --- products of reflections -----------------------------------------------------------------------------------------


def _reflectors(seen: Seen, name: str, n: int, k: int) -> Tensor:
    """Free parameters [k, n] of reflections of which the i-th leaves the first i coordinates alone."""
    U = seen.tensor(name, n, n)
    return (U.triu() - eye_like(U, n))[:k]


def orthogonal(seen: Seen) -> Found:
    n = seen.n  # the last reflection turns the sign of the last coordinate alone, which det says
    return Orthogonal(n, det=(-1) ** n), {"V": _reflectors(seen, "U", n, n - 1)}


def _spectral_options(seen: Seen) -> dict[str, Any]:
    mean, radius = seen.number("sigma_mean"), seen.number("r")
    return {"sigma_min": round(mean - radius, 12), "sigma_max": round(mean + radius, 12)}


def spectral(seen: Seen) -> Found:
    n, m = seen.sizes
    k, l = (seen.get(f"n_{name}_reflectors", int) for name in "UV")
    if min(k, l) < 1:
        raise ValueError(f"{seen.title} without reflections on one side; use linmaps.Linear with its matrix")
    options = _spectral_options(seen)
    if n == m:
        options["det"] = (-1) ** (k + l)
        k, l = min(k, n - 1), min(l, n - 1)
    U, V = _reflectors(seen, "U", n, k), _reflectors(seen, "V", m, l)
    if n != m and 1 in (n, m):
        # the one reflection of the other side, of a single coordinate, is the sign -1: one more of e_0 here does the same
        U, V = (_negated(U), V[:0]) if m == 1 else (U[:0], _negated(V))
    spec = Spectral(n, m, n_U_reflectors=len(U) or None, n_V_reflectors=len(V) or None, **options)
    return spec, {k: t for k, t in (("U", U), ("V", V), ("p", seen.tensor("p", min(n, m)))) if k in spec.shapes()}


def _negated(U: Tensor) -> Tensor:
    """Parameters of two reflections whose product has as first column the negative of that of the first alone."""
    at = torch.arange(U.shape[1], device=U.device)
    return torch.cat([U[:1], ((at == 0).to(U) - (at == 1).to(U))[None]])


def symmetric_spectral(seen: Seen) -> Found:
    n = seen.n
    k = min(seen.get("n_U_reflectors", int), n - 1)  # the n-th changes the sign of a column, which W does not see
    spec = SymmetricSpectral(n, n_reflectors=k or None, **_spectral_options(seen))
    params = {"V": _reflectors(seen, "V", n, k), "p": seen.tensor("p", n)}
    return spec, {k: params[k] for k in spec.shapes()}


# --- products of sparse factors --------------------------------------------------------------------------------------


def butterfly(seen: Seen) -> Found:
    flags = {key: seen.get(key, bool) for key in ("complex", "tied_weight", "increasing_stride")}
    spec = Butterfly(seen.get("in_size", int), seen.get("out_size", int), blocks="free", **flags)
    shape, pair = spec.shapes()["twiddle"], (2,) if spec.complex else ()
    if spec.in_features == 1:  # without levels there, W is ones; here, one level copies the one input
        return spec, {"twiddle": _complex(seen.get("twiddle", Tensor).new_ones(()), spec).expand(shape)}
    return spec, {"twiddle": _complex(seen.tensor("twiddle", *shape, *pair), spec)}


def wrapped_butterfly(seen: Seen) -> Found:
    inner = seen.part("linmap")
    return with_bias(inner, *butterfly(inner))


def _complex(t: Tensor, spec: Butterfly) -> Tensor:
    """Pairs in a last axis as complex numbers, for a complex spec."""
    if not spec.complex:
        return t
    return torch.view_as_complex(t.contiguous()) if t.ndim else t.to(t.dtype.to_complex())


def permutation(seen: Seen) -> Found:
    n = seen.get("size", int)
    levels = n.bit_length() - 2
    shared = (3,) if seen.get("share_logit", bool) else (levels, 3)
    logits = seen.tensor("logit", *shared).expand(levels, 3)
    if levels == 0:
        return Identity(n), {}
    if seen.get("increasing_stride", bool) and levels > 1:
        raise ValueError(
            f"{seen.title} with increasing_stride=True, expected False, the order of linmaps.Permutation; for its matrix "
            "use linmaps.DoublyStochastic(n).from_matrix"
        )
    return Permutation(n), {"logits": logits}
