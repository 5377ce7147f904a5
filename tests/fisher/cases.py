"""Rows of the transform table for `fisher`: every public name."""

import torch

import fisher
from fisher import PMatBlockDiag, PMatDense, PMatDiag, PMatEye, PMatKFAC, PMatQuasiDiag
from linmaps import trees
from tests.fisher import functions
from tests.laws import Case, Exempt, noise_like

D = torch.float64
_r = torch.Generator().manual_seed(0)
_randn = lambda *shape: torch.randn(shape, generator=_r, dtype=D)
X = _randn(5, 3)
P = {"w": _randn(3, 4), "b": _randn(4), "v": _randn(2, 4), "scale": _randn(2)}
V = noise_like(P, 1)


def f(p, x):
    return torch.tanh(x @ p["w"] + p["b"]) @ p["v"].T * p["scale"]


def _fim(representation, likelihood="categorical", **options):
    """Without layers: watching, checking and reducing all run under the transform."""
    return lambda p, x: fisher.fim(f, p, x, representation, likelihood, **options)


def _twice(sums, count):
    """A reduce that adds the same data once more, by linear means."""
    return trees.scale(2.0, sums), 2 * count


def _of(make, method):
    """A method of a matrix made at params: derivatives flow through the matrix."""
    return lambda p, v: method(make(p, X.to(p["w"].dtype)), v)


_NOISE = torch.rand(3, 5, 2, generator=_r, dtype=D)
_MAKE = {
    "PMatDense": _fim(PMatDense, "gaussian"),
    "PMatDiag": _fim(PMatDiag, "gaussian"),
    "PMatKFAC": _fim(PMatKFAC, "gaussian"),
    "PMatEKFAC": lambda p, x: fisher.fim(f, p, x, PMatKFAC, "gaussian").inverse(0.3),
    "PMatBlockDiag": _fim(PMatBlockDiag, "gaussian"),
    "PMatQuasiDiag": _fim(PMatQuasiDiag, "gaussian"),
    "PMatEye": _fim(PMatEye, "gaussian"),
    "PMatSum": lambda p, x: fisher.fim(f, p, x, PMatKFAC) + fisher.fim(f, p, x, PMatKFAC, "gaussian"),
}
_map = lambda v: trees.map(lambda t: torch.stack([t, t.cos()])[None], v)
_METHODS = {
    "mv": lambda F, v: F.mv(v),
    "vTMv": lambda F, v: F.vTMv(v),
    "solve": lambda F, v: F.solve(v, 0.3),
    "inverse": lambda F, v: F.inverse(0.3).mv(v),
    "trace": lambda F, v: F.trace(),
    "get_diag": lambda F, v: F.get_diag(),
    "to_torch": lambda F, v: F.to_torch(),
    "frobenius_norm": lambda F, v: F.frobenius_norm(),
    "mmap": lambda F, v: F.mmap(_map(v)),
    "mapTMmap": lambda F, v: F.mapTMmap(_map(v)),
    "solve a map": lambda F, v: F.solve(_map(v), 0.3),
    "pow": lambda F, v: F.pow(0.5, 0.3).mv(v),
    "logdet": lambda F, v: F.logdet(0.3),
    "norm": lambda F, v: F.norm(2),
    "sample": lambda F, v: F.sample(noise=v, regul=0.3),
    "relative": lambda F, v: F.relative(0.3),
    "solve by layers": lambda F, v: F.solve(v, dict.fromkeys(F.relative(1.0), v["b"][0] ** 2 + 0.3)),
    "algebra": lambda F, v: (2.0 * F - F / 3.0 + (-F) * 0.1) @ v,
}
_MODULE_F, _MODULE_PARAMS = fisher.functional(
    torch.nn.Sequential(torch.nn.Linear(X.shape[1], 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
)
CASES: dict[str, Case | Exempt] = {
    **functions.CASES,
    "fisher.fim/dense": Case(_fim(PMatDense), (P, X)),
    "fisher.fim/diag": Case(_fim(PMatDiag), (P, X)),
    "fisher.fim/kfac": Case(_fim(PMatKFAC), (P, X)),
    "fisher.fim/reduce": Case(_fim(PMatKFAC, sharing="reduce"), (P, X)),
    "fisher.fim/over ranks": Case(_fim(PMatKFAC, reduce=_twice), (P, X)),
    "fisher.fim/mixed over ranks": Case(_fim(fisher.PMatMixed, reduce=_twice, layers_to={"v": PMatDiag}), (P, X)),
    "fisher.distributed.all_reduce": Exempt(
        "a collective: refused under every transform, tests/fisher/distributed/refusals.py"
    ),
    "fisher.distributed.all_gather": Exempt("a collective, as all_reduce"),
    "fisher.fim/mc": Case(
        lambda p, x: fisher.fim(f, p, x, PMatDense, "gaussian", estimator="mc", noise=_NOISE.to(x.dtype)),
        (P, X),
    ),
    "fisher.layer_io": Case(
        lambda p, x: fisher.layer_io(
            f, p, x, fisher.LayerCollection.from_function(f, p, x), lambda y: torch.stack([y, torch.ones_like(y)])
        ),
        (P, X),
    ),
    "fisher.functional": Case(lambda p, x: _MODULE_F(p, x), (_MODULE_PARAMS, X)),
    "fisher.Categorical/root": Case(fisher.Categorical().root, (_randn(4, 3),)),
    "fisher.Categorical/positions": Case(fisher.Categorical(-1).root, (_randn(2, 2, 3),)),
    "fisher.Gaussian/root": Case(fisher.Gaussian(2.0).root, (_randn(4, 3),)),
    "fisher.LayerCollection": Exempt("static description of a function, no tensor in or out; used inside fim's rows"),
    "fisher.Layer": Exempt("static record inside LayerCollection"),
    "fisher.Use": Exempt("static record inside LayerCollection"),
    "fisher.PMat": Exempt("base class: its methods run in the rows of each representation"),
    **{
        f"fisher.{name}/{method}": Case(_of(make, fn), (P, V))
        for name, make in _MAKE.items()
        for method, fn in _METHODS.items()
    },
    "fisher.PMatKFAC/pi": Case(_of(_MAKE["PMatKFAC"], lambda F, v: F.solve(v, 0.3, kind="pi")), (P, V)),
    "fisher.PMatKFAC/eigendecomposition": Case(
        _of(_MAKE["PMatKFAC"], lambda F, v: F.eigendecomposition().solve(v, 0.3)), (P, V)
    ),
}
