"""Masks, class weights, probability targets: padded positions count nowhere, in every estimator and representation."""

import dataclasses

import pytest
import torch
from torch.func import grad, vmap

import fisher
from fisher.likelihoods import Categorical
from linmaps import trees
from tests.laws import close
from tests.oracles import jacobians, output_fisher

D = torch.float64
REPRESENTATIONS = [
    fisher.PMatDense, fisher.PMatDiag, fisher.PMatQuasiDiag, fisher.PMatBlockDiag, fisher.PMatKFAC, fisher.PMatEKFAC,
    fisher.PMatLowRank, fisher.PMatEye, fisher.PMatMixed, fisher.PMatImplicit,
]  # fmt: skip
over_representations = pytest.mark.parametrize("representation", REPRESENTATIONS, ids=lambda r: r.__name__)


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def tokens(p, x):
    """Logits `[B, T, C]` of tokens: each position by itself."""
    return torch.tanh(torch.nn.functional.embedding(x, p["e"]) @ p["w"] + p["b"]) @ p["o"]


def attention(p, x):
    """The same after attention to the tokens so far: what stands after the last one that counts is read by nobody."""
    z = torch.nn.functional.embedding(x, p["e"])
    scores = (z @ p["q"]) @ z.mT
    late = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    return torch.tanh(scores.masked_fill(late, -torch.inf).softmax(-1) @ z @ p["w"] + p["b"]) @ p["o"]


PARAMS = {"e": randn(0, 7, 3), "w": randn(1, 3, 4), "b": randn(2, 4), "o": randn(3, 4, 5)}
NETS = {"tokens": (tokens, PARAMS), "attention": (attention, PARAMS | {"q": randn(4, 3, 3)})}
LENGTHS = (4, 2, 3, 1)
T = torch.tensor([[0, 1, 2, 3], [4, 0, -100, -100], [2, 2, 1, -100], [3, -100, -100, -100]])
X = torch.where(T >= 0, torch.tensor([[1, 2, 3, 4], [5, 6, 1, 1], [2, 2, 4, 1], [6, 1, 1, 1]]), 0)
LAST = Categorical(class_axis=-1)
unpadded = [(X[b : b + 1, :n], T[b : b + 1, :n]) for b, n in enumerate(LENGTHS)]


def brute_force(f, params, x, t, weight=None):
    """1/N sum over examples of J' H J, H zero at positions that do not count."""
    J, y = jacobians(f, params, x), f(params, x)
    total = 0
    for j, logits, target in zip(J, y, t):
        H = output_fisher(logits, "categorical", -1)
        kept = (target >= 0)[:, None].expand(logits.shape).flatten().to(D)
        total = total + j.T @ (H * torch.outer(kept, kept)) @ j
    return total / len(x)


@pytest.mark.parametrize("net", NETS)
@over_representations
def test_padding_counts_nowhere(net, representation):
    """Other tokens there change nothing; a batch of padded examples is the list of the examples without padding."""
    f, params = NETS[net]
    for estimator in ("exact", "empirical"):
        of = lambda data, e=estimator: fisher.fim(f, params, data, representation, LAST, e)
        got = of((X, T)).to_torch()
        other = torch.where(T >= 0, X, 5)
        close(of((other, T)).to_torch(), got, 1e-12, f"{estimator}: other padding")
        close(of(unpadded).to_torch(), got, 1e-12, f"{estimator}: no padding")
        close(of([(X[:1], T[:1]), (X[1:], T[1:])]).to_torch(), got, 1e-12, f"{estimator}: batches")


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_padding_that_saturates_units_counts_nowhere(sharing):
    """Where nothing reads a position, at any size of the padding; of as many positions as the output has, and of fewer."""
    nets = {
        "tokens": (lambda p, x: torch.tanh(x @ p["w"] + p["b"]) @ p["o"], randn(5, 4, 4, 3), T[..., None] >= 0, LAST),
        "pixels": (  # of images of half the size, which know nothing of their neighbours
            lambda p, x: (torch.tanh(x[:, :, ::2, ::2].movedim(1, -1) @ p["w"] + p["b"]) @ p["o"]).movedim(-1, 1)
            .repeat_interleave(2, 2).repeat_interleave(2, 3),
            randn(6, 4, 3, 4, 4), torch.arange(4)[:, None, None, None] >= torch.arange(4) // 2 * 2, Categorical(),
        ),
    }  # fmt: skip
    for name, (f, x, kept, which) in nets.items():
        target = torch.where(kept.expand(x.shape).select(which.class_axis, 0), 1, -100)
        for representation in (fisher.PMatKFAC, fisher.PMatEKFAC, fisher.PMatMixed):
            options = {} if representation is fisher.PMatEKFAC else {"sharing": sharing}
            of = lambda x, r=representation: fisher.fim(f, PARAMS, (x, target), r, which, **options)  # noqa: B023
            want = of(torch.where(kept, x, 0.0)).to_torch()
            for padding in (1.0, 100.0, -1e6):
                close(of(torch.where(kept, x, padding)).to_torch(), want, 1e-12, f"{name}: padding {padding}")


@pytest.mark.parametrize("net", NETS)
def test_the_dense_matrix_is_that_of_the_masked_loss(net):
    f, params = NETS[net]
    F = fisher.fim(f, params, (X, T), fisher.PMatDense, LAST).to_torch()
    close(F, brute_force(f, params, X, T), 1e-12, "brute force")
    loss = lambda y, t: torch.nn.functional.cross_entropy(y.movedim(-1, 1), t, reduction="none").sum(1)
    close(F, fisher.ggn(f, loss, params, (X, T)).to_torch(), 1e-12, "ggn of the masked loss")


def test_columns_of_masked_positions_are_zero_in_every_estimator_and_part():
    y, noise = randn(0, 4, 4, 5), torch.rand(3, 4, 4, 5, generator=torch.Generator().manual_seed(0), dtype=D)
    for name, options in (("exact", {}), ("mc", {"noise": noise}), ("empirical", {})):
        columns = fisher.likelihoods.columns.estimator(name, LAST, **options)
        for part in columns.parts(y, T, 2):
            assert torch.count_nonzero(part[:, T < 0]) == 0
        kept = columns(y, T)[:, T >= 0]
        want = columns(y, T.clamp_min(0))[:, T >= 0]
        close(kept, want, 0.0, f"{name}: the others")


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_kfac_of_a_linear_net_with_masked_examples_is_the_exact_block(sharing):
    """One position: H of a Gaussian-like output is one for all, at params of zero."""
    f = lambda p, x: x @ p["w"] + p["b"]
    p, x, t = {"w": torch.zeros(3, 4, dtype=D), "b": torch.zeros(4, dtype=D)}, randn(5, 6, 3), torch.arange(6) % 4
    t = torch.where(torch.arange(6) % 3 == 0, -100, t)
    K = fisher.fim(f, p, (x, t), fisher.PMatKFAC, sharing=sharing).to_torch()
    close(K, fisher.fim(f, p, (x, t), fisher.PMatDense).to_torch(), 1e-13, "exact")
    kept = t >= 0
    close(K, fisher.fim(f, p, (x[kept], t[kept]), fisher.PMatDense).to_torch() * kept.sum() / 6, 1e-13, "the others")


def test_kfac_of_a_linear_net_on_sequences_is_the_exact_block():
    f, p = lambda p, x: x @ p["w"], {"w": torch.zeros(3, 5, dtype=D)}
    x = randn(6, 4, 4, 3)
    K = fisher.fim(f, p, (x, T), fisher.PMatKFAC, LAST).to_torch()
    close(K, fisher.fim(f, p, (x, T), fisher.PMatDense, LAST).to_torch(), 1e-13, "exact")


def test_factors_are_those_of_the_positions_that_count():
    """A = 1/B sum of a a', G the mean of g g', over the positions that count, alone."""
    K = fisher.fim(tokens, PARAMS, (X, T), fisher.PMatKFAC, LAST)
    kept = T >= 0
    y = tokens(PARAMS, X)[kept]
    H = torch.stack([output_fisher(t, "categorical") for t in y])
    a = torch.tanh(torch.nn.functional.embedding(X, PARAMS["e"]) @ PARAMS["w"] + PARAMS["b"])[kept]
    A, G = K.factors["o"]
    close(A, a.T @ a / len(X), 1e-13, "A")
    close(G, H.mean(0), 1e-13, "G")


def test_units_that_are_off_count_as_ever():
    """Where a relu is off a position has no gradient: that is no mask, beside a masked example too."""
    f = lambda p, x: torch.relu(x @ p["w"]) @ p["v"]
    p, x = (
        {"w": torch.eye(2, 3, dtype=D), "v": randn(0, 3, 3)},
        torch.tensor([[1.0, 1.0], [-1.0, -2.0], [2.0, 1.0]], dtype=D),
    )
    A, _ = fisher.fim(f, p, (x, torch.tensor([0, 1, -100])), fisher.PMatKFAC).factors["w"]
    close(A, x[:2].T @ x[:2] / 3, 1e-14, "A")


def test_an_image_with_void_pixels():
    f = lambda p, x: torch.nn.functional.conv2d(
        torch.tanh(torch.nn.functional.conv2d(x, p["k"], padding=1)), p["o"], p["b"]
    )
    p, x = {"k": randn(0, 2, 1, 3, 3), "o": randn(1, 3, 2, 1, 1), "b": randn(2, 3)}, randn(3, 2, 1, 3, 4)
    t = torch.randint(0, 3, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    t = torch.where(torch.arange(4) > 2, 255, t)
    which = fisher.Segmentation(ignore_index=255)
    loss = lambda y, t: torch.nn.functional.cross_entropy(y, t, ignore_index=255, reduction="none").sum((1, 2))
    G = fisher.ggn(f, loss, p, (x, t)).to_torch()
    for representation in (fisher.PMatDense, fisher.PMatImplicit, fisher.PMatLowRank):
        close(fisher.fim(f, p, (x, t), representation, which).to_torch(), G, 1e-12, representation.__name__)
    A, _ = fisher.fim(f, p, (x, t), fisher.PMatKFAC, which).factors["o"]
    a = torch.tanh(torch.nn.functional.conv2d(x, p["k"], padding=1)).movedim(1, -1)[t != 255]
    a = torch.cat([a, a.new_ones(len(a), 1)], 1)
    close(A, a.T @ a / 2, 1e-13, "A")


def test_nothing_that_counts_is_zero_and_everything_that_counts_is_as_without_targets():
    for representation in REPRESENTATIONS:
        of = lambda data, r=representation: fisher.fim(tokens, PARAMS, data, r, LAST).to_torch()
        close(of((X, torch.full_like(T, -100))), torch.zeros_like(of(X)), 0.0, "none")
        close(of((X, T.clamp_min(0))), of(X), 1e-13, "all")


def test_ensembles_and_derivatives():
    for representation in (fisher.PMatKFAC, fisher.PMatImplicit):
        run = lambda p, r=representation: fisher.fim(tokens, p, (X, T), r, LAST).get_diag()
        members = [trees.scale(c, PARAMS) for c in (1.0, 0.5)]
        close(vmap(run)(trees.stack(members)), trees.stack([run(p) for p in members]), 1e-12, "ensemble")
    masks = torch.stack([T, T.flip(0)])
    run = lambda t: fisher.fim(tokens, PARAMS, (X, t), fisher.PMatKFAC, LAST).to_torch()
    close(vmap(run)(masks), torch.stack([run(t) for t in masks]), 1e-12, "an ensemble of masks")
    along = lambda s: fisher.fim(tokens, trees.scale(s, PARAMS), (X, T), fisher.PMatKFAC, LAST).trace()
    one, h = torch.ones((), dtype=D), 1e-6
    close(grad(along)(one), (along(one + h) - along(one - h)) / (2 * h), 1e-7, "derivative")


def test_marks_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match=r"target has shape \(4, 4, 1\), expected \(4, 4\)"):
        fisher.fim(tokens, PARAMS, (X, T[..., None]), fisher.PMatDense, LAST)
    with pytest.raises(ValueError, match=r"holds class 255.*ignore_index"):
        fisher.fim(tokens, PARAMS, (X, torch.where(T < 0, 255, T)), fisher.PMatDense, LAST)
    y = torch.tensor([[1.0], [torch.nan]], dtype=D)
    with pytest.raises(ValueError, match="batch 0: target: got 1 of 2 entries NaN"):
        fisher.fim(lambda p, x: x @ p, randn(0, 2, 1), (randn(1, 2, 2), y), fisher.PMatDense, "gaussian", "empirical")


# --- class weights and probability targets -----------------------------------------------------------------------------

WEIGHTS = (0.2, 1.0, 3.0, 0.0, 0.5)
WEIGHED = Categorical(class_axis=-1, weight=WEIGHTS)


@over_representations
def test_class_weights_are_the_mean_over_targets_of_weighed_squares(representation):
    """The mean over all targets of the empirical matrices, each of which is weight times the unweighted one."""
    f, x = (lambda p, x: torch.tanh(x @ p["w"]) @ p["o"]), randn(7, 2, 3)
    p = {"w": PARAMS["w"], "o": PARAMS["o"]}
    want, probabilities = 0, torch.softmax(f(p, x), -1)
    for b in range(2):
        for c, w in enumerate(WEIGHTS):
            data = x[b : b + 1], torch.tensor([c])
            G = fisher.fim(f, p, data, fisher.PMatDense, Categorical(), "empirical").to_torch()
            close(fisher.fim(f, p, data, fisher.PMatDense, WEIGHED, "empirical").to_torch(), w * G, 1e-13, "empirical")
            want = want + probabilities[b, c] * w * G / 2
    F = fisher.fim(f, p, x, representation, WEIGHED)
    if representation in (fisher.PMatDense, fisher.PMatImplicit, fisher.PMatLowRank):
        close(F.to_torch(), want, 1e-12, "whole")
    if representation not in (fisher.PMatKFAC, fisher.PMatMixed):
        close(F.trace(), want.trace(), 1e-12, "trace")
    equal = dataclasses.replace(WEIGHED, weight=(2.0,) * 5)
    plain = fisher.fim(f, p, x, representation, Categorical()).to_torch()
    close(fisher.fim(f, p, x, representation, equal).to_torch(), 2 * plain, 1e-12, "equal weights")


def test_class_weights_of_samples():
    y = randn(0, 1, 5)
    noise = WEIGHED.noise((60_000, 1, 5), torch.Generator().manual_seed(0), y)
    g = WEIGHED.sample(y, noise)[:, 0]
    want = torch.einsum("kbi,kbj->ij", WEIGHED.root(y), WEIGHED.root(y))
    close(g.T @ g / len(g), want, 0.02, "mean of g g'")


def test_probability_targets():
    """Certain ones are the classes; their score is the gradient of torch's cross entropy with probabilities."""
    y, q = randn(0, 3, 4, 2), torch.softmax(randn(1, 3, 4, 2), 1)
    t = torch.randint(0, 4, (3, 2), generator=torch.Generator().manual_seed(0))
    hot = torch.nn.functional.one_hot(t, 4).movedim(-1, 1).to(D)
    for which in (Categorical(), Categorical(weight=(0.2, 1.0, 3.0, 0.0))):
        close(which.score(y, hot), which.score(y, t), 1e-14, "certain")
        close(which.log_prob(y, hot), which.log_prob(y, t), 1e-14, "certain")
    loss = lambda y: torch.nn.functional.cross_entropy(y, q, reduction="none").sum()
    close(Categorical().score(y, q), -grad(loss)(y), 1e-14, "score")
    close(-Categorical().log_prob(y, q).sum(), loss(y), 1e-13, "log_prob")
    weight = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=D)
    weighed = torch.nn.functional.cross_entropy(y, q, weight=weight, reduction="none").sum()
    close(-Categorical(weight=weight).log_prob(y, q).sum(), weighed, 1e-13, "weighed")


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2)])
def test_a_gradient_covariance_is_that_of_the_weighted_loss(shape):
    r = torch.Generator().manual_seed(5)
    x = torch.randn(shape[0], 2, generator=r, dtype=torch.float64)
    w = torch.randn(2, torch.Size(shape[1:]).numel(), generator=r, dtype=torch.float64)
    f = lambda p, x: (x @ p).reshape(len(x), *shape[1:])
    target = torch.randint(3, (shape[0], *shape[2:]), generator=r)
    weight = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    loss = lambda p, x, t: torch.nn.functional.cross_entropy(f(p, x[None]), t[None], weight=weight, reduction="sum")
    g = torch.stack([torch.func.grad(loss)(w, a, t).flatten() for a, t in zip(x, target)])
    likelihood = fisher.Categorical(weight=weight)
    for centered in (False, True):
        got = fisher.fim(
            f, w, (x, target), fisher.PMatDense, likelihood, "gradient_covariance", centered=centered
        ).to_torch()
        rows = g - g.mean(0) if centered else g
        assert (got - rows.T @ rows / len(g)).abs().max() < 1e-12


@pytest.mark.parametrize("weight", [None, (0.2, 1.0, 3.0, 0.5)])
def test_label_smoothing_is_that_of_torch(weight):
    """Of classes, some of them ignored, and of probabilities; the exact matrix is that of any target."""
    y, q = randn(0, 3, 4, 2), torch.softmax(randn(1, 3, 4, 2), 1)
    t = torch.tensor([[0, 1], [-100, 3], [2, -100]])
    w = None if weight is None else torch.tensor(weight, dtype=D)
    which, plain = Categorical(weight=weight, label_smoothing=0.3), Categorical(weight=weight)
    for target in (t, q):
        loss = lambda y, target=target: torch.nn.functional.cross_entropy(
            y, target, weight=w, label_smoothing=0.3, reduction="sum"
        )
        close(-which.log_prob(y, target).sum(), loss(y), 1e-13, "log_prob")
        if weight is None:
            close(which.score(y, target), -grad(loss)(y), 1e-13, "score")
    close(which.root(y), plain.root(y), 0.0, "root")
    assert torch.count_nonzero(which.score(y, t).movedim(1, -1)[t < 0]) == 0
    with pytest.raises(ValueError, match=r"categorical: label_smoothing: got 1\.5"):
        Categorical(label_smoothing=1.5)
