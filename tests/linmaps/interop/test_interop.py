"""Modules become specs and params by value: torch's, and stand-ins with the attributes of slim's (test_peer: slim's own)."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import linmaps
from linmaps import trees

ANY = [(4, 4), (5, 3), (3, 6), (1, 1), (1, 3), (4, 1), (2, 2)]
SQUARE = [(4, 4), (1, 1), (5, 5), (2, 2)]
EVEN = [(4, 4), (2, 2), (6, 6)]
WIDE = [(3, 6), (4, 4), (1, 3)]


class Box(nn.Module):
    """Attributes, and a forward by the formula that the test gives."""

    def __init__(self, n, m, attributes, matrix, bias):
        super().__init__()
        self.in_features, self.out_features = n, m
        for key, value in attributes.items():
            setattr(self, key, nn.Parameter(value) if isinstance(value, torch.Tensor) else value)
        self.matrix = matrix
        self.bias = nn.Parameter(bias) if bias is not None else None

    def forward(self, x):
        return x @ self.matrix(self) + (0 if self.bias is None else self.bias)


def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def inner(**attributes):
    module = nn.Module()
    for key, value in attributes.items():
        setattr(module, key, nn.Parameter(value) if isinstance(value, torch.Tensor) else value)
    return module


def reflections(U, k):
    """H_0 ... H_{k-1}, of which H_i reflects the coordinates from i on along the end of row i."""
    n = len(U)
    Q = torch.eye(n, dtype=U.dtype)
    for i in range(k):
        u = torch.cat([U.new_zeros(i), U[i, i:]])
        Q = Q - 2 * torch.outer(Q @ u, u) / (u @ u)
    return Q


def spread(p, n, m, low, high):
    S = torch.zeros(n, m, dtype=p.dtype)
    return S.diagonal_scatter(low + (high - low) * p.flatten()[: min(n, m)].sigmoid())


def rows(low, high):
    return lambda s: (high - (high - low) * s.scaling.sigmoid()) * s.weight.softmax(1)


def perron(r, n, m, low, high):
    logits, scaling = 3 * r(n, m), 2 * r(n, m)
    sizes = {"in_features": n, "out_features": m}
    return {"weight": logits, "scaling": scaling, "sigma_min": low, "sigma_max": high} | sizes


def spectral(r, n, m, k=None, bounds=(0.1, 1.0)):
    low, high = bounds
    k, l = (min(n, m),) * 2 if k is None else k
    half = (high - low) / 2
    return {
        "U": r(n, n).triu(), "V": r(m, m).triu(), "p": r(min(n, m)),
        "r": half, "sigma_mean": low + half, "n_U_reflectors": k, "n_V_reflectors": l,
    }  # fmt: skip


def of_spectral(s):
    low, high = s.sigma_mean - s.r, s.sigma_mean + s.r
    left, right = reflections(s.U, s.n_U_reflectors), reflections(s.V, s.n_V_reflectors)
    return left @ spread(s.p, len(s.U), len(s.V), low, high) @ right.T


def of_svd(s):
    return s.U @ spread(-s.sigma, len(s.U), len(s.V), s.sigma_min, s.sigma_max) @ s.V


def of_l0(s):
    return (1.2 * s.qz_loga.sigmoid() - 0.1).clamp(0, 1) * s.weight


def of_linear(s):
    return s.linear.weight.T


def gates(r, n, m):
    options = {"prior_prec": 0.5, "droprate_init": 0.3, "temperature": 0.7, "lamda": 2.0}
    return {"weight": r(n, m), "qz_loga": 3 * r(n, m)} | {k: torch.tensor(v) for k, v in options.items()}


# class name -> sizes, attributes (of random numbers r and sizes), matrix (of the module), spec of the sizes
STAND_INS = {
    "Linear": (ANY, lambda r, n, m: {"linear": inner(weight=r(m, n))}, of_linear, linmaps.Linear),
    "IdentityInitLinear": (ANY, lambda r, n, m: {"linear": inner(weight=r(m, n))}, of_linear, linmaps.IdentityInit),
    "IdentityLinear": (
        ANY,
        lambda r, n, m: {"linear": inner(weight=torch.eye(m, n, dtype=torch.float64))},
        of_linear,
        linmaps.Identity,
    ),
    "NonNegativeLinear": (
        ANY,
        lambda r, n, m: {"weight": r(n, m)},
        lambda s: s.weight.clamp(min=0),
        lambda n, m: linmaps.NonNegative(n, m, method="relu"),
    ),
    "SplitLinear": (
        ANY,
        lambda r, n, m: {k: inner(weight=r(n, m), bias=r(1, m)) for k in "BC"},
        lambda s: s.B.weight.clamp(min=0) - s.C.weight.clamp(min=0),
        lambda n, m: linmaps.Split(n, m, method="relu"),
    ),
    "LassoLinear": (
        ANY,
        lambda r, n, m: {"u_param": r(n, m), "v_param": r(n, m), "gamma": 0.5},
        lambda s: s.u_param.clamp(min=0) - s.v_param.clamp(min=0),
        lambda n, m: linmaps.Lasso(n, m, gamma=0.5),
    ),
    "LassoLinearRELU": (
        ANY,
        lambda r, n, m: {"u_param": r(n, m), "v_param": r(n, m), "gamma": 2},
        lambda s: s.u_param.clamp(min=0) - s.v_param.clamp(min=0),
        lambda n, m: linmaps.LassoReLU(n, m, gamma=2),
    ),
    "L0Linear": (ANY, gates, of_l0, None),
    "RightStochasticLinear": (
        ANY, lambda r, n, m: {"weight": r(n, m)}, lambda s: s.weight.softmax(1), linmaps.RightStochastic,
    ),
    "LeftStochasticLinear": (
        ANY, lambda r, n, m: {"weight": r(n, m)}, lambda s: s.weight.softmax(0), linmaps.LeftStochastic,
    ),
    "PerronFrobeniusLinear": (
        ANY,
        lambda r, n, m: perron(r, n, m, 0.5, 1.5),
        rows(0.5, 1.5),
        lambda n, m: linmaps.PerronFrobenius(n, m, sigma_min=0.5, sigma_max=1.5),
    ),
    "StableSplitLinear": (
        ANY,
        lambda r, n, m: {"B": inner(**perron(r, n, m, 1.0, 1.0)), "C": inner(**perron(r, n, m, 0, 0.9))},
        lambda s: rows(1.0, 1.0)(s.B) - rows(0, 0.9)(s.C),
        lambda n, m: linmaps.StableSplit(n, m, sigma_min=1.0, sigma_max=1.9),
    ),
    "SymmetricLinear": (
        SQUARE, lambda r, n, m: {"weight": r(n, n)}, lambda s: (s.weight + s.weight.T) / 2, linmaps.Symmetric,
    ),
    "SkewSymmetricLinear": (
        SQUARE,
        lambda r, n, m: {"weight": r(n, n)},
        lambda s: s.weight.triu() - s.weight.triu().T,
        linmaps.SkewSymmetric,
    ),
    "DampedSkewSymmetricLinear": (
        SQUARE,
        lambda r, n, m: {"weight": r(n, n), "gamma": 2 * r(1, 1)},
        lambda s: s.weight.triu() - s.weight.triu().T + s.gamma * torch.eye(len(s.weight)),
        None,
    ),
    "PSDLinear": (
        SQUARE,
        lambda r, n, m: {"weight": r(n, n)},
        lambda s: s.weight.T @ s.weight,
        lambda n, m: linmaps.PSD(n, rank=n, eps=0.0),
    ),
    "SVDLinear": (
        ANY,
        lambda r, n, m: {"U": r(n, n), "V": r(m, m), "sigma": r(n, 1), "sigma_min": 0.2, "sigma_max": 3},
        of_svd,
        lambda n, m: linmaps.SVD(n, m, sigma_min=0.2, sigma_max=3),
    ),
    "SVDLinearLearnBounds": (
        ANY,
        lambda r, n, m: {
            "U": r(n, n), "V": r(m, m), "sigma": r(n, 1),
            "sigma_min": torch.tensor(0.2).double(), "sigma_max": torch.tensor(3.0).double(),
        },
        of_svd,
        None,
    ),
    "OrthogonalLinear": (
        SQUARE,
        lambda r, n, m: {"U": r(n, n)},
        lambda s: reflections(s.U, len(s.U)),
        lambda n, m: linmaps.Orthogonal(n, det=(-1) ** n),
    ),
    "SpectralLinear": (ANY, spectral, of_spectral, None),
    "SymplecticLinear": (
        EVEN,
        lambda r, n, m: {"weight": r(n // 2, n // 2)},
        lambda s: torch.cat(
            [
                torch.cat([torch.zeros_like(s.weight), s.weight], 1),
                torch.cat([-s.weight.T, torch.zeros_like(s.weight)], 1),
            ]
        ),
        linmaps.BlockSkew,
    ),
    "TrivialNullSpaceLinear": (
        WIDE,
        lambda r, n, m: {"Gl1": r(2, n), "Gl2": r(m - n, n), "rank": 2, "epsilon": 0.3},
        lambda s: torch.cat([s.Gl1.T @ s.Gl1 + 0.3 * torch.eye(s.Gl1.shape[1]), s.Gl2]).T,
        lambda n, m: linmaps.TrivialNullSpace(n, m, rank=min(2, n), epsilon=0.3),
    ),
    "BoundedNormLinear": (
        ANY,
        lambda r, n, m: {"linear": inner(weight=r(m, n)), "sigma_min": 0.2, "sigma_max": 2.0, "p": 2},
        of_linear,
        lambda n, m: linmaps.BoundedNorm(n, m, sigma_min=0.2, sigma_max=2.0, p="fro", soft=True),
    ),
    "PowerBoundLinear": (
        SQUARE,
        lambda r, n, m: {"W": r(n, n), "max_p": 0.5},
        lambda s: s.W,
        lambda n, m: linmaps.PowerBound(n, max_p=0.5, method="soft"),
    ),
}  # fmt: skip


def stand_in(name, n, m, *, bias=True, seed=0, attributes=None):
    cls = type(name, (Box,), {"__module__": __name__})
    r = draw(seed)
    made, matrix = STAND_INS[name][1:3]
    b = r(1, m) if bias and name != "TrivialNullSpaceLinear" else None
    return cls(n, m, made(r, n, m) if attributes is None else attributes, matrix, b)


def agrees(module, spec, params, *, dtype=torch.float64, tolerance=1e-6):
    assert trees.map(lambda t: tuple(t.shape), params) == spec.shapes()
    assert all(not t.requires_grad and t.is_contiguous() and t.dtype == dtype for t in trees.leaves(params))
    x = draw(9)(6, spec.in_features).to(dtype)
    want = module(x).detach()
    got = spec.apply(params, x)
    assert got.dtype == dtype
    assert torch.allclose(got, want, rtol=tolerance, atol=tolerance * max(1.0, float(want.abs().max())))
    return want


# --- torch's -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_module(bias, dtype):
    module = torch.nn.Linear(4, 3, bias=bias, dtype=dtype)
    x = torch.linspace(-1, 1, 20, dtype=dtype).reshape(5, 4)
    spec, params = linmaps.from_module(module)
    assert spec == linmaps.Linear(4, 3, bias=bias)
    assert {k: tuple(t.shape) for k, t in params.items()} == spec.shapes()
    want = module(x).detach()
    assert torch.allclose(spec.apply(params, x), want, rtol=0, atol=1e-6)
    assert not any(t.requires_grad for t in params.values())
    assert all(t.is_contiguous() for t in params.values())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert torch.allclose(spec.apply(params, x), want, rtol=0, atol=1e-6), "shares memory with the module"


def test_a_parametrized_linear_module():
    for dim, expected in (
        (0, linmaps.WeightNorm(3, 2, bias=True)),
        (1, linmaps.WeightNorm(3, 2, axis="in", bias=True)),
    ):
        module = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2), dim=dim)
        with torch.no_grad():  # a length of its own, of either sign
            module.parametrizations.weight.original0.mul_(-2)
        spec, params = linmaps.from_module(module)
        assert spec == expected
        assert torch.allclose(spec.effective_W(params), module.weight.T)
        x = torch.ones(4, 3)
        assert torch.allclose(spec.apply(params, x), module(x))
    module = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2), dim=None)
    spec, params = linmaps.from_module(module)
    assert spec == linmaps.Linear(3, 2, bias=True)
    assert torch.allclose(spec.effective_W(params), module.weight.T)


class Scaled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class ScaledRows(torch.nn.Embedding):
    def forward(self, idx):
        return 2 * super().forward(idx)


class Renamed(torch.nn.Linear):
    """Does what its base does."""


def instance_forward():
    module = torch.nn.Linear(4, 4)
    module.forward = lambda x: 2 * x
    return module


def stepped(module):
    """Whose weight, as a hook will make it at the next call, is another one than it has."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    return module


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nn.utils.weight_norm(torch.nn.Linear(4, 4))


def watched():
    module = torch.nn.Linear(4, 4)
    module.register_forward_hook(lambda module, args, result: 2 * result)
    return module


OWN_WAYS = {
    "forward": (lambda: Scaled(4, 4), TypeError, "a forward of its own"),
    "forward of the instance": (instance_forward, TypeError, "has a forward of its own, expected that of its class"),
    "weight norm by a hook": (lambda: stepped(old_weight_norm()), ValueError, r"has forward hooks \(WeightNorm\)"),
    "pruned": (
        lambda: stepped(prune.l1_unstructured(torch.nn.Linear(4, 4), "weight", amount=0.5)),
        ValueError,
        r"has forward hooks \(L1Unstructured\), expected none.* remove them before .*prune.remove",
    ),
    "hook": (watched, ValueError, "has forward hooks"),
}


@pytest.mark.parametrize("name", OWN_WAYS)
def test_what_a_module_does_by_itself_is_refused(name):
    make, error, text = OWN_WAYS[name]
    for take in (linmaps.from_module, linmaps.factorize):
        with pytest.raises(error, match=text):
            take(make())


def test_a_derived_class_with_the_forward_of_its_base_is_taken():
    module, x = Renamed(4, 3), torch.ones(2, 4)
    spec, params = linmaps.from_module(module)
    assert torch.allclose(spec.apply(params, x), module(x), atol=1e-6)
    spec, params = linmaps.factorize(module, factorization="dense", n_modes=1)
    assert torch.allclose(spec.apply(params, x), module(x), atol=1e-6)


def test_embeddings_that_change_their_rows_are_refused():
    with pytest.raises(TypeError, match="without a forward of its own"):
        linmaps.factorize(ScaledRows(6, 4))
    with pytest.raises(ValueError, match=r"max_norm=1.0, which changes rows"):
        linmaps.factorize(torch.nn.Embedding(6, 4, max_norm=1.0))


def test_an_orthogonal_parametrization_keeps_its_promise():
    for n, m in ((4, 4), (4, 3), (3, 4)):
        for seed in range(3):
            torch.manual_seed(seed)
            module, x = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(n, m)), torch.randn(2, n)
            spec, params = linmaps.from_module(module)
            assert type(spec) is linmaps.Orthogonal
            assert torch.allclose(spec.apply(params, x), module(x), atol=1e-5)


class Symmetrized(torch.nn.Module):
    def forward(self, X):
        return X.triu() + X.triu(1).mT


def test_other_parametrizations_are_refused_and_their_buffers_not_moved():
    spectral = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(4, 4))
    before = {k: t.clone() for k, t in spectral.state_dict().items()}
    mine = torch.nn.Linear(4, 4)
    torch.nn.utils.parametrize.register_parametrization(mine, "weight", Symmetrized())
    for module, made in ((spectral, "_SpectralNorm"), (mine, "Symmetrized")):
        with pytest.raises(
            ValueError, match=rf"is parametrized, \{{'weight': \['{made}'\]\}}.*remove_parametrizations"
        ):
            linmaps.from_module(module)
        spec, params = linmaps.factorize(module, factorization="dense", n_modes=1)  # of the values alone
        assert torch.allclose(spec.effective_W(params), copy.deepcopy(module).weight.mT)
    assert all(torch.equal(t, before[k]) for k, t in spectral.state_dict().items())


@pytest.mark.parametrize("module", [torch.nn.Conv1d(2, 2, 1), torch.nn.LazyLinear(3), torch.nn.Sequential(), 3])
def test_other_modules_are_refused(module):
    with pytest.raises(TypeError, match=r"expected an initialised torch.nn.Linear .* choose a spec of linmaps.maps"):
        linmaps.from_module(module)


# --- stand-ins ---------------------------------------------------------------------------------------------------------


CASES = [(name, n, m) for name, (sizes, *_) in STAND_INS.items() for n, m in sizes]


@pytest.mark.parametrize(("name", "n", "m"), CASES)
@pytest.mark.parametrize("bias", [False, True])
def test_stand_ins(name, n, m, bias):
    module = stand_in(name, n, m, bias=bias)
    spec, params = linmaps.from_module(module)
    want = agrees(module, spec, params)
    expected = STAND_INS[name][3]
    core = spec.map if isinstance(spec, linmaps.Affine) else spec
    if expected is not None and bias is False:
        assert core == expected(n, m)
    assert (module.bias is not None) == ("bias" in params)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7.0)
    x = draw(9)(6, n)
    assert torch.allclose(spec.apply(params, x), want, atol=1e-6 * max(1.0, float(want.abs().max()))), "shares memory"


@pytest.mark.parametrize("name", STAND_INS)
def test_dtypes_are_kept(name):
    module = stand_in(name, *STAND_INS[name][0][0]).float()
    spec, params = linmaps.from_module(module)
    if name == "DampedSkewSymmetricLinear":
        assert all(t.dtype == torch.float32 for t in trees.leaves(params))
        return
    agrees(module, spec, params, dtype=torch.float32, tolerance=1e-5)


@pytest.mark.parametrize("name", STAND_INS)
def test_half_precision(name):
    module = stand_in(name, *STAND_INS[name][0][0]).bfloat16()
    spec, params = linmaps.from_module(module)
    whole, wanted = linmaps.from_module(module.float())
    assert spec == whole
    trees.map(lambda a, b: torch.testing.assert_close(a, b.bfloat16()), params, wanted)


# --- what needs more than one case -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(4, 4), (5, 5), (5, 3), (3, 5), (2, 2), (3, 1), (1, 3), (1, 1)])
def test_reflectors_of_any_number(n, m):
    for k in range(1, n + 1):
        for l in range(1, m + 1):
            module = stand_in("SpectralLinear", n, m, attributes=spectral(draw(k + 10 * l), n, m, (k, l)))
            spec, params = linmaps.from_module(module)
            agrees(module, spec, params)
            assert spec.guaranteed
            assert isinstance(spec, linmaps.Spectral)


def test_special_reflections():
    """Those of e_0 and -e_0, where an equivalent with another number of reflections might break down."""
    for sign in (1.0, -1.0):
        attributes = spectral(draw(0), 3, 1)
        attributes["U"] = sign * torch.eye(3, dtype=torch.float64)
        module = stand_in("SpectralLinear", 3, 1, attributes=attributes)
        agrees(module, *linmaps.from_module(module))


def test_equal_bounds():
    for name, attributes in {
        "SpectralLinear": spectral(draw(0), 4, 4, bounds=(0.7, 0.7)),
        "SVDLinear": STAND_INS["SVDLinear"][1](draw(1), 4, 4) | {"sigma_min": 0.7, "sigma_max": 0.7},
        "PerronFrobeniusLinear": perron(draw(2), 4, 4, 0.7, 0.7),
    }.items():
        module = stand_in(name, 4, 4, attributes=attributes)
        if name == "PerronFrobeniusLinear":
            module.matrix = rows(0.7, 0.7)
        agrees(module, *linmaps.from_module(module))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_symmetric_spectral(n):
    for k in range(1, n + 1):
        attributes = spectral(draw(k), n, n, (k, k), bounds=(0.3, 2.0))
        attributes["U"] = attributes["V"]
        cls = type("SymmetricSpectralLinear", (Box,), {})
        module = cls(n, n, attributes, of_spectral, draw(3)(n))
        spec, params = linmaps.from_module(module)
        assert isinstance(spec, linmaps.SymmetricSpectral)
        assert (spec.sigma_min, spec.sigma_max) == (0.3, 2.0)
        agrees(module, spec, params)


@pytest.mark.parametrize("gamma", [-3.0, -1e-3, 0.0, 1e-3, 0.3, 3.0])
def test_any_damping(gamma):
    made = STAND_INS["DampedSkewSymmetricLinear"][1](draw(0), 4, 4)
    made["gamma"] = torch.tensor([[gamma]], dtype=torch.float64)
    module = stand_in("DampedSkewSymmetricLinear", 4, 4, attributes=made)
    spec, params = linmaps.from_module(module)
    agrees(module, spec, params)
    assert spec.guaranteed


def test_gates_keep_their_options():
    spec, params = linmaps.from_module(stand_in("L0Linear", 4, 3))
    assert (spec.gate, spec.lamda, spec.weight_decay) == ("weight", 2.0, 0.5)
    assert (spec.temperature, spec.droprate_init) == pytest.approx((0.7, 0.3))
    assert spec.reg_error(params) > 0


def test_learned_bounds():
    module = stand_in("SVDLinearLearnBounds", 4, 3)
    spec, params = linmaps.from_module(module)
    low, high = spec.bounds(params)
    assert torch.allclose(torch.stack([low, high]), torch.tensor([0.2, 3.0], dtype=low.dtype))


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.5, 0.5), (2.0, 1.0), (0.0, 1.0), (math.nan, 1.0)])
def test_learned_bounds_out_of_order(low, high):
    module = stand_in("SVDLinearLearnBounds", 4, 3)
    module.sigma_min, module.sigma_max = (nn.Parameter(torch.tensor(v)) for v in (low, high))
    with pytest.raises(ValueError, match=r"SVDLinearLearnBounds whose learned bounds are .*, expected 0 < sigma_min"):
        linmaps.from_module(module)


def test_saturated_scalings_and_logits():
    attributes = perron(draw(0), 3, 4, 0.0, 1.0)
    attributes["scaling"] = torch.tensor([-60.0, 60.0, 0.0], dtype=torch.float64)[:, None].expand(3, 4).clone()
    attributes["weight"] = 20 * attributes["weight"]
    module = stand_in("PerronFrobeniusLinear", 3, 4, attributes=attributes)
    module.matrix = rows(0.0, 1.0)
    agrees(module, *linmaps.from_module(module), tolerance=2e-6)


class Butterfly(nn.Module):
    """Each level written out as a matrix that mixes pairs of coordinates 2^level apart."""

    def __init__(self, n, m, tied, increasing, r, *, paired=False):
        super().__init__()
        self.in_size, self.out_size = n, m
        self.tied_weight, self.increasing_stride, self.complex = tied, increasing, paired
        self.levels = math.ceil(math.log2(n))
        size, stacks, pair = 2**self.levels, math.ceil(m / 2**self.levels), (2,) if paired else ()
        shape = (stacks, size - 1, 2, 2) if tied else (stacks, self.levels, size // 2, 2, 2)
        self.twiddle, self.bias = nn.Parameter(r(*shape, *pair)), nn.Parameter(r(1 if m % 2 else m, *pair))

    def forward(self, x):
        twiddle, bias = (torch.view_as_complex(t) if self.complex else t for t in (self.twiddle, self.bias))
        size, n, m = 2**self.levels, self.in_size, self.out_size
        stacks = []
        for t in twiddle:
            W = torch.eye(size, dtype=t.dtype)
            for level in range(self.levels) if self.increasing_stride else reversed(range(self.levels)):
                W = W @ self.factor(t, level, size)
            stacks.append(W)
        W, whole = torch.cat(stacks, 1)[:n], 2 ** math.ceil(math.log2(m))
        if size // whole >= 2:
            W = W.reshape(n, size // whole, whole).mean(1)
        return x.to(W.dtype) @ W[:, :m] + bias

    def factor(self, t, level, size):
        stride, T = 2**level, torch.zeros(size, size, dtype=t.dtype)
        for i in range(size // 2):
            group, j = divmod(i, stride)
            block = t[stride - 1 + j] if self.tied_weight else t[level, i]
            pair = torch.tensor([2 * group * stride + j, 2 * group * stride + stride + j])
            T[pair[:, None], pair] = block.T
        return T


class ButterflyLinear(nn.Module):
    def __init__(self, inner, r):
        super().__init__()
        self.in_features, self.out_features, self.linmap = inner.in_size, inner.out_size, inner
        self.bias = nn.Parameter(r(1, inner.out_size))  # never used

    def forward(self, x):
        return self.linmap(x)


BUTTERFLIES = [(4, 4), (8, 8), (6, 6), (5, 3), (3, 6), (3, 9), (8, 2), (2, 1), (1, 2), (1, 1)]


@pytest.mark.parametrize(("n", "m"), BUTTERFLIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("increasing", [False, True])
def test_butterflies(n, m, tied, increasing):
    r = draw(0)
    module = Butterfly(n, m, tied, increasing, r)
    agrees(module, *linmaps.from_module(module))
    agrees(ButterflyLinear(module, r), *linmaps.from_module(ButterflyLinear(module, r)))


@pytest.mark.parametrize("tied", [False, True])
def test_complex_butterflies(tied):
    module = Butterfly(6, 4, tied, True, draw(0), paired=True)
    spec, params = linmaps.from_module(module)
    assert all(t.is_complex() for t in params.values())
    x = torch.complex(draw(1)(3, 6), draw(2)(3, 6))
    assert torch.allclose(spec.apply(params, x), module(x))


class Permutation(nn.Module):
    """Convex combinations of 'evens first' and of reversed halves, block by block."""

    def __init__(self, size, shared, increasing, r):
        super().__init__()
        self.size, self.share_logit, self.increasing_stride = size, shared, increasing
        self.levels = int(math.log2(size)) - 1
        self.logit = nn.Parameter(r(3) if shared else r(self.levels, 3))

    def forward(self, x):
        p = self.logit.sigmoid().expand(self.levels, 3)
        for level in range(self.levels) if self.increasing_stride else reversed(range(self.levels)):
            half = 2 ** (level + 1)
            blocks = x.reshape(len(x), -1, 2 * half)
            sorted_ = torch.cat([blocks[..., ::2], blocks[..., 1::2]], -1)
            halves = ((1 - p[level, 0]) * blocks + p[level, 0] * sorted_).unflatten(-1, (2, half))
            q = p[level, 1:, None]
            x = ((1 - q) * halves + q * halves.flip(-1)).reshape(x.shape)
        return x


@pytest.mark.parametrize("size", [2, 4, 8, 16])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("increasing", [False, True])
def test_permutations(size, shared, increasing):
    module = Permutation(size, shared, increasing, draw(0))
    if increasing and size > 4:
        with pytest.raises(ValueError, match="Permutation with increasing_stride=True, expected False"):
            linmaps.from_module(module)
        return
    agrees(module, *linmaps.from_module(module))


class RNNCell(nn.Module):
    def __init__(self, lin_in, lin_hidden, nonlin):
        super().__init__()
        self.lin_in, self.lin_hidden, self.nonlin = lin_in, lin_hidden, nonlin


def test_recurrent_cells():
    given, hidden = nn.Linear(3, 4).double(), stand_in("SpectralLinear", 4, 4)
    cell, params = linmaps.from_module(RNNCell(given, hidden, torch.tanh))
    x, h = draw(1)(5, 3), draw(2)(5, 4)
    assert torch.allclose(cell.step(params, x, h), torch.tanh(given(x) + hidden(h)))
    with pytest.raises(TypeError, match="RNNCell whose hidden map is a Bilinear"):
        linmaps.from_module(RNNCell(given, nn.Bilinear(4, 4, 4), torch.tanh))
    with pytest.raises(ValueError, match="RNNCell whose nonlin has parameters"):
        linmaps.from_module(RNNCell(given, hidden, nn.PReLU()))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SchurDecompositionLinear", "GershgorinLinear", "SymmetricSVDLinear"])
def test_refused_with_a_cure(name):
    cure = {"SchurDecompositionLinear": "Schur", "GershgorinLinear": "Gershgorin", "SymmetricSVDLinear": "SymmetricSVD"}
    base = type("SVDLinear", (nn.Module,), {})
    with pytest.raises(ValueError, match=rf"from_module: {name} has .* linmaps.{cure[name]}"):
        linmaps.from_module(type(name, (base,), {})())


@pytest.mark.parametrize("bad", [{}, {"weight": 3.0}, {"weight": torch.zeros(3, 3)}, {"weight": torch.zeros(4, 4, 1)}])
def test_another_librarys_class_of_the_same_name(bad):
    module = type("NonNegativeLinear", (Box,), {})(4, 4, bad, None, None)
    with pytest.raises(TypeError, match="from_module: NonNegativeLinear whose weight"):
        linmaps.from_module(module)
    with pytest.raises(TypeError, match="from_module: NonNegativeLinear whose in_features is NoneType"):
        linmaps.from_module(type("NonNegativeLinear", (nn.Module,), {})())


def test_derived_classes():
    cls = type("NonNegativeLinear", (Box,), {})
    module = type("Mine", (cls,), {})(2, 2, {"weight": torch.ones(2, 2)}, None, None)
    assert isinstance(linmaps.from_module(module)[0], linmaps.NonNegative)
    module = type("Mine", (cls,), {"effective_W": lambda self: 2 * self.weight})(
        2, 2, {"weight": torch.ones(2, 2)}, None, None
    )
    with pytest.raises(TypeError, match="got Mine"):
        linmaps.from_module(module)


def test_values_and_options_that_no_spec_holds():
    module = stand_in("IdentityLinear", 3, 3, attributes={"linear": inner(weight=torch.ones(3, 3))})
    with pytest.raises(ValueError, match=r"IdentityLinear that is no identity any more; use linmaps.Linear"):
        linmaps.from_module(module)
    module = stand_in("SymmetricLinear", 3, 3)
    module.out_features = 4
    with pytest.raises(ValueError, match="of 3 x 4"):
        linmaps.from_module(module)
    attributes = STAND_INS["BoundedNormLinear"][1](draw(0), 3, 3) | {"p": 1}
    with pytest.raises(ValueError, match=r"BoundedNormLinear with p=1, expected 2: .* use linmaps.BoundedNorm"):
        linmaps.from_module(stand_in("BoundedNormLinear", 3, 3, attributes=attributes))
    attributes = spectral(draw(0), 3, 3, (0, 2))
    with pytest.raises(ValueError, match=r"without reflections on one side; use linmaps\.Linear"):
        linmaps.from_module(stand_in("SpectralLinear", 3, 3, attributes=attributes))
    with pytest.raises(ValueError, match="sigma_min"):
        linmaps.from_module(stand_in("SpectralLinear", 3, 3, attributes=spectral(draw(0), 3, 3, bounds=(-0.5, 1.0))))
