"""Weights of examples and positions: 1/B sum of w_b J_b' H_b J_b, by hand, in every estimator and representation."""

import pytest
import torch
from torch.func import grad, jacfwd, vmap

import fisher
from linmaps import trees
from tests.fisher.likelihoods.test_masks import LAST, NETS, PARAMS, REPRESENTATIONS, T, X, randn, tokens
from tests.laws import close
from tests.oracles import block_mask, jacobians, output_fisher

D = torch.float64
over_representations = pytest.mark.parametrize("representation", REPRESENTATIONS, ids=lambda r: r.__name__)
W = torch.tensor([[0.5, 2.0, 0.0, 1.0], [3.0, 0.25, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.5, 1.0, 0.7, 2.0]], dtype=D)
EXAMPLES = torch.tensor([0.5, 2.0, 0.0, 1.3], dtype=D)
CLASSES = T.clamp_min(0)


def mlp(p, x):
    return torch.tanh(x @ p["w"] + p["b"]) @ p["o"]


MLP = {"w": randn(1, 3, 4), "b": randn(2, 4), "o": randn(3, 4, 3)}
INPUTS = randn(5, 4, 3)


def hand_root(likelihood, y):
    """H [K, K] of an output of one example, by hand."""
    if likelihood == "bernoulli":
        return torch.diag((y.sigmoid() * (1 - y.sigmoid())).flatten())
    if likelihood == "poisson":
        return torch.diag(y.exp().flatten())
    if likelihood == "heteroscedastic_gaussian":
        m, v = y.chunk(2)
        return torch.diag(torch.cat([(-v).exp(), torch.full_like(m, 0.5)]))
    return output_fisher(y, likelihood, 1)


def by_hand(f, params, x, weights, root):
    """1/B sum over examples of J' (w H) J, the weights of all entries of the output of an example in a row."""
    J, y = jacobians(f, params, x), f(params, x)
    total = 0
    for j, out, w in zip(J, y, weights):
        s = w.expand_as(out.flatten()).sqrt() if w.ndim == 0 else w.flatten().sqrt()
        total = total + j.T @ (root(out) * torch.outer(s, s)) @ j
    return total / len(x)


def agrees(F, want, layers, name):
    """What of a matrix is exact: all of it, its blocks, its diagonal or its trace."""
    kind = type(F).__name__
    if kind in ("PMatDense", "PMatLowRank", "PMatImplicit"):
        close(F.to_torch(), want, 1e-12, f"{name}: whole")
    if kind == "PMatBlockDiag":
        close(F.to_torch(), want * block_mask(layers), 1e-12, f"{name}: blocks")
    if kind in ("PMatDiag", "PMatQuasiDiag"):
        close(trees.ravel(F.get_diag())[0], want.diagonal(), 1e-12, f"{name}: diagonal")
    if kind not in ("PMatKFAC", "PMatMixed"):
        close(F.trace(), want.trace(), 1e-12, f"{name}: trace")


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli", "poisson", "heteroscedastic_gaussian"])
@over_representations
def test_weights_of_examples(likelihood, representation):
    p = MLP | ({"o": randn(3, 4, 2)} if likelihood == "heteroscedastic_gaussian" else {})
    layers = fisher.LayerCollection.from_function(mlp, p, INPUTS)
    want = by_hand(mlp, p, INPUTS, EXAMPLES, lambda y: hand_root(likelihood, y))
    F = fisher.fim(mlp, p, (INPUTS, None, EXAMPLES), representation, likelihood, layers=layers)
    agrees(F, want, layers, likelihood)
    halves = [(INPUTS[:1], None, EXAMPLES[:1]), [INPUTS[1:], None, EXAMPLES[1:]]]
    again = fisher.fim(mlp, p, halves, representation, likelihood, layers=layers)
    close(again.to_torch(), F.to_torch(), 1e-12, "batches")


@pytest.mark.parametrize("net", NETS)
@over_representations
def test_weights_of_positions(net, representation):
    f, params = NETS[net]
    layers = fisher.LayerCollection.from_function(f, params, X)
    for t, w in ((None, W), (T, W * (T >= 0))):
        want = by_hand(f, params, X, w[..., None].expand(*w.shape, 5), lambda y: output_fisher(y, "categorical", -1))
        agrees(fisher.fim(f, params, (X, t, W), representation, LAST, layers=layers), want, layers, "exact")


@over_representations
def test_empirical_weights_are_those_of_squared_scores(representation):
    """By autograd, example by example: the gradient of the loss of all positions, each with the root of its weight."""
    layers = fisher.LayerCollection.from_function(tokens, PARAMS, X)
    vector, unravel = trees.ravel(PARAMS)

    def row(b):
        ce = lambda v: torch.nn.functional.cross_entropy(tokens(unravel(v), X[b : b + 1])[0], T[b], reduction="none")
        return torch.autograd.functional.jacobian(lambda v: (W[b].sqrt() * ce(v)).sum(), vector)

    rows = torch.stack([row(b) for b in range(4)])
    F = fisher.fim(tokens, PARAMS, (X, T, W), representation, LAST, "empirical", layers=layers)
    agrees(F, rows.T @ rows / 4, layers, "empirical")


def test_samples_are_unbiased():
    noise = torch.rand(4000, 4, 4, 5, generator=torch.Generator().manual_seed(0), dtype=D)
    F = fisher.fim(tokens, PARAMS, (X, T, W), fisher.PMatDense, LAST, "mc", noise=noise).to_torch()
    want = fisher.fim(tokens, PARAMS, (X, T, W), fisher.PMatDense, LAST).to_torch()
    assert (F - want).norm() < 0.05 * want.norm()


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_kfac_of_a_linear_net_stays_the_exact_block(sharing):
    f = lambda p, x: x @ p["w"] + p["b"]
    p = {"w": randn(0, 3, 4), "b": randn(1, 4)}
    F = fisher.fim(f, p, (INPUTS, None, EXAMPLES), fisher.PMatKFAC, "gaussian", sharing=sharing)
    close(F.to_torch(), fisher.fim(f, p, (INPUTS, None, EXAMPLES), fisher.PMatDense, "gaussian").to_torch(), 1e-13, "F")
    ones = torch.cat([INPUTS, INPUTS.new_ones(4, 1)], 1)
    A, G = F.factors["w"]
    close(A, (EXAMPLES[:, None] * ones).T @ ones / 4, 1e-13, "A")
    close(G, torch.eye(4, dtype=D), 1e-13, "G")


def test_kfac_of_a_linear_net_on_sequences_stays_the_exact_block():
    """A layer of every position, a lookup, and a convolution, with a constant H."""
    x, last = randn(6, 4, 4, 3), fisher.Gaussian(class_axis=-1)
    nets = [
        (lambda p, x: x @ p["w"], {"w": randn(0, 3, 5)}, x, W, last),
        (lambda p, x: torch.nn.functional.embedding(x, p["e"]), {"e": randn(1, 7, 5)}, X, W, last),
        (
            lambda p, x: torch.nn.functional.conv1d(x, p["k"], p["b"]),
            {"k": randn(2, 2, 4, 2), "b": randn(3, 2)}, x, W[:, :2], "gaussian",
        ),
    ]  # fmt: skip
    for net, params, inputs, w, which in nets:
        dense, kfac, ekfac = (
            fisher.fim(net, params, (inputs, None, w), r, which).to_torch()
            for r in (fisher.PMatDense, fisher.PMatKFAC, fisher.PMatEKFAC)
        )
        close(kfac, dense, 1e-12, "KFAC")
        close(ekfac, dense, 1e-12, "EKFAC")


def test_factors_of_positions():
    """A = 1/B sum of w a a', G = sum of w H over sum of w."""
    A, G = fisher.fim(tokens, PARAMS, (X, T, W), fisher.PMatKFAC, LAST).factors["o"]
    w = W * (T >= 0)
    a = torch.tanh(torch.nn.functional.embedding(X, PARAMS["e"]) @ PARAMS["w"] + PARAMS["b"])
    close(A, torch.einsum("bt,bti,btj->ij", w, a, a) / 4, 1e-12, "A")
    H = torch.stack([torch.stack([output_fisher(y, "categorical") for y in row]) for row in tokens(PARAMS, X)])
    close(G, (w[..., None, None] * H).sum((0, 1)) / w.sum(), 1e-12, "G")


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("estimator", ["exact", "empirical"])
@over_representations
def test_weights_of_0_and_1_are_the_mask(net, estimator, representation):
    f, params = NETS[net]
    mask = T >= 0
    want = fisher.fim(f, params, (X, T), representation, LAST, estimator).to_torch()
    for w in (mask, mask.double(), mask.float()):
        got = fisher.fim(f, params, (X, CLASSES, w), representation, LAST, estimator).to_torch()
        close(got, want, 1e-12, "mask")


@pytest.mark.parametrize("net", NETS)
@over_representations
def test_one_weight_for_all_is_a_factor(net, representation):
    f, params = NETS[net]
    plain = fisher.fim(f, params, (X, T), representation, LAST).to_torch()
    for w in (torch.full((4,), 2.5, dtype=D), torch.full((4, 4), 2.5, dtype=D)):
        close(fisher.fim(f, params, (X, T, w), representation, LAST).to_torch(), 2.5 * plain, 1e-12, "factor")
        nothing = fisher.fim(f, params, (X, T, 0 * w), representation, LAST).to_torch()
        close(nothing, torch.zeros_like(plain), 0.0, "zero")


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_whole_weights_are_copies(sharing):
    """In KFAC and EKFAC too, whatever the net: A and G are those of the copies."""
    f, params = NETS["attention"]
    w, copies = torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=D), torch.tensor([0, 1, 1, 2, 2, 2])
    kinds = (
        (fisher.PMatKFAC, fisher.PMatEKFAC) if sharing == "expand" else (fisher.PMatKFAC,)
    )  # bases of few are not unique
    for kind in kinds:
        for estimator in ("exact", "empirical"):
            options = {"estimator": estimator, "sharing": sharing}
            got = fisher.fim(f, params, (X, T, w), kind, LAST, **options).to_torch()
            want = fisher.fim(f, params, (X[copies], T[copies]), kind, LAST, **options).to_torch()
            close(got, want * 6 / 4, 1e-12, "copies")


def test_weights_of_coordinates():
    y = torch.tensor([[1.0, 0.0, 2.0]] * 4, dtype=D) * EXAMPLES[:, None]
    for likelihood in ("gaussian", "bernoulli", "poisson"):
        want = by_hand(mlp, MLP, INPUTS, y, lambda y: hand_root(likelihood, y))  # noqa: B023
        close(fisher.fim(mlp, MLP, (INPUTS, None, y), fisher.PMatDense, likelihood).to_torch(), want, 1e-12, likelihood)


def test_a_gradient_covariance_has_the_gradients_of_the_weighted_loss():
    g = torch.stack([trees.ravel(grad(_loss)(MLP, x, t))[0] for x, t in zip(INPUTS, torch.tensor([0, 1, 2, 1]))])
    g = EXAMPLES[:, None] * g
    data = INPUTS, torch.tensor([0, 1, 2, 1]), EXAMPLES
    of = lambda r, **o: fisher.fim(mlp, MLP, data, r, "categorical", "gradient_covariance", **o).to_torch()
    for representation in (fisher.PMatDense, fisher.PMatImplicit, fisher.PMatLowRank):
        close(of(representation), g.T @ g / 4, 1e-12, "second moment")
        m = g.mean(0)
        close(of(representation, centered=True), g.T @ g / 4 - torch.outer(m, m), 1e-12, "covariance")
    with pytest.raises(ValueError, match=r"centered: got data with weights.*use PMatDense"):
        of(fisher.PMatKFAC, centered=True)


def _loss(p, x, t):
    return torch.nn.functional.cross_entropy(mlp(p, x[None]), t[None])


def test_update_diag_and_chunks_take_weights():
    data = X, T, W
    F = fisher.fim(tokens, PARAMS, data, fisher.PMatEKFAC, LAST)
    K = fisher.fim(tokens, PARAMS, data, fisher.PMatKFAC, LAST).eigendecomposition()
    close(K.update_diag(tokens, PARAMS, data, LAST).to_torch(), F.to_torch(), 1e-11, "EKFAC")
    for representation in REPRESENTATIONS:
        of = lambda **o: fisher.fim(tokens, PARAMS, data, representation, LAST, **o).to_torch()  # noqa: B023
        close(of(chunk_size=3), of(), 1e-11, "chunks")


def test_ensembles_and_derivatives():
    for representation in (fisher.PMatKFAC, fisher.PMatEKFAC, fisher.PMatDense, fisher.PMatImplicit):
        run = lambda w, r=representation: fisher.fim(tokens, PARAMS, (X, T, w), r, LAST).get_diag()
        many = torch.stack([W, W.flip(0), 0 * W])
        close(vmap(run)(many), trees.stack([run(w) for w in many]), 1e-11, "an ensemble of weights")
        along = lambda s, r=representation: fisher.fim(
            tokens, PARAMS, (X, T, W + s * EXAMPLES[:, None]), r, LAST
        ).trace()
        s, h = torch.tensor(0.3, dtype=D), 1e-6
        want = (along(s + h) - along(s - h)) / (2 * h)
        close(grad(along)(s), want, 1e-7, "reverse")
        close(jacfwd(along)(s), want, 1e-7, "forward")


def test_single_precision_and_half():
    for dtype, tol in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        p = trees.map(lambda t, dtype=dtype: t.to(dtype), MLP)
        F = fisher.fim(mlp, p, (INPUTS.to(dtype), None, EXAMPLES), fisher.PMatKFAC, "gaussian")
        assert F.dtype == dtype
        want = fisher.fim(mlp, MLP, (INPUTS, None, EXAMPLES), fisher.PMatKFAC, "gaussian").to_torch()
        close(F.to_torch().double(), want, tol, "F")


def test_the_hessian_and_the_gauss_newton_matrix_of_weighted_losses():
    t = torch.tensor([0, 1, 2, 1])
    ce = lambda y, t: torch.nn.functional.cross_entropy(y, t, reduction="none")
    vector, unravel = trees.ravel(MLP)
    for data in ((INPUTS, t, EXAMPLES), [(INPUTS[:3], t[:3], EXAMPLES[:3]), (INPUTS[3:], t[3:], EXAMPLES[3:])]):
        G = fisher.ggn(mlp, ce, MLP, data)
        close(G.to_torch(), fisher.fim(mlp, MLP, (INPUTS, t, EXAMPLES), fisher.PMatDense).to_torch(), 1e-12, "ggn")
        H = fisher.hessian(lambda p, x, t: ce(mlp(p, x), t), MLP, data).to_torch()
        total = lambda v: (EXAMPLES * ce(mlp(unravel(v), INPUTS), t)).sum() / 4
        close(H, torch.autograd.functional.hessian(total, vector), 1e-12, "hessian")
    mixed = [(INPUTS[:3], t[:3]), (INPUTS[3:], t[3:], EXAMPLES[3:])]
    ones = torch.cat([torch.ones(3, dtype=D), EXAMPLES[3:]])
    close(
        fisher.ggn(mlp, ce, MLP, mixed).to_torch(),
        fisher.ggn(mlp, ce, MLP, (INPUTS, t, ones)).to_torch(),
        1e-13,
        "some",
    )
    mean = lambda p, x, t: ce(mlp(p, x), t).mean()
    for check in (True, False):
        with pytest.raises(ValueError, match="reduction='none'"):
            fisher.hessian(mean, MLP, (INPUTS, t, EXAMPLES), check=check)
    with pytest.raises(ValueError, match=r"weight: got shape \(4, 1\), expected \[4\]"):
        fisher.ggn(mlp, ce, MLP, (INPUTS, t, EXAMPLES[:, None]))


WRONG = {
    "negative": (-EXAMPLES, ValueError, r"weight: got -0\.5, expected numbers >= 0"),
    "nan": (EXAMPLES * torch.nan, ValueError, "weight: got 4 of 4 entries NaN"),
    "too few": (EXAMPLES[:3], ValueError, r"weight has shape \(3,\), expected \[4\] or \[4, \*positions\]"),
    "a number": (2.0, TypeError, r"weight: got float, expected a tensor \[B\]"),
    "whole numbers": (
        torch.tensor([1, 0, 2, 1]),
        TypeError,
        r"weight.*int64.*weight\.float\(\); several inputs go into",
    ),
    "other positions": (
        W[:, :3],
        ValueError,
        r"weight: got shape \(4, 3\), expected \(4,\), a number.*\(4, 4\), for each",
    ),
    "classes": (W[..., None].expand(4, 4, 5), ValueError, r"weight: got shape \(4, 4, 5\)"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("representation", [fisher.PMatKFAC, fisher.PMatDense, fisher.PMatImplicit])
def test_weights_that_cannot_be_read_are_refused(kind, representation):
    weight, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        fisher.fim(tokens, PARAMS, (X, T, weight), representation, LAST).trace()


def test_where_no_weight_is_taken():
    for rows in (fisher.jacobian, fisher.gram):
        with pytest.raises(ValueError, match=r"x: got \(x, target, weight\), expected inputs alone.*weight.sqrt\(\)"):
            rows(mlp, MLP, (INPUTS, CLASSES[:, 0], EXAMPLES))
    found = fisher.fim(mlp, MLP, (INPUTS, None, EXAMPLES), fisher.PMatDense, "gaussian").to_torch()
    J = fisher.jacobian(mlp, MLP, INPUTS).to_torch() * EXAMPLES.sqrt()[:, None, None]
    close(J.flatten(0, 1).T @ J.flatten(0, 1) / len(INPUTS), found, 1e-12, "what the refusal says to do")
    y = torch.ones(4, 3, 3, dtype=D)
    with pytest.raises(ValueError, match="by its axis 1 or 2, expected one that says which"):
        fisher.likelihoods.weights.spread(fisher.Bernoulli(), y, y[..., 0])
