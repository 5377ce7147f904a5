"""Rows of the transform table for linmaps.factorized and what linmaps exports of it."""

from __future__ import annotations

import torch

import linmaps.factorized as F
from tests.laws import Case, Exempt

D = torch.float64
SIZES = (2, 3, 4)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=gen(seed), dtype=D)


def weight_of(weight, **options):
    """The tensorized weight, whose leaves are free up to signs."""
    spec, params = F.factorize(weight, **options)
    return spec.effective_W(params)


T = randn(*SIZES)
FACTORS = [randn(s, 2, seed=k) for k, s in enumerate(SIZES)]
CORES = [randn(a, s, b, seed=k) for k, (a, s, b) in enumerate(zip((1, 2, 3), SIZES, (2, 3, 1)))]
CORE = randn(2, 2, 2, seed=5)
JOINT = F.Factorized((2, 3), (3, 2), factorization="tucker", rank=0.6, n_layers=3)
JOINT_PARAMS = JOINT.init(gen(), dtype=D)
OTHER_PARAMS = JOINT.init(gen(1), dtype=D)
CUTS = (slice(1), slice(None, None, -2), slice(0, 3, 2), slice(1, None))
MASK = {bond: 1 + 0.3 * randn(size, seed=size) for bond, size in F.bonds(JOINT).items()}
X = randn(4, 6)
CONV = F.FactorizedConv(2, 3, (3,), factorization="tucker", rank=2)
CONV_PARAMS = CONV.init(gen(), dtype=D)
CONVS = F.FactorizedConv(2, 3, (3,), factorization="tt", rank=2, n_layers=3)
CONVS_PARAMS = CONVS.init(gen(), dtype=D)
WHERE = torch.tensor([2, 0])


def convolved(weight):
    spec, params = F.factorize_conv(weight, factorization="tt", rank=2)
    return spec.kernel(params)


LIPSCHITZ = F.LipschitzConv(2, 3, (3,), bound=0.7, bias=True)
LIPSCHITZ_PARAMS = {"kernel": 2 * randn(3, 2, 3, seed=4), "bias": randn(3, seed=5)}
LOOSE = F.LipschitzConv(2, 3, (2, 3), bound=9.0)

CASES: dict[str, Case | Exempt] = {
    "linmaps.LipschitzConv": Case(
        lambda p, x: LIPSCHITZ.apply_conv(p, x, padding="same"), (LIPSCHITZ_PARAMS, randn(2, 2, 5))
    ),
    "linmaps.LipschitzConv/effective_kernel": Case(LIPSCHITZ.effective_kernel, (LIPSCHITZ_PARAMS,)),
    "linmaps.LipschitzConv/within": Case(LOOSE.effective_kernel, ({"kernel": randn(3, 2, 2, 3)},)),
    "linmaps.LipschitzConv/from_kernel": Case(LIPSCHITZ.from_kernel, (randn(3, 2, 3),)),
    "linmaps.LipschitzConv/violation": Case(LIPSCHITZ.violation, (randn(3, 2, 3),)),
    "linmaps.factorized.LipschitzConv": Exempt("in the rows of linmaps.LipschitzConv"),
    "linmaps.tensorized_shape": Exempt("numbers to numbers"),
    "linmaps.factorize": Case(
        lambda w: weight_of(w, factorization="tt", rank=0.7, n_modes=2), (randn(4, 6),), tol=1e-6
    ),
    "linmaps.FactorizedConv": Case(lambda p, x: CONV.apply_conv(p, x, padding="same"), (CONV_PARAMS, randn(2, 2, 5))),
    "linmaps.FactorizedConv/kernel": Case(CONV.kernel, (CONV_PARAMS,)),
    "linmaps.FactorizedConv/layers": Case(lambda p, x: CONVS.apply_conv(p, x, WHERE), (CONVS_PARAMS, randn(2, 2, 5))),
    "linmaps.FactorizedConv/kernels": Case(CONVS.kernel, (CONVS_PARAMS,)),
    "linmaps.FactorizedConv/select": Case(lambda p: CONVS.select(p, 2)[1], (CONVS_PARAMS,)),
    "linmaps.FactorizedConv/slice": Case(
        lambda p: CONVS.slice(p, slice(1), slice(None, None, -2), slice(1, 3))[1], (CONVS_PARAMS,)
    ),
    "linmaps.FactorizedConv/transduct": Case(lambda p: CONVS.transduct(p, 3)[1], (CONVS_PARAMS,)),
    "linmaps.factorize_conv": Case(convolved, (randn(3, 2, 3),), tol=1e-6),
    "linmaps.factorize_conv/joint": Case(
        lambda w, v: (lambda spec, p: spec.kernel(p))(*F.factorize_conv([w, v], factorization="tt", rank=2)),
        (randn(3, 2, 3), randn(3, 2, 3, seed=1)),
        tol=1e-6,
    ),
    "linmaps.Factorized/layers": Case(JOINT.effective_W, (JOINT_PARAMS,)),
    "linmaps.Factorized/apply a layer": Case(lambda p, x: JOINT.apply(p, x, 1), (JOINT_PARAMS, X)),
    "linmaps.Factorized/apply some layers": Case(lambda p, x: JOINT.apply(p, x, WHERE), (JOINT_PARAMS, X)),
    "linmaps.Factorized/select": Case(lambda p: JOINT.select(p, 2)[1], (JOINT_PARAMS,)),
    "linmaps.Factorized/select some": Case(lambda p: JOINT.select(p, [0, 2])[1], (JOINT_PARAMS,)),
    "linmaps.Factorized/rows": Case(lambda p: JOINT.rows(p, torch.tensor([5, 0, 3]), 1), (JOINT_PARAMS,)),
    "linmaps.Factorized/slice": Case(lambda p: JOINT.slice(p, *CUTS)[1], (JOINT_PARAMS,)),
    "linmaps.Factorized/transduct": Case(lambda p: JOINT.transduct(p, 3, side="out")[1], (JOINT_PARAMS,)),
    "linmaps.Factorized/norm": Case(JOINT.norm, (JOINT_PARAMS,)),
    "linmaps.Factorized/apply_tensor": Case(
        lambda p, x: JOINT.apply_tensor(p, x, 0), (JOINT_PARAMS, X.reshape(4, 2, 3))
    ),
    "linmaps.tensor_dropout": Case(lambda p, m: F.tensor_dropout(JOINT, p, m), (JOINT_PARAMS, MASK)),
    "linmaps.tensor_lasso": Case(lambda p, w: F.tensor_lasso(JOINT, p, w, penalty=0.1), (JOINT_PARAMS, MASK)),
    "linmaps.factorized.tensor_dropout": Exempt("in the row of linmaps.tensor_dropout"),
    "linmaps.factorized.tensor_lasso": Exempt("in the row of linmaps.tensor_lasso"),
    "linmaps.factorized.bonds": Exempt("names and numbers of a spec"),
    "linmaps.factorized.dropout_mask": Exempt("draws numbers for a spec"),
    "linmaps.factorized.lasso_weights": Exempt("ones for a spec"),
    "linmaps.factorized.lasso_prox": Case(lambda w: F.lasso_prox(w, 0.1), (MASK,)),
    "linmaps.factorized.prune_ranks": Case(lambda p: F.prune_ranks(JOINT, p, {"r1": [0]})[1], (JOINT_PARAMS,)),
    "linmaps.factorized.inner": Case(lambda p, q: F.inner(JOINT, p, JOINT, q), (JOINT_PARAMS, OTHER_PARAMS)),
    "linmaps.factorized.distance": Case(lambda p, q: F.distance(JOINT, p, JOINT, q), (JOINT_PARAMS, OTHER_PARAMS)),
    "linmaps.factorized.cp_start": Case(lambda T: [(U @ U.mT) for U in F.cp_start(T, 2)], (T,), tol=1e-6),
    "linmaps.factorized.Factorization": Exempt("a pair with its error: see factorize"),
    "linmaps.factorized.Factorized": Exempt("in the rows of linmaps.Factorized"),
    "linmaps.factorized.FactorizedConv": Exempt("in the rows of linmaps.FactorizedConv"),
    "linmaps.factorized.factorize": Exempt("in the rows of linmaps.factorize"),
    "linmaps.factorized.factorize_conv": Exempt("in the rows of linmaps.factorize_conv"),
    "linmaps.factorized.tensorized_shape": Exempt("numbers to numbers"),
    "linmaps.factorized.cp_rank": Exempt("numbers to numbers"),
    "linmaps.factorized.low_rank": Exempt("numbers to numbers"),
    "linmaps.factorized.tt_rank": Exempt("numbers to numbers"),
    "linmaps.factorized.tucker_rank": Exempt("numbers to numbers"),
    "linmaps.factorized.sketches": Exempt("draws numbers for a spec"),
    "linmaps.factorized.relative_error": Case(
        lambda p, w: F.relative_error(JOINT, p, w), (JOINT_PARAMS, randn(3, 6, 6, seed=3))
    ),
    "linmaps.factorized.reconstruct_cp": Case(F.reconstruct_cp, (randn(2), FACTORS)),
    "linmaps.factorized.reconstruct_tt": Case(F.reconstruct_tt, (CORES,)),
    "linmaps.factorized.reconstruct_tucker": Case(F.reconstruct_tucker, (CORE, FACTORS)),
    "linmaps.factorized.cp_als": Case(
        lambda T, start: F.reconstruct_cp(*F.cp_als(T, start, n_sweeps=3)), (T, FACTORS), tol=1e-6
    ),
    "linmaps.factorized.tt_svd": Case(lambda T: F.reconstruct_tt(F.tt_svd(T, (1, 2, 3, 1))), (T,), tol=1e-6),
    "linmaps.factorized.tucker_hosvd": Case(
        lambda T: F.reconstruct_tucker(*F.tucker_hosvd(T, (2, 2, 3))), (T,), tol=1e-6
    ),
}

for kind, options in {
    "dense": {},
    "lowrank": {},
    "cp": {"n_sweeps": 3},
    "tucker": {},
    "tt": {},
    "blocktt": {},
}.items():
    CASES[f"linmaps.factorize/{kind}"] = Case(
        lambda w, kind=kind, options=options: weight_of(w, factorization=kind, rank=0.6, n_modes=2, **options),
        (randn(4, 6, seed=4),),
        tol=1e-6,
    )
    sketch = F.sketches(F.Factorized((2, 3), (2, 2), factorization=kind, rank=0.6), gen(), oversampling=1, dtype=D)
    if sketch:
        CASES[f"linmaps.factorize/{kind} sketched"] = Case(
            lambda w, sketch, kind=kind: weight_of(w, factorization=kind, rank=0.6, n_modes=2, sketch=sketch),
            (randn(4, 6, seed=4), sketch),
            tol=1e-6,
        )
