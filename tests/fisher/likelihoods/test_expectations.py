"""What users of Fisher libraries stumble over, one expectation each."""

import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset

import fisher
from linmaps import trees
from tests.laws import close, noise_like
from tests.oracles import fisher_matrix, jacobians
from tests.zoo import MODELS

D = torch.float64


def randn(*shape, seed=0, dtype=D):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fim(m, representation, likelihood="gaussian", **options):
    return fisher.fim(m.f, m.params, m.x, representation, likelihood, **options)


def test_sequences_and_pixels_share_one_convention():
    """A 1 x 1 convolution on positions is a linear layer on a sequence: the same factors."""
    w, b, x = randn(3, 2), randn(3, seed=1), randn(4, 5, 2, seed=2)
    sequence = fisher.fim(lambda p, x: F.linear(x, p["w"], p["b"]), {"w": w, "b": b}, x, likelihood="gaussian")
    pixels = fisher.fim(
        lambda p, x: F.conv1d(x, p["w"], p["b"]), {"w": w[:, :, None], "b": b}, x.mT.contiguous(), likelihood="gaussian"
    )
    close(tuple(sequence.factors.values()), tuple(pixels.factors.values()), 1e-12, "factors")


def test_powers_add_no_damping_and_a_silent_layer_is_no_trouble():
    f = lambda p, x: x @ p["w"] + 0.0 * torch.tanh(x @ p["silent"])
    F_ = fisher.fim(f, {"w": randn(3, 2), "silent": randn(3, 2)}, randn(4, 3), likelihood="gaussian")
    close((F_**1).to_torch(), F_.to_torch(), 1e-12, "first power")
    close((F_**0.5).mm(F_**0.5).to_torch(), F_.to_torch(), 1e-12, "root")
    for kind in ("default", "pi"):
        step = F_.solve({"w": randn(3, 2), "silent": randn(3, 2)}, 0.1, kind=kind)
        assert all(t.isfinite().all() for t in trees.leaves(step))


def test_regression_of_variance_four_is_a_quarter_and_trials_are_apart():
    m = MODELS["mlp"]
    exact = fim(m, fisher.PMatDense, fisher.Gaussian(variance=4.0)).matrix
    close(exact, fim(m, fisher.PMatDense).matrix / 4, 1e-12, "precision, not variance")
    errors = []
    for n in (16, 1024):
        g = torch.Generator().manual_seed(0)
        drawn = [
            fim(m, fisher.PMatDense, fisher.Gaussian(variance=4.0), estimator="mc", n_samples=n, generator=g).matrix
            for _ in range(8)
        ]
        errors.append(sum((d - exact).norm() for d in drawn).item())
    assert errors[1] < errors[0] / 4, "64 times the samples, an eighth of the error"


@pytest.mark.parametrize("representation", [fisher.PMatEKFAC, fisher.PMatMixed, fisher.PMatEye, fisher.PMatImplicit])
def test_saved_matrices_work_again(representation):
    m = MODELS["conv2d"]
    F_ = fim(m, representation)
    v = noise_like(m.params, 1)
    if representation is not fisher.PMatImplicit:  # which holds f itself, here a local function
        buffer = io.BytesIO()
        torch.save(F_, buffer)
        buffer.seek(0)
        close(torch.load(buffer).mv(v), F_.mv(v), 0.0, "torch.save")
        close(pickle.loads(pickle.dumps(F_)).mv(v), F_.mv(v), 0.0, "pickle")
    J = trees.stack([trees.stack([v, noise_like(m.params, 2)])])
    want = torch.stack([torch.stack([F_.vTMv(v), F_.vTMv(noise_like(m.params, 2))])])
    close(F_.mapTMmap(J, "diag"), want, 1e-10, "mapTMmap diag")
    close(F_.mapTMmap(J), want.sum(1), 1e-10, "mapTMmap sum")


def test_norms_take_absolute_values():
    F_ = fim(MODELS["mlp"], fisher.PMatEKFAC)
    close((-F_).norm(2), F_.norm(2), 1e-12, "norm(2) of -F")
    close((-F_).norm(2), torch.linalg.matrix_norm(F_.to_torch(), 2), 1e-10, "spectral norm")


@pytest.mark.parametrize("representation", [fisher.PMatKFAC, fisher.PMatEKFAC, fisher.PMatDense, fisher.PMatImplicit])
def test_expanded_and_permuted_gradients(representation):
    """Sums over tokens, and channels moved last, give gradients that are not contiguous."""

    def tokens(p, x):
        return F.embedding(x, p["table"]).sum(1) @ p["v"]

    def images(p, x):
        return F.conv2d(x, p["k"]).permute(0, 2, 3, 1).sum((1, 2))

    cases = [
        (tokens, {"table": randn(5, 3), "v": randn(3, 2)}, torch.tensor([[0, 1, 1], [4, 2, 3]])),
        (images, {"k": randn(2, 1, 2, 2)}, randn(2, 1, 3, 3)),
    ]
    for f, p, x in cases:
        got = fisher.fim(f, p, x, representation, "gaussian")
        want = fisher_matrix(f, p, x, "gaussian")
        if representation in (fisher.PMatDense, fisher.PMatImplicit):
            close(got.to_torch(), want, 1e-10, "values")
        elif representation is fisher.PMatEKFAC:
            close(got.trace(), want.trace(), 1e-10, "trace")


def test_token_logits_need_their_class_axis():
    m = MODELS["sequence"]
    want = fisher_matrix(m.f, m.params, m.x, "categorical", -1)
    close(fim(m, fisher.PMatDense, fisher.Categorical(class_axis=-1)).matrix, want, 1e-10, "last axis")
    assert (fim(m, fisher.PMatDense, "categorical").matrix - want).norm() > 0.1 * want.norm()


def test_confident_examples_in_float32():
    y = 30 * randn(64, 10, dtype=torch.float32)
    trace = lambda r: (r**2).sum((0, 2))
    want = trace(fisher.Categorical().root(y.double()))
    assert ((trace(fisher.Categorical().root(y)) - want).abs() / want.clamp_min(1e-30)).max() < 1e-4


def test_kernels_have_products_traces_and_sums():
    m = MODELS["tied"]  # one weight applied twice
    K = fisher.gram(m.f, m.params, m.x)
    J = jacobians(m.f, m.params, m.x).flatten(0, 1)
    close(K.to_torch(), J @ J.T, 1e-10, "Theta = J J'")
    u = randn(*m.f(m.params, m.x).shape)
    close(K.mv(u).flatten(), J @ (J.T @ u.flatten()), 1e-10, "mv")
    close(K.trace(), (J**2).sum(), 1e-10, "trace")
    close((K + K - K).to_torch(), K.to_torch(), 1e-12, "algebra")


def test_tied_parameters_are_one_parameter():
    m = MODELS["tied"]
    assert fisher.LayerCollection.from_function(m.f, m.params, m.x).numel() == 9
    close(fim(m, fisher.PMatDense).matrix, fisher_matrix(m.f, m.params, m.x, "gaussian"), 1e-10, "tied")


def test_nothing_is_dropped():
    """A bare parameter, a parametrized layer and a subclass of Linear: all are in the matrix."""

    class Mine(nn.Linear):
        pass

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.ones(3))
            self.mine = Mine(3, 4)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))

        def forward(self, x):
            return self.normed(torch.tanh(self.mine(x + self.token)))

    net = Net().double()
    params = {n: randn(*t.shape, seed=k) for k, (n, t) in enumerate(net.named_parameters())}
    f = lambda p, x: functional_call(net, p, (x,))
    x = randn(5, 3)
    layers = fisher.LayerCollection.from_function(f, params, x)
    assert layers.numel() == sum(t.numel() for t in params.values())
    close(
        fisher.fim(f, params, x, fisher.PMatDense, "gaussian").matrix,
        fisher_matrix(f, params, x, "gaussian"),
        1e-10,
        "all",
    )


def test_layers_are_told_apart():
    f = lambda p, x: F.linear(x, p["w"], p.get("b"))
    with_bias = fisher.LayerCollection.from_function(f, {"w": randn(2, 3), "b": randn(2)}, randn(4, 3))
    without = fisher.LayerCollection.from_function(f, {"w": randn(2, 3)}, randn(4, 3))
    assert with_bias != without
    assert len({with_bias, without, with_bias}) == 2
    assert len(with_bias.get_common_layers(without)) == 0


def test_only_what_is_seen_counts():
    """A loader that drops its last batch, and one that shuffles."""
    m = MODELS["mlp"]
    data = TensorDataset(m.x)
    dropped = fisher.fim(m.f, m.params, DataLoader(data, batch_size=2, drop_last=True), fisher.PMatDense)
    close(dropped, fisher.fim(m.f, m.params, m.x[:4], fisher.PMatDense), 1e-12, "drop_last")
    shuffled = DataLoader(data, batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(0))
    close(
        fisher.fim(m.f, m.params, shuffled, fisher.PMatDense),
        fim(m, fisher.PMatDense, "categorical"),
        1e-12,
        "shuffled",
    )


def test_hessians_do_not_count_batches():
    m = MODELS["mlp"]
    t = torch.tensor([0, 1, 2, 0, 1])
    loss = lambda p, x, t: F.cross_entropy(m.f(p, x), t)
    whole = fisher.hessian(loss, m.params, (m.x, t)).to_torch()
    close(fisher.hessian(loss, m.params, [(m.x[:2], t[:2]), (m.x[2:], t[2:])]).to_torch(), whole, 1e-12, "batches")


@pytest.mark.parametrize(
    "representation", [fisher.PMatDense, fisher.PMatBlockDiag, fisher.PMatKFAC, fisher.PMatImplicit]
)
def test_dtypes_follow_the_data_and_not_the_default(representation):
    m = MODELS["norms"]
    assert torch.get_default_dtype() == torch.float32
    F_ = fim(m, representation)
    assert F_.dtype == D
    assert {t.dtype for t in trees.leaves(F_.solve(noise_like(m.params, 1), 0.1))} == {D}


def test_a_matrix_never_remembers_old_numbers():
    F_ = fim(MODELS["mlp"], fisher.PMatDense)
    v = noise_like(MODELS["mlp"].params, 1)
    F_.solve(v, 0.1)
    close((2.0 * F_).solve(v, 0.2), trees.scale(0.5, F_.solve(v, 0.1)), 1e-10, "solve of 2 F")


def test_low_rank_solves_outside_its_rows_too():
    m = MODELS["mlp"]
    v = noise_like(m.params, 4)
    low, dense = (
        fisher.fim(m.f, m.params, m.x[:1], fisher.PMatLowRank),
        fisher.fim(m.f, m.params, m.x[:1], fisher.PMatDense),
    )
    close(low.solve(v, 1e-3), dense.solve(v, 1e-3), 1e-8, "null space")
    close(low.norm(-2), torch.zeros((), dtype=D), 1e-12, "smallest singular value")
    close((-1.0 * low).to_torch(), -dense.to_torch(), 1e-12, "a negative multiple")


def test_scalars_on_both_sides_and_sums_of_everything():
    m = MODELS["mlp"]
    kinds = [
        fisher.PMatDense,
        fisher.PMatDiag,
        fisher.PMatKFAC,
        fisher.PMatEKFAC,
        fisher.PMatLowRank,
        fisher.PMatQuasiDiag,
    ]
    matrices = [fim(m, r) for r in kinds]
    for A in matrices:
        close((A * 2).to_torch(), (2 * A).to_torch(), 1e-12, "both sides")
        for B in matrices:
            close((A + B).to_torch(), A.to_torch() + B.to_torch(), 1e-11, f"{type(A).__name__} + {type(B).__name__}")


def test_ensembles_and_derivatives_pass_through():
    m = MODELS["weight_norm"]
    g = lambda p: fisher.fim(m.f, p, m.x, fisher.PMatDiag, "gaussian").trace()
    assert trees.norm(grad(g)(m.params)) > 0
    stacked = trees.stack([m.params, trees.scale(1.1, m.params)])
    close(vmap(g)(stacked), torch.stack([g(m.params), g(trees.scale(1.1, m.params))]), 1e-10, "ensemble")


def test_unknown_names_say_what_is_known():
    m = MODELS["mlp"]
    with pytest.raises(ValueError, match="likelihood: got 'clasif', expected one of"):
        fim(m, fisher.PMatDense, "clasif")
    with pytest.raises(ValueError, match="estimator: got 'monte', expected one of"):
        fim(m, fisher.PMatDense, estimator="monte")
    with pytest.raises(TypeError, match="covariance"):
        fim(m, fisher.PMatDense, covariance=2.0)
    with pytest.raises(ValueError, match=r"solve: got kind='lu', expected 'default'"):
        fim(m, fisher.PMatDense).solve(m.params, 0.1, kind="lu")
