"""fim: equals the brute-force sum, in every representation, for every use of a leaf; data, estimators, ensembles."""

import functools
import warnings

import pytest
import torch
from hypothesis import given
from torch.func import vmap

import fisher
from fisher import Categorical, PMatDense, PMatDiag, PMatEKFAC, PMatKFAC
from fisher.pmat import PMatBlockDiag, PMatEye, PMatImplicit, PMatLowRank, PMatMixed, PMatQuasiDiag
from fisher.strategies import networks
from linmaps import trees
from tests import oracles
from tests.laws import close, noise_like
from tests.zoo import MODELS, perturbed

D = torch.float64
REPRESENTATIONS = [PMatDense, PMatDiag, PMatKFAC]
LINEAR = [PMatDense, PMatDiag, PMatKFAC, PMatBlockDiag, PMatQuasiDiag, PMatEye]  # sums over examples
EVERY = [*LINEAR, PMatEKFAC, PMatMixed, PMatLowRank, PMatImplicit]


def likelihoods(member):
    return [("categorical", Categorical(class_axis=member.class_axis)), ("gaussian", "gaussian")]


@functools.cache
def brute_force(name, which):
    m = MODELS[name]
    return oracles.fisher_matrix(m.f, m.params, m.x, likelihoods(m)[which][0], m.class_axis)


def where(layers):
    """Positions in the flat order of the entries of each layer's view."""
    start, index = 0, []
    for shape in layers.layout.shapes:
        size = torch.Size(shape).numel()
        index.append(torch.arange(start, start + size).reshape(shape))
        start += size
    return {n: t.flatten() for n, t in layers.views(layers.layout.unflatten(index)).items()}


def by_name(name, which, representation, **options):
    m = MODELS[name]
    return fisher.fim(m.f, m.params, m.x, representation, likelihoods(m)[which][1], **options)


over_models = pytest.mark.parametrize("name", MODELS)
over_likelihoods = pytest.mark.parametrize("which", [0, 1])


@over_models
@over_likelihoods
def test_dense_low_rank_implicit_equal_the_brute_force_sum(name, which):
    want = brute_force(name, which)
    close(by_name(name, which, PMatDense).matrix, want, 1e-10, "dense")
    close(by_name(name, which, PMatLowRank).to_torch(), want, 1e-10, "low rank")
    v = noise_like(MODELS[name].params, 1)
    vector, unravel = trees.ravel(v)
    close(by_name(name, which, PMatImplicit).mv(v), unravel(want @ vector), 1e-10, "implicit")


@over_models
@over_likelihoods
def test_blocks_and_diagonals_equal_the_brute_force_sum(name, which):
    want = brute_force(name, which)
    close(by_name(name, which, PMatDiag).to_torch().diagonal(), want.diagonal(), 1e-10, "diagonal")
    quasi = by_name(name, which, PMatQuasiDiag)
    close(trees.ravel(quasi.get_diag())[0], want.diagonal(), 1e-10, "quasi-diagonal")
    v = noise_like(MODELS[name].params, 2)
    close(quasi.mv(v), quasi.layout.unravel(quasi.to_torch() @ trees.ravel(v)[0]), 1e-10, "quasi-diagonal")
    close(by_name(name, which, PMatEye).trace(), want.trace(), 1e-10, "trace of the multiple of I")
    blocks, kfac, mixed = (by_name(name, which, r) for r in (PMatBlockDiag, PMatKFAC, PMatMixed))
    for layer in blocks.layers:
        at = where(blocks.layers)[layer.name]
        block = want[at][:, at]
        if layer.family == "unused":
            continue
        close(blocks.get_block(layer.name), block, 1e-10, f"block of {layer.name}")
        factors = layer.kronecker or layer.factored
        close(mixed.get_block(layer.name), (kfac if factors else blocks).get_block(layer.name), 1e-12, "mixed")
        if not factors:
            close(kfac.get_block(layer.name), block, 1e-10, f"exact block of {layer.name}")
        if layer.weight is not None and layer.bias is not None:
            view = torch.arange(layer.numel).reshape(-1, layer.shape[1] + 1 if layer.kronecker else 2)
            pairs = block[view[:, :-1], view[:, -1:]]
            close(quasi.cross[layer.name].flatten(), pairs.flatten(), 1e-10, f"weights with bias of {layer.name}")


@over_models
@over_likelihoods
def test_second_moments_in_the_eigenbasis(name, which):
    """EKFAC: D is the diagonal of U' block U; its trace is that of F; one pass and two passes agree."""
    want, F = brute_force(name, which), by_name(name, which, PMatEKFAC)
    kfac = by_name(name, which, PMatKFAC)
    at = where(F.layers)
    for layer in F.layers:
        block = want[at[layer.name]][:, at[layer.name]]
        if layer.kronecker:
            U = F.get_KFE(layer.name, split_weight_bias=False)
            close(U.T @ U, torch.eye(len(U), dtype=D), 1e-10, "orthogonal")
            close(F.eigenvalues[layer.name].flatten(), (U.T @ block @ U).diagonal(), 1e-9, layer.name)
            errors = [(G.get_block(layer.name) - block).norm() for G in (F, kfac)]
            assert errors[0] <= errors[1] + 1e-9 * block.norm()
    close(F.trace(), want.trace(), 1e-9, "trace")
    m = MODELS[name]
    parts = fisher.fim(m.f, m.params, [m.x[:1], m.x[1:]], PMatEKFAC, likelihoods(m)[which][1], layers=F.layers)
    close(parts.trace(), F.trace(), 1e-9, "two passes over batches")
    if name not in ("conv3d", "transposed", "in_place"):  # whose factors have eigenspaces of more than one dimension
        close(parts.to_torch(), F.to_torch(), 1e-8, "two passes over batches")


@given(networks(sequence=False, max_batch=4, min_outputs=2))
def test_random_networks_against_the_brute_force_sum(network):
    for kind in ("categorical", "gaussian"):
        want = oracles.fisher_matrix(network.f, network.params, network.x, kind)
        close(fisher.fim(network.f, network.params, network.x, PMatDense, kind).matrix, want, 1e-10, kind)
        close(fisher.fim(network.f, network.params, network.x, PMatDiag, kind).trace(), want.trace(), 1e-10, kind)


@given(networks(sequence=True, max_batch=3))
def test_random_sequence_networks_against_the_brute_force_sum(network):
    want = oracles.fisher_matrix(network.f, network.params, network.x, "categorical", -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a single class
        got = fisher.fim(network.f, network.params, network.x, PMatDense, Categorical(class_axis=-1))
    close(got.matrix, want, 1e-10, "sequence")


def factors_by_loop(m, layers, layer, likelihood, sharing):
    """A and G from their definition, with loops over examples, positions, groups and columns."""
    _, io = fisher.layer_io(m.f, m.params, m.x, layers, likelihood.root)
    if layer.diagonal:
        sharing = "expand"
    groups, batch = layer.form.groups, len(m.x)
    As, Gs = [], []
    for group in range(groups):
        A, G = 0.0, 0.0
        for b in range(batch):
            inputs, outputs = [], []
            for k, cut, biased in zip(layer.uses, layer.cuts, layer.biased):
                a, g = io[k][0][b], io[k][1][:, b]
                if layer.diagonal:
                    a = torch.nn.functional.one_hot(a, layer.shape[1] + 1)[:, :-1].to(D)
                if groups > 1:
                    a, g = a[:, group], g[:, :, group]
                one = torch.full((len(a), int(layer.bias is not None)), float(biased), dtype=D)
                inputs.append(torch.cat([a[:, : layer.shape[1]], one], 1))
                outputs.append(g if cut is None else g[..., cut[0] : cut[1]])
            a, g = torch.cat(inputs), torch.cat(outputs, 1)
            shared = len(a)
            if sharing == "reduce":
                a, g, shared = a.mean(0, keepdim=True), g.sum(1, keepdim=True), 1
            A = A + sum(torch.outer(t, t) for t in a) / batch
            G = G + sum(torch.outer(t, t) for column in g for t in column) / (batch * shared)
        As.append(A.diagonal() if layer.diagonal else A)
        Gs.append(G)
    return (torch.stack(As), torch.stack(Gs)) if groups > 1 else (As[0], Gs[0])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_factors_equal_their_definition(name, sharing):
    m = MODELS[name]
    likelihood = Categorical(class_axis=m.class_axis)
    kfac = fisher.fim(m.f, m.params, m.x, PMatKFAC, likelihood, sharing=sharing)
    for layer in kfac.layers:
        if layer.kronecker and not layer.inner:
            A, G = factors_by_loop(m, kfac.layers, layer, likelihood, sharing)
            close(kfac.factors[layer.name], (A, G), 1e-11, layer.name)


@given(networks(activations=("identity",), max_batch=5))
def test_linear_networks_are_exact(network):
    """A deep linear network with gaussian output: the Kronecker block is the exact block."""
    kfac = fisher.fim(network.f, network.params, network.x, PMatKFAC, "gaussian")
    want = oracles.fisher_matrix(network.f, network.params, network.x, "gaussian")
    for name, at in where(kfac.layers).items():
        close(kfac.get_block(name), want[at][:, at], 1e-10, "deep linear network")


@given(networks(max_batch=4))
def test_expand_is_reduce_without_sharing(network):
    one, two = (
        fisher.fim(network.f, network.params, network.x, PMatKFAC, "gaussian", sharing=s) for s in ("expand", "reduce")
    )
    close(one, two, 1e-12, "S = 1")


@pytest.mark.parametrize("representation", [r for r in EVERY if r is not PMatQuasiDiag])
@over_models
def test_positive_semidefinite_and_consistent(name, representation):
    m = MODELS[name]
    F = fisher.fim(m.f, m.params, m.x, representation, Categorical(class_axis=m.class_axis))
    T = F.to_torch()
    close(T, T.T, 1e-14, "symmetry")
    assert torch.linalg.eigvalsh(T).min() > -1e-12 * max(1.0, T.trace().item())
    close(F.trace(), T.trace(), 1e-12, "trace")
    close(trees.ravel(F.get_diag())[0], T.diagonal(), 1e-12, "diagonal")


@pytest.mark.parametrize("representation", LINEAR)
@over_models
def test_batching_permutation_and_duplication_change_nothing(name, representation):
    m = MODELS[name]
    x = torch.cat([m.x, 0.5 * m.x[:2] if m.x.is_floating_point() else m.x[:2].flip(1)])
    layers = fisher.LayerCollection.from_function(m.f, m.params, x)
    fim = lambda data: fisher.fim(
        m.f, m.params, data, representation, Categorical(class_axis=m.class_axis), layers=layers
    )
    whole = fim(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    close(fim(x[order]), whole, 1e-11, "permutation")
    close(fim([x[:2], (x[2:3], None), x[3:]]), whole, 1e-11, "batches")
    close(fim([x[:0], x]), whole, 1e-11, "an empty batch")
    close(fim(torch.cat([x, x])), whole, 1e-11, "every example twice")
    close(fim((x, torch.zeros(len(x)))), whole, 1e-11, "targets are not looked at")


@pytest.mark.parametrize("representation", [*LINEAR, PMatMixed])
def test_chunks_of_columns_change_nothing(representation):
    for name in ("mlp", "bare", "sequence", "conv2d", "embedding"):
        m = MODELS[name]
        one, two = (
            fisher.fim(m.f, m.params, m.x, representation, Categorical(class_axis=m.class_axis), chunk_size=c)
            for c in (None, 1)
        )
        close(one, two, 1e-12, name)


@pytest.mark.parametrize("representation", [*LINEAR, PMatMixed, PMatLowRank])
@over_models
def test_ensemble_is_the_loop(name, representation):
    m = MODELS[name]
    members = [perturbed(m.params, k) for k in range(3)]
    likelihood = Categorical(class_axis=m.class_axis)
    fim = lambda p: fisher.fim(m.f, p, m.x, representation, likelihood)
    if not m.ensembles:
        with pytest.raises(RuntimeError, match="vmap"):
            vmap(fim)(trees.stack(members))
        return
    close(vmap(fim)(trees.stack(members)), trees.stack([fim(p) for p in members]), 1e-10, "vmap")


@pytest.mark.parametrize("representation", LINEAR)
def test_monte_carlo_tends_to_exact(representation):
    m = MODELS["mlp"]
    exact = fisher.fim(m.f, m.params, m.x, representation).to_torch()
    generator = torch.Generator().manual_seed(0)
    errors = [
        (
            fisher.fim(m.f, m.params, m.x, representation, estimator="mc", generator=generator, n_samples=n).to_torch()
            - exact
        )
        .norm()
        .item()
        / exact.norm().item()
        for n in (50, 5000)
    ]
    assert errors[1] < 0.05
    assert errors[1] < errors[0] / 3


def test_monte_carlo_from_noise_is_repeatable_and_maps():
    m = MODELS["mlp"]
    noise = torch.rand(7, 5, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    fim = lambda p, noise: fisher.fim(m.f, p, m.x, PMatDense, estimator="mc", noise=noise)
    close(fim(m.params, noise), fim(m.params, noise), 0.0, "same noise")
    drawn = fisher.fim(
        m.f, m.params, m.x, PMatDense, estimator="mc", generator=torch.Generator().manual_seed(0), n_samples=7
    )
    close(fim(m.params, noise), drawn, 1e-13, "noise drawn by the generator")
    both = vmap(fim)(trees.stack([m.params, m.params]), torch.stack([noise, 1 - noise]))
    close(trees.unstack(both)[1], fim(m.params, 1 - noise), 1e-12, "vmap over noise")


def test_more_samples_are_one_mean():
    m = MODELS["mlp"]
    noise = torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    each = [fisher.fim(m.f, m.params, m.x, PMatDense, estimator="mc", noise=n[None]).matrix for n in noise]
    whole = fisher.fim(m.f, m.params, m.x, PMatDense, estimator="mc", noise=noise).matrix
    close(whole, sum(each) / 4, 1e-12, "mean over samples")


def test_tree_inputs():
    f = lambda p, x: torch.tanh(x["a"] @ p["w"]) * x["b"]
    x = {"a": torch.ones(4, 3, dtype=D), "b": torch.linspace(1, 2, 8, dtype=D).reshape(4, 2)}
    p = {"w": torch.linspace(-1, 1, 6, dtype=D).reshape(3, 2)}
    g = lambda p, x: torch.tanh(x[:, :3] @ p["w"]) * x[:, 3:]
    close(
        fisher.fim(f, p, x and [(x, None)], PMatDense).matrix,
        fisher.fim(g, p, torch.cat([x["a"], x["b"]], 1), PMatDense).matrix,
        1e-13,
        "inputs as a dict",
    )


def test_bad_data():
    m = MODELS["mlp"]
    bad = m.x.clone()
    bad[2, 1] = float("nan")
    with pytest.raises(ValueError, match=r"data: batch 1: got 1 of 15 entries NaN or infinite.*clean or drop"):
        fisher.fim(m.f, m.params, [m.x, bad])
    with pytest.raises(ValueError, match="data: batch 0: got 1 of 15"):
        vmap(lambda p: fisher.fim(m.f, p, bad))(trees.stack([m.params, m.params]))
    with pytest.raises(ValueError, match=r"params: a.bias: got 4 of 4 entries NaN"):
        fisher.fim(m.f, trees.replace(m.params, "a.bias", torch.full((4,), float("nan"), dtype=D)), m.x)
    with pytest.raises(ValueError, match=r"data: got no batch.*exhausted generator"):
        fisher.fim(m.f, m.params, iter([]))
    with pytest.raises(ValueError, match="data: got no example"):
        fisher.fim(m.f, m.params, m.x[:0])
    with pytest.raises(TypeError, match="data: got int"):
        fisher.fim(m.f, m.params, 3)
    with pytest.raises(TypeError, match="data: batch 0: weight: got int, expected a tensor"):
        fisher.fim(m.f, m.params, [(m.x, 1, 2)])
    with pytest.raises(TypeError, match="data: batch 0: got tuple of length 4"):
        fisher.fim(m.f, m.params, [(m.x, 1, 2, 3)])
    with pytest.raises(ValueError, match="noise: got several batches"):
        fisher.fim(m.f, m.params, [m.x, m.x], estimator="mc", noise=torch.rand(1, 5, 3, dtype=D))


@pytest.mark.parametrize("name", ["mlp", "matmul_joined_bias"])
def test_wrong_shape_of_x_names_the_layer(name):
    m = MODELS[name]
    first = {"mlp": "a.weight", "matmul_joined_bias": "w"}[name]
    with pytest.raises(
        ValueError, match=rf"{first}: the layer's input has shape \(5, 7\), expected \[..., 3\]; the last axis"
    ):
        fisher.fim(m.f, m.params, torch.ones(5, 7, dtype=D))
    layers = fisher.LayerCollection.from_function(m.f, m.params, m.x)
    with pytest.raises(ValueError, match=f"{first}: the layer's input"):
        fisher.fim(m.f, m.params, torch.ones(5, 7, dtype=D), layers=layers)


def test_overflow_of_the_function_is_reported():
    f = lambda p, x: torch.exp(1e3 * x @ p["w"])
    params, x = {"w": torch.ones(3, 2, dtype=D)}, torch.ones(2, 3, dtype=D)
    with pytest.raises(ValueError, match=r"f\(params, x\): got 4 of 4 entries NaN or infinite.*f overflows"):
        fisher.fim(f, params, x, likelihood="gaussian")
    layers = fisher.LayerCollection.from_function(f, params, 0.0 * x)
    with pytest.raises(ValueError, match=r"fim: factors.w.1: got 4 of 4 entries NaN"):
        fisher.fim(f, params, x, likelihood="gaussian", layers=layers)
    assert torch.isnan(fisher.fim(f, params, x, layers=layers, check_finite=False).factors["w"][1]).any()


def test_unknown_options():
    m = MODELS["mlp"]
    with pytest.raises(
        ValueError, match=r"representation: got 'dict', expected one of \['PMatBlockDiag', 'PMatDense', 'PMatDiag', "
    ):
        fisher.fim(m.f, m.params, m.x, dict)
    with pytest.raises(ValueError, match="sharing: got 'mean'"):
        fisher.fim(m.f, m.params, m.x, sharing="mean")
    with pytest.raises(TypeError, match="regul"):
        fisher.fim(m.f, m.params, m.x, regul=1.0)


def test_one_class_has_no_information():
    with pytest.warns(UserWarning, match="one class, whose probability is 1"):
        F = fisher.fim(lambda p, x: x @ p["w"], {"w": torch.ones(3, 1, dtype=D)}, torch.ones(2, 3, dtype=D), PMatDense)
    assert torch.equal(F.matrix, torch.zeros(3, 3, dtype=D))


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_data_loaders(representation):
    m = MODELS["mlp"]
    sets = torch.utils.data.TensorDataset(m.x, torch.zeros(len(m.x))), torch.utils.data.TensorDataset(m.x)
    want = fisher.fim(m.f, m.params, m.x, representation)
    for data in sets:
        loader = torch.utils.data.DataLoader(data, batch_size=2)  # the last batch is smaller
        close(fisher.fim(m.f, m.params, loader, representation), want, 1e-12, "DataLoader")


def test_progress_bar_shows_batches(capsys):
    m = MODELS["mlp"]
    fisher.fim(m.f, m.params, [m.x, m.x], progress=True)
    assert "fim" in capsys.readouterr().err


def test_float32_and_half():
    m = MODELS["mlp"]
    single = trees.map(lambda t: t.float(), m.params)
    F = fisher.fim(m.f, single, m.x.float())
    assert {t.dtype for t in trees.leaves(F)} == {torch.float32}
    close(trees.map(lambda t: t.double(), F), fisher.fim(m.f, m.params, m.x), 1e-5, "float32")
    half = trees.map(lambda t: t.bfloat16(), m.params)
    F = fisher.fim(m.f, half, m.x.bfloat16())
    step = F.solve(half, regul=0.1)
    assert {t.dtype for t in trees.leaves(step)} == {torch.bfloat16}
    want = fisher.fim(m.f, m.params, m.x).solve(m.params, regul=0.1)
    close(trees.map(lambda t: t.double(), step), want, 0.2, "bfloat16")


def test_a_huge_leaf_without_a_rule_is_refused_before_memory_is():
    f = lambda p, x: x @ p["w"] * p["big"].sum()
    params = {"w": torch.ones(3, 2), "big": torch.ones(40_000)}
    with pytest.raises(
        ValueError, match=r"big: sum has no Kronecker factors, so its block is exact: .*40,000 x 40,000 is 6.4 GB"
    ):
        fisher.fim(f, params, torch.ones(2, 3), largest_block=None)
    assert fisher.fim(f, params, torch.ones(2, 3)).exact["big"].shape == (40_000,), "a diagonal beyond the limit"
    assert fisher.fim(f, params, torch.ones(2, 3), PMatDiag).size(0) == 40_006


def test_inside_no_grad():
    m = MODELS["mlp"]
    with torch.no_grad():
        close(fisher.fim(m.f, m.params, m.x), fisher.fim(m.f, m.params, m.x), 0.0, "no_grad")
        got = fisher.fim(m.f, m.params, m.x, PMatDense)
    close(got, fisher.fim(m.f, m.params, m.x, PMatDense), 1e-14, "no_grad")


def test_leaves_of_several_dtypes_give_a_matrix_of_the_widest():
    """A float32 layer behind a bfloat16 one keeps its numbers, whatever their names."""
    for names in (("a", "z"), ("z", "a")):
        half, full = (f"{n}.weight" for n in names)
        f = lambda p, x: torch.tanh(x.bfloat16() @ p[half].T).float() @ p[full].T  # noqa: B023
        draw = torch.Generator().manual_seed(0)
        params = {half: torch.randn(5, 3, generator=draw).bfloat16(), full: torch.randn(2, 5, generator=draw)}
        x = torch.randn(6, 3, generator=draw)
        for representation in (fisher.PMatKFAC, fisher.PMatDiag, fisher.PMatDense):
            F = fisher.fim(f, params, x, representation)
            assert F.dtype == torch.float32
        wide = fisher.fim(f, params, x, fisher.PMatBlockDiag).blocks
        single = lambda p, x: torch.tanh(x @ p[half].T) @ p[full].T  # noqa: B023
        exact = fisher.fim(single, {n: t.float() for n, t in params.items()}, x, fisher.PMatBlockDiag).blocks
        close(
            wide[full.partition(".")[0]], exact[full.partition(".")[0]], 0.02, "but for the rounding of the first layer"
        )
