"""Rows of the transform table for what `fisher` has beside the matrices made layer by layer."""

import torch

import fisher
from linmaps import trees
from tests.laws import Case, Exempt, noise_like

D = torch.float64
_r = torch.Generator().manual_seed(3)
_randn = lambda *shape: torch.randn(shape, generator=_r, dtype=D)
X, T = _randn(4, 3), torch.tensor([0, 1, 1, 0])
P = {"w": _randn(3, 3), "b": _randn(3), "scale": _randn(2), "v": _randn(2, 3)}
V = noise_like(P, 1)
LONG = _randn(2, 4, 3)


def f(p, x):
    return torch.tanh(x @ p["w"] + p["b"]) @ p["v"].T * p["scale"]


def _loss(p, x, t):
    return torch.nn.functional.cross_entropy(f(p, x), t)


def _losses(p, x, t):
    return torch.nn.functional.cross_entropy(f(p, x), t, reduction="none", label_smoothing=0.1)


def _network(p, x):
    """Convolution with groups, norms, a table, a part of a leaf, an einsum: every family of rules."""
    z = torch.nn.functional.conv1d(x[:, None].expand(-1, 2, -1), p["kernel"], p["b"][:2], padding=1, groups=2)
    # batch norm: torch's second derivatives of layer norm differ between its modes
    z = torch.nn.functional.batch_norm(z, x.new_zeros(2), x.new_ones(2), p["scale"], p["shift"])
    z = z + p["table"][torch.tensor([0, 2])]
    return torch.einsum("bcs,os->bco", z, p["w"][:2]).flatten(1) + torch.nn.functional.linear(x, p["w"][2:]) * p["one"]


NETWORK = {
    "kernel": _randn(2, 1, 3), "b": _randn(2), "scale": _randn(2), "shift": _randn(2), "table": _randn(3, 3),
    "w": _randn(3, 3), "one": _randn(),
}  # fmt: skip


def _fim(representation, likelihood="gaussian", **options):
    return lambda p, x: fisher.fim(f, p, x, representation, likelihood, **options)


NORMED = P | {"mean": _randn(3), "var": 1 + _randn(3) ** 2}


def _normed(p, x):
    z = torch.nn.functional.batch_norm(x @ p["w"] + p["b"], p["mean"].detach(), p["var"].detach())
    return torch.tanh(z) @ p["v"].T * p["scale"]


def _plain(rate):
    return R.Optimizer(lambda params: (), lambda g, state, params: (trees.scale(-rate, g), state))


def _steps(optimizer, p, v):
    """The updates of two steps."""
    batch = (X.to(p["w"].dtype), T)
    first, state = optimizer.update(v, optimizer.init(p, batch), p, batch=batch)
    second, _ = optimizer.update(v, state, trees.axpy(0.1, first, p), batch=batch)
    return first, second


def _spectral(F):
    """What of an eigendecomposition does not depend on the choice of the vectors."""
    return F.pow(0.5, 0.3)


_U = torch.rand(3, 4, 2, 3, generator=_r, dtype=D)
_LIKELIHOODS = {
    "Bernoulli": (fisher.Bernoulli(), torch.rand(4, 2, 3, generator=_r, dtype=D)),
    "Categorical": (fisher.Categorical(class_axis=-1), torch.tensor([[0, 1], [2, 2], [-100, 0], [1, 1]])),
    "Segmentation": (fisher.Segmentation(), torch.tensor([[0, 1, 1], [0, 0, 1], [-100, 0, 1], [1, 1, 1]])),
    "Gaussian": (fisher.Gaussian((2.0, 0.5)), _randn(4, 2, 3)),
    "HeteroscedasticGaussian": (fisher.HeteroscedasticGaussian(), _randn(4, 1, 3)),
    "Poisson": (fisher.Poisson(), torch.arange(24.0, dtype=D).reshape(4, 2, 3) % 5),
}


def _likelihood_rows(name):
    """root, a part of it, samples and scores at outputs [B, 2, 3] (two classes, or three in the last axis)."""
    which, target = _LIKELIHOODS[name]
    fixed = lambda y: target.to(y.dtype) if target.is_floating_point() else target
    calls = {
        "root": which.root,
        "root_part": lambda y: which.root_part(y, 1, 3),
        "sample": lambda y: which.sample(y, _U.to(y.dtype)),
        "score": lambda y: which.score(y, fixed(y)),
        "log_prob": lambda y: which.log_prob(y, fixed(y)),
        "product": lambda y: which.product(y, torch.cos(y)),
    }
    if hasattr(which, "probabilities"):
        calls["probabilities"] = lambda y: which.probabilities(y, y**2)
    return {f"fisher.{name}/{call}": Case(fn, (_randn(4, 2, 3),)) for call, fn in calls.items()}


_MAKE = {
    "PMatLowRank": _fim(fisher.PMatLowRank),
    "PMatImplicit": _fim(fisher.PMatImplicit),
    "PMatMixed": _fim(fisher.PMatMixed, layers_to={"w": fisher.PMatDiag}),
    "PMatRange": lambda p, x: _fim(fisher.PMatLowRank)(p, x).inverse(0.3),
    "PMatPullback": lambda p, x: fisher.pullback(
        _fim(fisher.PMatDense)(trees.map(torch.sin, p), x), lambda q: trees.map(torch.sin, q), p
    ),
}
_ALL = {
    "mv": lambda F, v: F.mv(v),
    "vTMv": lambda F, v: F.vTMv(v),
    "solve": lambda F, v: F.solve(v, 0.3),
    "trace": lambda F, v: F.trace(),
    "get_diag": lambda F, v: F.get_diag(),
    "to_torch": lambda F, v: F.to_torch(),
    "mapTMmap": lambda F, v: F.mapTMmap(trees.map(lambda t: torch.stack([t, t.cos()])[None], v)),
}
_CLOSED = {
    "inverse": lambda F, v: F.inverse(0.3).mv(v),
    "logdet": lambda F, v: F.logdet(0.3),
    "frobenius_norm": lambda F, v: F.frobenius_norm(),
    "algebra": lambda F, v: (2.0 * F - F / 3.0) @ v,
}


def _rows(name):
    make = _MAKE[name]
    methods = _ALL | (_CLOSED if name in ("PMatLowRank", "PMatMixed") else {})
    of = lambda fn: lambda p, v: fn(make(p, X.to(p["w"].dtype)), v)
    return {f"fisher.{name}/{method}": Case(of(fn), (P, V), tol=1e-6) for method, fn in methods.items()}


_REPRESENTATIONS = {
    "dense": fisher.PMatDense, "diag": fisher.PMatDiag, "kfac": fisher.PMatKFAC, "quasi": fisher.PMatQuasiDiag,
    "blocks": fisher.PMatBlockDiag, "low rank": fisher.PMatLowRank, "eye": fisher.PMatEye, "mixed": fisher.PMatMixed,
}  # fmt: skip
CASES: dict[str, Case | Exempt] = {
    **{row: case for name in _LIKELIHOODS for row, case in _likelihood_rows(name).items()},
    **{row: case for name in _MAKE for row, case in _rows(name).items()},
    **{
        f"fisher.fim/every rule, {name}": Case(
            lambda p, x, r=r: fisher.fim(_network, p, x, r, "gaussian").to_torch(), (NETWORK, X), tol=1e-6
        )
        for name, r in _REPRESENTATIONS.items()
    },
    "fisher.fim/ekfac": Case(lambda p, x: _fim(fisher.PMatEKFAC)(p, x).trace(), (P, X), tol=1e-6),
    "fisher.fim/empirical": Case(
        lambda p, x: fisher.fim(f, p, (x, T), fisher.PMatDense, estimator="empirical"), (P, X)
    ),
    "fisher.fim/centered": Case(
        lambda p, x: fisher.fim(f, p, (x, T), fisher.PMatKFAC, estimator="gradient_covariance", centered=True), (P, X)
    ),
    "fisher.PMatEKFAC/update_diag": Case(
        lambda p, x: _fim(fisher.PMatEKFAC)(p, x).update_diag(f, p, 2 * x, "gaussian").trace(), (P, X), tol=1e-6
    ),
    "fisher.PMatEigen/pow": Case(lambda p, x: _spectral(_fim(fisher.PMatBlockDiag)(p, x)).mv(V_(p)), (P, X), tol=1e-6),
    "fisher.PMatEKFACBlockDiag": Exempt("another name of PMatEKFAC"),
    "fisher.gram/full": Case(lambda p, x: fisher.gram(f, p, x).to_torch(), (P, X)),
    "fisher.gram/two sets": Case(lambda p, x: fisher.gram(f, p, x, 2 * x[:2], kind="trace").to_torch(), (P, X)),
    "fisher.FMatDense/solve": Case(lambda p, x: fisher.gram(f, p, x).solve(torch.ones_like(x[:, :2]), 0.3), (P, X)),
    "fisher.FMatDense/logdet": Case(lambda p, x: (fisher.gram(f, p, x, kind="trace") * 2.0).trace(), (P, X)),
    "fisher.jacobian/dense": Case(lambda p, x: fisher.jacobian(f, p, x).to_torch(), (P, X)),
    **{
        f"fisher.fim/weights, {name}": Case(
            lambda p, x, w, r=r: fisher.fim(f, p, (x, None, w.exp()), r, "gaussian").get_diag(), (P, X, _randn(4))
        )
        for name, r in (("KFAC", fisher.PMatKFAC), ("dense", fisher.PMatDense), ("implicit", fisher.PMatImplicit))
    },
    "fisher.example_gradients": Case(lambda p, x: fisher.example_gradients(_losses, p, (x, T)).to_torch(), (P, X)),
    "fisher.example_gradients/one": Case(
        lambda p, x, w: fisher.example_gradients(_loss, p, (x, T, w.exp())).to_torch(), (P, X, _randn(4))
    ),
    "fisher.PFMapDense/jvp": Case(lambda p, v: fisher.jacobian(f, p, X.to(p["w"].dtype)).jvp(v), (P, V)),
    "fisher.PFMapDense/vjp": Case(lambda p, x: fisher.jacobian(f, p, x).vjp(torch.cos(x[:, :2])), (P, X)),
    "fisher.PFMapImplicit/jvp": Case(
        lambda p, v: fisher.jacobian(f, p, X.to(p["w"].dtype), fisher.PFMapImplicit).jvp(v), (P, V)
    ),
    "fisher.PFMapImplicit/vjp": Case(
        lambda p, x: fisher.jacobian(f, p, x, fisher.PFMapImplicit).vjp(torch.cos(x[:, :2])), (P, X)
    ),
    "fisher.hessian/dense": Case(lambda p, x: fisher.hessian(_loss, p, (x, T)).to_torch(), (P, X)),
    "fisher.hessian/implicit": Case(
        lambda p, v: fisher.hessian(_loss, p, (X.to(p["w"].dtype), T), fisher.PMatImplicit).mv(v), (P, V)
    ),
    "fisher.hessian/over ranks": Case(
        lambda p, x: fisher.hessian(_loss, p, (x, T), reduce=lambda s, n: (trees.scale(2.0, s), 2 * n)).to_torch(),
        (P, X),
    ),
    "fisher.ggn/diag": Case(
        lambda p, x: fisher.ggn(f, lambda y, t: (y**4).sum(-1), p, (x, T), fisher.PMatDiag).get_diag(), (P, X)
    ),
    "fisher.pullback": Case(lambda p, v: _MAKE["PMatPullback"](p, X.to(p["w"].dtype)).mv(v), (P, V)),
    "fisher.Gaussian/tensors": Case(
        lambda s, y: fisher.fim(f, P_(y), y, fisher.PMatImplicit, fisher.Gaussian(s**2 + 0.5)).mv(V_(P_(y))),
        (_randn(2), X),
    ),
    "fisher.Gaussian/covariance tensor": Case(
        lambda s, y: fisher.Gaussian(covariance=s @ s.mT + torch.eye(2, dtype=s.dtype)).root(y),
        (_randn(2, 2), _randn(4, 2, 3)),
    ),
    "fisher.Categorical/weight": Case(
        lambda w, y: fisher.Categorical(-1, weight=w**2).score(y, _LIKELIHOODS["Categorical"][1]),
        (_randn(3), _randn(4, 2, 3)),
    ),
    "fisher.fim/masked kfac": Case(
        lambda p, x: fisher.fim(f, p, (x, torch.tensor([0, -100, 1, 0])), fisher.PMatKFAC).to_torch(), (P, X)
    ),
    "fisher.fim/masked implicit": Case(
        lambda p, x: fisher.fim(f, p, (x, torch.tensor([0, -100, 1, 0])), fisher.PMatImplicit).mv(V_(p)), (P, X)
    ),
    "fisher.Gaussian/covariance": Case(fisher.Gaussian(covariance=((2.0, 1.0), (1.0, 1.0))).root, (_randn(4, 2, 3),)),
    "fisher.Mean/value": Case(
        lambda a, b: fisher.Mean().add(a, 2).add(b, 3).value(), ({"a": _randn(3)}, {"a": _randn(3)})
    ),
    "fisher.Mean/merge": Case(
        lambda a, b: fisher.Mean().add(a, 2).merge(fisher.Mean().add(b, 3)).value(),
        ({"a": _randn(3)}, {"a": _randn(3)}),
    ),
    "fisher.ema": Case(lambda a, b: fisher.ema(a, b, 0.9), ({"a": _randn(3)}, {"a": _randn(3)})),
    "fisher.recipes": Exempt("module of functions, with rows of their own"),
}


def V_(p):
    return trees.map(torch.cos, p)


def P_(like):
    return trees.map(lambda t: t.to(like.dtype), P)


_dense = _fim(fisher.PMatDense)
_NOISE = trees.stack([noise_like(P, k) for k in (7, 8)])
_like = lambda tree, p: trees.map(lambda t: t.to(p["w"].dtype), tree)
R = fisher.recipes
CASES |= {
    "fisher.recipes.effective_dimension/exact": Case(lambda p, x: R.effective_dimension(_dense(p, x), 0.3), (P, X), tol=1e-6),
    "fisher.recipes.effective_dimension/estimate": Case(
        lambda p, x: R.effective_dimension(_dense(p, x), 0.3, noise=_like(_NOISE, p)), (P, X), tol=1e-6
    ),
    "fisher.recipes.ewc_penalty": Case(lambda p, v: R.ewc_penalty(_dense(p, X.to(v["w"].dtype)), p, v), (P, V)),
    "fisher.recipes.ewc_total": Case(lambda p, v: R.ewc_total([(_dense(p, X.to(v["w"].dtype)), p)] * 2, v), (P, V)),
    "fisher.recipes.influence": Case(
        lambda p, x: R.influence(f, p, (x, T), _dense(p, x), (x[:2], T[:2]), regul=0.3), (P, X), tol=1e-6
    ),
    "fisher.recipes.influence/measurement, by layer": Case(
        lambda p, x: R.influence(
            f, p, (x, T), _fim(fisher.PMatKFAC)(p, x), x[:2], regul=0.3, measurement=lambda p, x: f(p, x[None]).cos().sum(),
            per_layer=True,
        ),
        (P, X), tol=1e-6,
    ),
    "fisher.recipes.influence/rank": Case(
        lambda p, x: R.influence(f, p, (x, T), _fim(fisher.PMatKFAC)(p, x), (x[:2], T[:2]), regul=0.3, rank=1),
        (P, X), tol=1e-5,
    ),
    "fisher.recipes.influence/tokens": Case(
        lambda p, x: R.influence(
            f, p, (x, T), _fim(fisher.PMatKFAC)(p, x), (x[:2], T[:2]), regul=0.3, per_token=True, aggregate="test"
        ),
        (P, X), tol=1e-6,
    ),
    "fisher.recipes.self_influence/measurement": Case(
        lambda p, x: R.self_influence(f, p, (x, T), _dense(p, x), regul=0.3, measurement=_loss), (P, X), tol=1e-6
    ),
    "fisher.recipes.self_influence": Case(
        lambda p, x: R.self_influence(f, p, (x, T), _dense(p, x), regul=0.3), (P, X), tol=1e-6
    ),
    "fisher.recipes.self_influence/factors": Case(  # of an F that is given
        lambda p, x: R.self_influence(f, p, (x, T), _fim(fisher.PMatKFAC)(P_(x), X.to(x.dtype)), regul=0.3), (P, X), tol=1e-6
    ),
    "fisher.recipes.leave_one_out": Case(
        lambda p, x: R.leave_one_out(f, p, (x, T), _fim(fisher.PMatDense, "categorical")(p, x), n_examples=4, regul=0.3),
        (P, X), tol=1e-6,
    ),
    "fisher.recipes.laplace/evidence": Case(
        lambda p, x: R.laplace(f, p, _dense(p, x), 4, 2.0).log_marginal_likelihood(x.sum()), (P, X), tol=1e-6
    ),
    "fisher.recipes.laplace/prior, mean, temperature": Case(
        lambda p, v: R.laplace(
            f, p, _dense(p, X.to(p["w"].dtype)), 4, trees.map(torch.exp, v), v, v["b"].exp().sum()
        ).log_marginal_likelihood(1.0),
        (P, V),
        tol=1e-6,
    ),
    "fisher.recipes.Laplace/predict": Case(lambda p, x: R.laplace(f, p, _dense(p, x), 4, 2.0).predict(x[:2]), (P, X), tol=1e-6),
    "fisher.recipes.Laplace/predict, joint": Case(
        lambda p, x: R.laplace(f, p, fisher.fim(f, p, x), 4, 2.0).predict(x[:2], joint=True), (P, X), tol=1e-6
    ),
    **{
        f"fisher.recipes.Laplace/probabilities, {link}": Case(
            lambda p, x, o=options: R.laplace(f, p, fisher.fim(f, p, x), 4, 2.0).probabilities(x[:2], **o(x)), (P, X), tol=1e-6
        )
        for link, options in {
            "probit": lambda x: {},
            "bridge": lambda x: {"link": "bridge"},
            "mc": lambda x: {"link": "mc", "noise": torch.cos(torch.arange(12.0).reshape(3, 2, 2)).to(x.dtype)},
        }.items()
    },
    "fisher.recipes.Laplace/sample": Case(
        lambda p, v: R.laplace(f, p, _dense(p, X.to(p["w"].dtype)), 4, 2.0).sample(noise=v), (P, V), tol=1e-6
    ),
    "fisher.recipes.Laplace/log_prob": Case(
        lambda p, v: R.laplace(f, p, _dense(p, X.to(p["w"].dtype)), 4, 2.0).log_prob(v), (P, V), tol=1e-6
    ),
    "fisher.recipes.Laplace/update": Case(
        lambda p, x: R.laplace(f, p, _dense(p, x), 4, 2.0).update(_dense(p, 2 * x), 4).predict(x[:2]), (P, X), tol=1e-6
    ),
    "fisher.recipes.functional_laplace": Case(
        lambda p, x: R.functional_laplace(f, p, x, 2.0).predict(torch.cos(x[:2])), (P, X), tol=1e-6
    ),
    "fisher.recipes.FunctionalLaplace/sample": Case(
        lambda p, v: R.functional_laplace(f, p, X.to(p["w"].dtype), 2.0).sample(
            noise=(v, torch.ones(R.functional_laplace(f, p, X.to(p["w"].dtype)).roots.shape[:2], dtype=p["w"].dtype))
        ),
        (P, V),
        tol=1e-6,
    ),
    "fisher.recipes.FunctionalLaplace/evidence": Case(
        lambda p, v: R.functional_laplace(f, p, X.to(p["w"].dtype), trees.map(torch.exp, v), v).log_marginal_likelihood(1.0),
        (P, V),
        tol=1e-6,
    ),
    "fisher.recipes.tune_noise": Case(
        lambda p, x: R.tune_noise(
            R.laplace(f, p, fisher.fim(f, p, x, fisher.PMatDense, "gaussian"), 4, 2.0), (x, torch.cos(x[:, :2])), steps=12
        ).likelihood.variance,
        (P, X),
        tol=1e-5,
    ),
    "fisher.recipes.tune_prior_precision": Case(
        lambda p, x: R.tune_prior_precision(R.laplace(f, p, _dense(p, x), 4, 2.0), steps=4).prior_precision, (P, X), tol=1e-5
    ),
    "fisher.recipes.tune_prior_precision/function space": Case(
        lambda p, x: R.tune_prior_precision(R.functional_laplace(f, p, x, 2.0), steps=4, by="number").prior_precision,
        (P, X), tol=1e-5,
    ),
    "fisher.recipes.tune_noise/function space": Case(
        lambda p, x: R.tune_noise(
            R.functional_laplace(f, p, x, 2.0, likelihood="gaussian"), (x, torch.cos(x[:, :2])), steps=12
        ).likelihood.variance,
        (P, X),
        tol=1e-5,
    ),
    "fisher.recipes.natural_gradient_step": Case(
        lambda p, v: R.natural_gradient_step(
            lambda q: _loss(q, X.to(q["w"].dtype), T), p, _fim(fisher.PMatDense, "categorical")(p, X.to(p["w"].dtype)),
            trees.scale(1e-3, v), R.Damping(torch.full((), 0.5, dtype=p["w"].dtype)),
        ).params,
        (P, V), tol=1e-6,
    ),
    "fisher.recipes.best_step": Case(
        lambda p, v: R.best_step(_dense(p, X.to(p["w"].dtype)), v, trees.stack([p, v]), 0.1), (P, V), tol=1e-6
    ),
    "fisher.recipes.kfac": Case(
        lambda p, v: _steps(R.kfac(f, estimator="exact", damping=0.5, adapt_every=1), p, v), (P, V), tol=1e-5
    ),
    "fisher.recipes.kfac/rate": Case(
        lambda p, v: _steps(
            R.kfac(f, estimator="exact", damping=0.5, rate=0.1, clip=1e-3, l2=0.1, weight_decay=0.1, kind="default"), p, v
        ),
        (P, V), tol=1e-5,
    ),
    "fisher.recipes.soap": Case(
        lambda p, v: _steps(R.soap(f, estimator="exact", rate=0.1, eps=1.0), p, v), (P, V), tol=1e-5,
        skip=dict.fromkeys(("grad", "jac"), "a square root of moments, of which some are zero"),
    ),
    "fisher.recipes.in_train_mode": Case(lambda p, x: R.in_train_mode(_normed)[0](p, x), (NORMED, X)),
    "fisher.recipes.in_train_mode/statistics": Case(lambda p, x: R.in_train_mode(_normed)[1](p, x), (NORMED, X)),
    "fisher.recipes.partitioned": Case(
        lambda p, v: _steps(R.partitioned({"one": ("w", _plain(0.1)), "two": (["b", "v"], _plain(0.2))}, _plain(0.3)), p, v),
        (P, V),
    ),
    "fisher.recipes.compiled_step": Case(
        lambda p: R.compiled_step(lambda p, b: _loss(p, *b), _plain(0.1), backend="eager")(p, (), (X.to(p["w"].dtype), T))[::2],
        (P,),
        skip={"jac": "torch traces no forward mode of a derivative of a gradient; what it does trace is in test_compiled_step"},
    ),
    "fisher.recipes.CompiledStep": Exempt("what compiled_step makes, called in its row"),
    "fisher.recipes.Optimizer": Exempt("two functions; kfac, soap and partitioned make some"),
    "fisher.recipes.KFACState": Exempt("record that kfac and soap keep; its steps are in their rows"),
    "fisher.recipes.Damping": Exempt("record of a scalar; used in natural_gradient_step"),
    "fisher.recipes.NaturalStep": Exempt("record that natural_gradient_step returns"),
    "fisher.recipes.pruning_scores/obd": Case(lambda p, x: R.pruning_scores(_dense(p, x), p), (P, X)),
    "fisher.recipes.pruning_scores/obs": Case(
        lambda p, x: R.pruning_scores(_dense(p, x), p, method="obs", regul=0.3), (P, X), tol=1e-6
    ),
    "fisher.recipes.surgeon_scores/layers": Case(
        lambda p, x: R.surgeon_scores(_dense(p, x), p, regul=0.3), (P, X), tol=1e-6
    ),
    "fisher.recipes.surgeon_scores/rows": Case(
        lambda p, x: R.surgeon_scores(_fim(fisher.PMatKFAC)(p, x), p, blocks="rows", regul=0.3), (P, X), tol=1e-6
    ),
    "fisher.recipes.surgeon_step": Case(
        lambda p, x: R.surgeon_step(
            _fim(fisher.PMatKFAC)(p, x), p, trees.map(lambda t: (t.detach() > 0).to(t.dtype), V_(P_(x))), regul=0.3
        ),
        (P, X), tol=1e-6,
    ),
    "fisher.recipes.ewc_online": Case(
        lambda p, x: R.ewc_online(_dense(p, x), _dense(p, x.cos()), 0.5).to_torch(), (P, X)
    ),
    "fisher.recipes.merge": Case(
        lambda p, v: R.merge([p, v], [_dense(p, X.to(p["w"].dtype)), _dense(v, X.to(p["w"].dtype))], [1.0, 2.0], regul=0.3),
        (P, V), tol=1e-6,
    ),
    "fisher.recipes.task_embedding": Case(lambda p, x: R.task_embedding(_fim(fisher.PMatKFAC)(p, x)), (P, X)),
    "fisher.recipes.task_distance": Case(R.task_distance, (_randn(5).exp(), _randn(5).cos().exp())),
    "fisher.recipes.unit_scores": Case(
        lambda p: R.unit_scores(p, fisher.LayerCollection.from_function(f, P, X)), (P,)
    ),
    "fisher.recipes.prune_mask": Exempt("piecewise constant in the scores: no derivative to compare; tested by itself"),
    "fisher.recipes.unit_mask": Case(
        lambda m, p: R.unit_mask({"w": m}, fisher.LayerCollection.from_function(f, P, X), p), (torch.sigmoid(_randn(3)), P)
    ),
}  # fmt: skip
