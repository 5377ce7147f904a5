"""Valid calls of fisher and fisher.recipes, to be made odd; outcomes that are right all the same."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn import functional as nnf

import fisher
from linmaps import trees
from tests.laws import noise_like
from tests.odd import Call

SIGN = "a factor may have any sign"
JUSTIFIED: dict[str, str] = {
    "fisher.*(rtol: none)": "the cut-off of the dtype",
    "fisher.fim/batches(data: unexpected*": "one batch more",
    "fisher.fim/batches(data: missing*": "one batch less",
    "fisher.recipes.prune_mask(scores: *": "scores are a tree of any tensors",
    "fisher.*.root*(y: *": "outputs of any shape have a distribution",
    "fisher.Categorical.root_part(start: zero)": "the first column",
    "fisher.Gaussian*(variance: tensor)": "one variance for each class",
    "fisher.*(class_axis: beyond)": "counted when y is there",
    "fisher.*(class_axis: huge)": "counted when y is there",
    "fisher.*__mul__(alpha: negative*": SIGN,
    "fisher.*__truediv__(alpha: negative*": SIGN,
    "fisher.*__mul__(alpha: zero)": "zero is a factor",
    "fisher.*.pow(p: negative*": "an inverse power",
    "fisher.*.size(dim: *": "an axis",
    "fisher.*(class_axis: negative)": "counted from the end when y is there",
    "fisher.recipes.influence/*(chunk_size: *": "as many as there are",
    "fisher.recipes.influence/*(rank: *": "more than the full rank is the full rank",
    "fisher.recipes.ewc_online(old: none)": "before the first task",
    "fisher.recipes.merge(weights: tensor)": "a sequence of numbers",
    "fisher.*norm(ord: none)": "the Frobenius norm",
    "fisher.*solve/diagonal(regul: scalar in *": "one number for the leaf",
    "fisher.recipes.kfac*_every: huge)": "not again in this run",
    "fisher.recipes.kfac*_every: beyond)": "not again in this run",
    "fisher.recipes.kfac*(clip: none)": "no clip",
    "fisher.recipes.kfac*(norm_constraint: none)": "no constraint",
    "fisher.recipes.soap(batch: none in 1)": "targets are for estimators that look at them",
    "fisher.recipes.soap(batch: text in 1)": "targets are for estimators that look at them",
}
RECORD = "a record that other functions make: every transform rebuilds it around whatever leaves it carries"
EXEMPT: dict[str, str] = {
    "fisher.PMat": "abstract",
    "fisher.functional": "takes a torch.nn.Module; what it refuses is in tests/fisher/collector/test_modules.py",
    "fisher.PMatEKFACBlockDiag": "another name of PMatEKFAC",
    "fisher.distributed.all_reduce": "needs processes: what it refuses is in tests/fisher/distributed/refusals.py",
    "fisher.distributed.all_gather": "the same",
    "fisher.recipes.CompiledStep": "what compiled_step makes, which is called in its row",
    "fisher.recipes.Optimizer": "two functions, called with what theirs take",
    **dict.fromkeys(("fisher.recipes.KFACState", "fisher.Layer", "fisher.Use", "fisher.recipes.NaturalStep"), RECORD),
}
R = fisher.recipes


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, T = randn(4, 3), torch.tensor([0, 1, 1, 0])
P = {"w": randn(3, 3, seed=1), "b": randn(3, seed=2), "v": randn(2, 3, seed=3)}
V = noise_like(P, 1)
MAP = trees.map(lambda t: torch.stack([t, t.cos()])[None], V)
DATA = (X, T)


def user_f(p: Any, x: Any) -> Any:
    return torch.tanh(x @ p["w"] + p["b"]) @ p["v"].T


def user_loss(p: Any, x: Any, t: Any) -> Any:
    return nnf.cross_entropy(user_f(p, x), t)


def user_square(y: Any, t: Any) -> Any:
    return (y**4).sum(-1)


def user_cross_entropy(y: Any, t: Any) -> Any:
    return nnf.cross_entropy(y, t, reduction="none")


def user_sin(p: Any) -> Any:
    return trees.map(torch.sin, p)


def gen() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@functools.cache
def matrices() -> dict[str, Any]:
    names = ("Dense", "Diag", "KFAC", "EKFAC", "BlockDiag", "QuasiDiag", "Eye", "LowRank", "Implicit", "Mixed")
    found = {n: fisher.fim(user_f, P, X, getattr(fisher, f"PMat{n}")) for n in names}
    found["Eigen"] = found["Dense"].eigendecomposition()
    found["Range"] = found["LowRank"].eigendecomposition()
    found["Sum"] = found["KFAC"] + found["LowRank"]
    found["Pullback"] = fisher.pullback(fisher.fim(user_f, user_sin(P), X, fisher.PMatDense), user_sin, P)
    return found


PAIRS = ("Implicit", "Sum", "Pullback")  # their sample takes pairs of trees, made by hand


def methods(name: str, F: Any) -> list[Call]:
    """The methods of a matrix that it has."""
    other = matrices()["Diag"]
    calls = {
        "mv": Call("mv", F.mv, {"v": V}),
        "vTMv": Call("vTMv", F.vTMv, {"v": V}),
        "mmap": Call("mmap", F.mmap, {"J": MAP}),
        "mapTMmap": Call("mapTMmap", F.mapTMmap, {"J": MAP, "reduction": "sum"}),
        "solve": Call("solve", F.solve, {"v": V, "regul": 0.3, "kind": "default"}),
        "solve/tensor": Call("solve", F.solve, {"v": V, "regul": torch.tensor(0.3)}, ("v",)),
        "solve/lstsq": Call("solve", lambda v, rtol: F.solve(v, kind="lstsq", rtol=rtol), {"v": V, "rtol": 1e-3}, ("v",)),
        "solve/layers": Call("solve", F.solve, {"v": V, "regul": dict.fromkeys(F.relative(1.0), 0.3)}, ("v",)),
        "solve/diagonal": Call("solve", F.solve, {"v": V, "regul": trees.map(lambda t: torch.full_like(t, 0.3), V)}, ("v",)),
        "relative": Call("relative", F.relative, {"c": 0.1}),
        "inverse": Call("inverse", F.inverse, {"regul": 0.3}),
        "inverse/tensor": Call("inverse", F.inverse, {"regul": torch.tensor(0.3)}),
        "logdet": Call("logdet", F.logdet, {"regul": 0.3}),
        "logdet/tensor": Call("logdet", F.logdet, {"regul": torch.tensor(0.3)}),
        "pow": Call("pow", F.pow, {"p": 0.5, "regul": 0.3}),
        "pow/tensor": Call("pow", F.pow, {"p": 0.5, "regul": torch.tensor(0.3)}, ("p",)),
        "pinv": Call("pinv", F.pinv, {"rtol": 1e-3}),
        "norm": Call("norm", F.norm, {"ord": 2}),
        "get_block": Call("get_block", F.get_block, {"name": "w"}),
        "project_to_diag": Call("project_to_diag", F.project_to_diag, {"v": V}),
        "sample": Call("sample", F.sample, {"generator": gen(), "regul": 0.3}),
        "sample/noise": Call("sample", lambda noise, regul: F.sample(noise=noise, regul=regul), {"noise": V, "regul": 0.3}),
        "size": Call("size", F.size, {"dim": 0}),
        "__add__": Call("__add__", lambda other: F + other, {"other": other}),
        "__mul__": Call("__mul__", lambda alpha: F * alpha, {"alpha": 2.0}),
        "__truediv__": Call("__truediv__", lambda alpha: F / alpha, {"alpha": 2.0}),
        "__matmul__": Call("__matmul__", lambda v: F @ v, {"v": V}),
        "mm": Call("mm", F.mm, {"other": other}),
        "get_KFE": Call("get_KFE", getattr(F, "get_KFE", None), {"name": "w"}),
        "update_diag": Call("update_diag", getattr(F, "update_diag", None), {
            "f": user_f, "params": P, "data": X, "likelihood": "categorical",
        }),
    }  # fmt: skip
    valid = []
    for title, call in calls.items():
        if call.fn is None or (title == "sample/noise" and name in PAIRS):
            continue
        try:
            call.fn(**call.args)
        except ValueError:  # a matrix without it
            continue
        valid.append(Call(f"fisher.PMat{name}.{title}", call.fn, call.args, call.skip))
    try:
        u = F.project_to_diag(V)
        valid.append(Call(f"fisher.PMat{name}.project_from_diag", F.project_from_diag, {"u": u}))
    except ValueError:
        pass
    return valid


def of_records() -> list[Call]:
    """What adds records up."""
    M = matrices()
    diag = M["Diag"]
    mean = fisher.Mean().add(diag, 2.0)
    return [
        Call("fisher.Mean.add", fisher.Mean().add, {"tree": diag, "n": 2.0}),
        Call("fisher.Mean.add/tensor", mean.add, {"tree": diag, "n": torch.tensor(2.0)}),
        Call("fisher.Mean.merge", mean.merge, {"other": fisher.Mean().add(diag, 3.0)}),
        Call("fisher.Mean", fisher.Mean, {"dtype": torch.float64}),
        Call("fisher.ema", fisher.ema, {"old": diag, "new": 2.0 * diag, "decay": 0.9}),
        Call("fisher.ema/tree", fisher.ema, {"old": P, "new": V, "decay": torch.tensor(0.9)}),
        Call("fisher.pullback", fisher.pullback, {"F": M["Dense"], "effective": user_sin, "params": P}),
    ]  # fmt: skip


def of_layers() -> list[Call]:
    layers = fisher.LayerCollection.from_function(user_f, P, X)
    other = layers.select(["v"])
    C = "fisher.LayerCollection."
    return [
        Call(
            C + "from_function",
            fisher.LayerCollection.from_function,
            {"f": user_f, "params": P, "x": X, "exact": ("w",)},
        ),
        Call(C + "select", layers.select, {"names": ["w"]}),
        Call(C + "remove", lambda name: layers.remove(name), {"name": "w"}),
        Call(C + "add", other.add, {"layer": layers["w"]}),
        Call(C + "merge", layers.merge, {"other": other}),
        Call(C + "get_common_layers", layers.get_common_layers, {"other": other}),
        Call(C + "__getitem__", lambda name: layers[name], {"name": "w"}),
        Call(C + "restrict", other.restrict, {"v": V}),
        Call(C + "restricted", other.restricted, {"f": user_f, "params": P}),
        Call(C + "views", layers.views, {"v": V}),
        Call(C + "tree", layers.tree, {"views": layers.views(V)}),
        Call(
            "fisher.layer_io",
            fisher.layer_io,
            {"f": user_f, "params": P, "x": X, "layers": layers, "cotangent": user_ones},
        ),
    ]


def user_ones(y: Any) -> Any:
    return torch.ones_like(y)[None]


def of_fim() -> list[Call]:
    layers = fisher.LayerCollection.from_function(user_f, P, X)
    base = {"f": user_f, "params": P, "data": X}
    noise = torch.rand(2, 4, 2, generator=gen())
    return [
        Call("fisher.fim", fisher.fim, base | {
            "representation": fisher.PMatKFAC, "likelihood": "categorical", "estimator": "exact", "layers": layers,
            "chunk_size": 1, "sharing": "expand", "dtype": torch.float64,
        }),
        Call("fisher.fim/target", fisher.fim, base | {
            "data": DATA, "representation": fisher.PMatDense, "estimator": "empirical",
        }, ("f", "params", "estimator")),
        Call("fisher.fim/batches", fisher.fim, base | {
            "data": [DATA, DATA], "representation": fisher.PMatDiag, "estimator": "empirical",
        }, ("f", "params", "representation", "estimator")),
        Call("fisher.fim/mc", fisher.fim, base | {
            "representation": fisher.PMatDiag, "estimator": "mc", "generator": gen(), "n_samples": 2,
        }, ("f", "params", "data")),
        Call("fisher.fim/noise", fisher.fim, base | {
            "representation": fisher.PMatLowRank, "estimator": "mc", "noise": noise, "n_samples": 2,
        }, ("f", "params", "data")),
        Call("fisher.fim/weights", fisher.fim, base | {
            "data": (X, T, torch.tensor([0.5, 1.0, 2.0, 0.0])), "representation": fisher.PMatDense,
        }, ("f", "params", "representation")),
        Call("fisher.fim/mixed", fisher.fim, base | {
            "representation": fisher.PMatMixed, "layers_to": {"w": fisher.PMatDiag},
        }, ("f", "params")),
        Call("fisher.fim/implicit", fisher.fim, base | {"representation": fisher.PMatImplicit, "layers": layers}),
        Call("fisher.fim/reduce", fisher.fim, base | {"reduce": lambda s, n: (s, n)}, ("f", "params", "data")),
        Call("fisher.fim/ekfac", fisher.fim, base | {"representation": fisher.PMatEKFAC}, ("representation",)),
        Call("fisher.PMatImplicit.of", fisher.PMatImplicit.of, base | {"data": [DATA], "likelihood": "categorical"}),
        Call("fisher.jacobian", fisher.jacobian, {
            "f": user_f, "params": P, "x": X, "representation": fisher.PFMapDense, "chunk_size": 1, "layers": layers,
        }),
        Call("fisher.jacobian/implicit", fisher.jacobian, {
            "f": user_f, "params": P, "x": X, "representation": fisher.PFMapImplicit,
        }),
        Call("fisher.example_gradients", fisher.example_gradients, {
            "loss": user_loss, "params": P, "data": DATA, "chunk_size": 2,
        }),
        Call("fisher.gram", fisher.gram, {
            "f": user_f, "params": P, "x": X, "x2": X[:2] + 1, "kind": "full", "chunk_size": 1, "layers": layers,
        }),
        Call("fisher.hessian", fisher.hessian, {
            "loss": user_loss, "params": P, "data": DATA, "representation": fisher.PMatDense, "chunk_size": 2,
        }),
        Call("fisher.hessian/implicit", fisher.hessian, {
            "loss": user_loss, "params": P, "data": DATA, "representation": fisher.PMatImplicit,
        }, ("representation",)),
        Call("fisher.ggn", fisher.ggn, {
            "f": user_f, "loss": user_square, "params": P, "data": DATA, "representation": fisher.PMatDiag,
            "layers": layers, "chunk_size": 1,
        }),
    ]  # fmt: skip


def of_maps() -> list[Call]:
    J = fisher.jacobian(user_f, P, X)
    implicit = fisher.jacobian(user_f, P, X, fisher.PFMapImplicit)
    K = fisher.gram(user_f, P, X)
    u = randn(4, 2)
    calls = []
    for name, A in {"PFMapDense": J, "PFMapImplicit": implicit}.items():
        calls += [
            Call(f"fisher.{name}.jvp", A.jvp, {"v": V}),
            Call(f"fisher.{name}.vjp", A.vjp, {"u": u}),
            Call(f"fisher.{name}.size", A.size, {"dim": 0}),
        ]
    return calls + [
        Call("fisher.PFMapDense.__add__", lambda other: J + other, {"other": J}),
        Call("fisher.PFMapDense.__mul__", lambda alpha: J * alpha, {"alpha": 2.0}),
        Call("fisher.PFMapImplicit.to_dense", implicit.to_dense, {"chunk_size": 1}),
        Call("fisher.FMatDense.mv", K.mv, {"u": u}),
        Call("fisher.FMatDense.vTMv", K.vTMv, {"u": u}),
        Call("fisher.FMatDense.solve", K.solve, {"u": u, "regul": 0.3, "kind": "default"}),
        Call("fisher.FMatDense.solve/tensor", K.solve, {"u": u, "regul": torch.tensor(0.3)}, ("u",)),
        Call("fisher.FMatDense.logdet", K.logdet, {"regul": 0.3}),
        Call("fisher.FMatDense.norm", K.norm, {"ord": 2}),
        Call("fisher.FMatDense.size", K.size, {"dim": 0}),
        Call("fisher.FMatDense.__add__", lambda other: K + other, {"other": K}),
        Call("fisher.FMatDense.__mul__", lambda alpha: K * alpha, {"alpha": 2.0}),
        Call("fisher.FMatDense.__truediv__", lambda alpha: K / alpha, {"alpha": 2.0}),
        Call("fisher.FMatDense.__matmul__", lambda u: K @ u, {"u": u}),
    ]


def of_likelihoods() -> list[Call]:
    y = randn(4, 2, 3)
    classes = torch.tensor([[0, 1], [2, 2], [-100, 0], [1, 1]])
    given = {
        "Bernoulli": (fisher.Bernoulli(), torch.rand(4, 2, 3, generator=gen())),
        "Categorical": (fisher.Categorical(class_axis=-1), classes),
        "Segmentation": (fisher.Segmentation(), classes[:, :1].expand(-1, 3) % 2),
        "Gaussian": (fisher.Gaussian((2.0, 0.5)), y + 1),
        "HeteroscedasticGaussian": (fisher.HeteroscedasticGaussian(), y[:, :1] + 1),
        "Poisson": (fisher.Poisson(), torch.arange(24.0).reshape(4, 2, 3) % 5),
    }
    calls = []
    for name, (which, target) in given.items():
        N, u = f"fisher.{name}.", which.noise((2, *y.shape), gen(), y)
        calls += [
            Call(N + "root", which.root, {"y": y}),
            Call(N + "sample", which.sample, {"y": y, "noise": u}),
            Call(N + "score", which.score, {"y": y, "target": target}),
            Call(N + "log_prob", which.log_prob, {"y": y, "target": target}),
        ]
    calls += [
        Call("fisher.Categorical", fisher.Categorical, {"class_axis": 1, "ignore_index": -100}, ("ignore_index",)),
        Call("fisher.Categorical.root_part", fisher.Categorical(-1).root_part, {"y": y, "start": 0, "stop": 1}),
        Call("fisher.Segmentation", fisher.Segmentation, {"class_axis": 1}),
        Call("fisher.Gaussian", lambda variance: fisher.Gaussian(variance).root(y), {"variance": 2.0}),
        Call("fisher.Gaussian/many", lambda variance: fisher.Gaussian(variance).root(y), {"variance": (2.0, 0.5)}),
        Call("fisher.Gaussian/covariance", lambda covariance: fisher.Gaussian(covariance=covariance).root(y), {
            "covariance": ((2.0, 1.0), (1.0, 1.0)),
        }),
        Call("fisher.HeteroscedasticGaussian", fisher.HeteroscedasticGaussian, {"class_axis": 1}),
    ]  # fmt: skip
    return [c for c in calls if works(c)]


def works(call: Call) -> bool:
    call.fn(**call.args)
    return True


def of_recipes() -> list[Call]:
    N = "fisher.recipes."
    F = matrices()["Dense"]
    layers = fisher.LayerCollection.from_function(user_f, P, X)
    posterior = R.laplace(user_f, P, F, 4, 2.0)
    function_space = R.functional_laplace(user_f, P, DATA)
    scores = R.pruning_scores(F, P)
    units = R.unit_scores(scores, layers)
    damping = R.Damping(torch.tensor(0.5))
    mask = R.prune_mask(scores, 0.5)

    plain = R.Optimizer(lambda params: (), lambda g, state, params: (g, state))

    def user_at(q: Any) -> Any:
        return user_loss(q, X, T)

    def stepped(make: Any, params: Any, batch: Any, **options: Any) -> Any:
        optimizer = make(user_f, estimator="exact", **options)
        state = optimizer.init(params, batch)
        return optimizer.update(trees.scale(1e-2, V), state, params, batch=batch)

    return [
        Call(N + "effective_dimension", R.effective_dimension, {"F": F, "regul": 0.3}),
        Call(N + "effective_dimension/estimate", R.effective_dimension, {
            "F": matrices()["Implicit"], "regul": 0.3, "generator": gen(), "n_samples": 2,
        }),
        Call(N + "ewc_penalty", R.ewc_penalty, {"F": F, "anchor": P, "params": V, "strength": 2.0}),
        Call(N + "ewc_total", R.ewc_total, {"tasks": [(F, P), (F, V)], "params": P, "strength": 2.0}),
        Call(N + "influence", R.influence, {
            "f": user_f, "params": P, "data": DATA, "F": F, "test": (X[:2], T[:2]), "loss": "cross_entropy", "regul": 0.3,
        }),
        Call(N + "influence/loss", R.influence, {
            "f": user_f, "params": P, "data": DATA, "F": F, "test": (X[:2], T[:2]), "loss": user_cross_entropy, "regul": 0.3,
        }, ("f", "params", "data", "F", "test", "regul")),
        Call(N + "influence/measurement", R.influence, {
            "f": user_f, "params": P, "data": DATA, "F": F, "test": (X[:2], T[:2]), "regul": 0.3, "measurement": user_loss,
            "chunk_size": 1,
        }, ("f", "params", "data", "F", "test", "regul")),
        Call(N + "influence/rank", R.influence, {
            "f": user_f, "params": P, "data": DATA, "F": F, "test": (X[:2], T[:2]), "regul": 0.3, "rank": 1, "layers": layers,
        }, ("f", "params", "data", "F", "test", "regul")),
        Call(N + "influence/aggregate", R.influence, {
            "f": user_f, "params": P, "data": DATA, "F": F, "test": (X[:2], T[:2]), "regul": 0.3, "aggregate": "test",
        }, ("f", "params", "data", "F", "test", "regul")),
        Call(N + "self_influence", R.self_influence, {"f": user_f, "params": P, "data": DATA, "F": F, "regul": 0.3}),
        Call(N + "leave_one_out", R.leave_one_out, {
            "f": user_f, "params": P, "data": DATA, "F": F, "n_examples": 4, "likelihood": "categorical", "regul": 0.3,
        }),
        Call(N + "laplace", R.laplace, {
            "f": user_f, "params": P, "F": F, "n_examples": 4, "prior_precision": 2.0,
        }, ("f",)),
        Call(N + "Laplace.log_marginal_likelihood", posterior.log_marginal_likelihood, {
            "log_likelihood": torch.tensor(-3.0), "prior_precision": torch.tensor(2.0),
        }),
        Call(N + "Laplace.predict", posterior.predict, {"x": X[:2]}),
        Call(N + "Laplace.probabilities", posterior.probabilities, {"x": X[:2]}),
        Call(N + "Laplace.sample", posterior.sample, {"generator": gen()}),
        Call(N + "Laplace.sample/noise", lambda noise: posterior.sample(noise=noise), {"noise": V}),
        Call(N + "laplace/prior", R.laplace, {
            "f": user_f, "params": P, "F": F, "n_examples": 4, "prior_precision": trees.map(torch.exp, V), "prior_mean": V,
            "temperature": 0.5,
        }, ("prior_precision", "prior_mean", "temperature")),
        Call(N + "Laplace.predict/joint", posterior.predict, {"x": [X[:2], X[2:]], "joint": True}, ("x", "joint")),
        Call(N + "Laplace.probabilities/mc", posterior.probabilities, {
            "x": X[:2], "link": "mc", "noise": torch.ones(3, 2, 2), "n_samples": 3,
        }, ("noise", "n_samples")),
        Call(N + "Laplace.log_prob", posterior.log_prob, {"params": V}),
        Call(N + "Laplace.log_likelihood", posterior.log_likelihood, {"data": DATA}),
        Call(N + "Laplace.update", posterior.update, {"F": F, "n_examples": 4, "params": V}),
        Call(N + "tune_prior_precision", R.tune_prior_precision, {"posterior": posterior, "steps": 4}),
        Call(N + "tune_noise", R.tune_noise, {
            "posterior": R.laplace(user_f, P, fisher.fim(user_f, P, X, fisher.PMatDense, "gaussian"), 4), "data": (X, X[:, :2]),
            "steps": 4, "prior": True,
        }),
        Call(N + "functional_laplace", R.functional_laplace, {
            "f": user_f, "params": P, "data": DATA, "prior_precision": 2.0, "prior_mean": V, "temperature": 0.5,
        }, ("f", "data", "prior_precision", "prior_mean", "temperature")),
        Call(N + "FunctionalLaplace", function_space.predict, {"x": X[:2]}),
        Call(N + "FunctionalLaplace.log_likelihood", function_space.log_likelihood, {"data": DATA}),
        Call(N + "FunctionalLaplace.sample", function_space.sample, {"generator": gen()}),
        Call(N + "FunctionalLaplace.sample/noise", lambda noise: function_space.sample(noise=noise), {
            "noise": (V, torch.ones(1, 4)),
        }),
        Call(N + "FunctionalLaplace.on_function", function_space.on_function, {"f": user_f}),
        Call(N + "Laplace.on_function", posterior.on_function, {"f": user_f}),
        Call(N + "natural_gradient_step", R.natural_gradient_step, {
            "loss": user_at, "params": P, "F": F, "gradient": trees.scale(1e-2, V), "damping": damping,
            "factor": 1.5, "lower": 0.25, "upper": 0.75, "minimum": 1e-10,
        }),
        Call(N + "kfac", functools.partial(stepped, R.kfac), {
            "params": P, "batch": DATA, "decay": 0.9, "factors_every": 1, "bases_every": 2, "damping": 0.1, "momentum": 0.5,
            "weight_decay": 0.1, "l2": 0.1, "adapt_every": 1, "factor": 1.5, "lower": 0.25, "upper": 0.75, "minimum": 1e-8,
        }, ("params",)),
        Call(N + "kfac/rate", functools.partial(stepped, R.kfac), {
            "params": P, "batch": DATA, "rate": 0.1, "clip": 0.1, "norm_constraint": 0.1, "kind": "default", "adapt_every": 1,
        }, ("params",)),
        Call(N + "soap", functools.partial(stepped, R.soap), {
            "params": P, "batch": DATA, "decay": 0.9, "rate": 0.1, "betas": (0.9, 0.9), "eps": 1e-8, "weight_decay": 0.1,
        }, ("params",)),
        Call(N + "in_train_mode", R.in_train_mode, {"f": user_f}, ("f",)),
        Call(N + "partitioned", lambda parts, params: R.partitioned(parts, plain).init(params), {
            "parts": {"one": ("w", plain)}, "params": P,
        }, ("parts", "params")),
        Call(N + "compiled_step", lambda loss, optimizer, progress: R.compiled_step(loss, optimizer, "eager", progress), {
            "loss": lambda p, b: user_loss(p, *b), "optimizer": plain, "progress": False,
        }, ("loss", "optimizer")),
        Call(N + "compiled_step.call", R.compiled_step(lambda p, b: user_loss(p, *b), plain, "eager"), {
            "params": P, "state": (), "batch": DATA,
        }, ("params", "state")),
        Call(N + "Damping", R.Damping, {"value": torch.tensor(0.5)}),
        Call(N + "best_step", R.best_step, {"F": F, "gradient": V, "directions": trees.stack([P, V]), "regul": 0.1}),
        Call(N + "pruning_scores", R.pruning_scores, {"F": F, "params": P, "method": "obs", "regul": 0.3}),
        Call(N + "surgeon_scores", R.surgeon_scores, {"F": matrices()["KFAC"], "params": P, "blocks": "rows", "regul": 0.3}),
        Call(N + "surgeon_step", R.surgeon_step, {
            "F": matrices()["KFAC"], "params": P, "mask": mask, "blocks": "rows", "regul": 0.3,
        }),
        Call(N + "ewc_online", R.ewc_online, {"old": F, "new": F, "decay": 0.5}),
        Call(N + "merge", R.merge, {"models": [P, V], "Fs": [F, F], "weights": [1.0, 2.0], "regul": 0.3}),
        Call(N + "task_embedding", R.task_embedding, {"F": F, "layers": layers}),
        Call(N + "task_distance", R.task_distance, {"one": torch.ones(3), "other": torch.arange(3.0)}),
        Call(N + "prune_mask", R.prune_mask, {"scores": scores, "fraction": 0.5}),
        Call(N + "unit_scores", R.unit_scores, {"scores": scores, "layers": layers}),
        Call(N + "unit_mask", R.unit_mask, {"mask": trees.map(lambda t: t > 0, units), "layers": layers, "params": P}),
    ]  # fmt: skip


def calls() -> list[Call]:
    found = [*of_fim(), *of_layers(), *of_records(), *of_maps(), *of_likelihoods(), *of_recipes()]
    for name, F in matrices().items():
        found += methods(name, F)
    return found
