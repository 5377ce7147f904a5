"""Every optimizer of torch: three steps, growth, the state carried, and the next step of old entries is what it was.

Gradients are given, so that new entries may have any. Elementwise optimizers step old entries bit by bit as before, whatever
new entries do; those that mix the entries of a parameter do so where new ones have no gradient, up to a factor that is known.
"""

import copy
import inspect
from collections import namedtuple

import pytest
import torch

import growth
from growth.carry.factors import squared
from growth.carry.optimizers import swap_parameters
from growth.surgery.moves import Move
from linmaps import trees

OLD = {"zeta": (4, 3), "b": (4,), "alpha": (2, 4), "kernel": (2, 3, 2, 2), "one": (1,), "still": (5, 2)}
NEW = {"zeta": (6, 3), "b": (6,), "alpha": (2, 6), "kernel": (4, 3, 2, 2), "one": (2,), "still": (5, 2)}
MATRICES = ("zeta", "alpha", "still")
ELEMENTWISE = {
    "ASGD": [{"lr": 0.1, "t0": 1}, {"foreach": True}],
    "Adadelta": [{"lr": 1.0, "weight_decay": 0.1}],
    "Adagrad": [{"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1}],
    "Adam": [{"lr": 0.1}, {"amsgrad": True, "weight_decay": 0.1}, {"foreach": True}, {"fused": True}],
    "AdamW": [{"lr": 0.1, "amsgrad": True}],
    "Adamax": [{"lr": 0.1}, {"foreach": True}],
    "NAdam": [{"lr": 0.1, "decoupled_weight_decay": True, "weight_decay": 0.1}],
    "RAdam": [{"lr": 0.1}],
    "RMSprop": [{"lr": 0.1, "centered": True, "momentum": 0.9}],
    "Rprop": [{"lr": 0.1}],
    "SGD": [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
}
MIXING = {
    "Adafactor": [{"lr": 0.1}, {"lr": 0.1, "foreach": True}],
    "LBFGS": [{"lr": 0.1, "max_iter": 2, "history_size": 4}],
    "Muon": [{"lr": 0.1, "weight_decay": 0.0}],
}
SPARSE = {"SparseAdam": [{"lr": 0.1}]}
ALL = {**ELEMENTWISE, **MIXING, **SPARSE}
CASES = [(name, options) for name, every in ALL.items() for options in every]


def test_all_optimizers_of_torch_are_here():
    classes = {n for n in dir(torch.optim) if inspect.isclass(getattr(torch.optim, n))} - {"Optimizer"}
    assert classes == set(ALL)


def shapes_of(name, shapes):
    return {n: s for n, s in shapes.items() if len(s) == 2} if name in ("Muon", "SparseAdam") else shapes


def draw(shapes, seed):
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in shapes.items()}


def corner(t, like):
    return t[tuple(slice(0, n) for n in like.shape)]


def around(old, new):
    """`new` with `old` in the corner."""
    return {
        n: new[n].index_put(torch.meshgrid(*(torch.arange(k) for k in t.shape), indexing="ij"), t)
        for n, t in old.items()
    }


def step(optimizer, params, gradient, sparse):
    def closure():
        for n, t in params.items():
            t.grad = gradient[n].to_sparse(1) if sparse else gradient[n].clone()
        return torch.zeros((), dtype=torch.float64)

    optimizer.step(closure)


def live(params):
    return {n: t.detach().clone().requires_grad_() for n, t in params.items()}


def clear(params):
    for t in params.values():
        t.grad = None
    return params


def trained(name, options):
    params = live(draw(shapes_of(name, OLD), 0))
    optimizer = getattr(torch.optim, name)(list(params.values()), **options)
    for seed in (1, 2, 3):
        step(optimizer, params, draw(shapes_of(name, OLD), seed), name in SPARSE)
    return params, optimizer


def carried(way, name, options, params, optimizer, grown):
    """(params, optimizer) of the grown ones, and the state of the old optimizer as it was."""
    if way == "swap":
        larger = swap_parameters(optimizer, params, grown)
        return larger, optimizer
    larger = live(grown)
    other = getattr(torch.optim, name)(list(larger.values()), **options)
    plain = {n: t.detach() for n, t in params.items()}
    other.load_state_dict(growth.grow_like(optimizer.state_dict(), plain, grown, order="insertion"))
    return larger, other


def moved(params, optimizer, gradient, sparse=False):
    before = {n: t.detach().clone() for n, t in params.items()}
    step(optimizer, params, gradient, sparse)
    return {n: params[n].detach() - before[n] for n in params}


@pytest.mark.parametrize("way", ["state dict", "swap"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_next_step_of_old_entries(name, options, way):
    params, optimizer = trained(name, options)
    if way == "swap" and name != "LBFGS":  # of which a copy does not work
        twin, twin_optimizer = copy.deepcopy((clear(params), optimizer))
    else:  # loading casts numbers too
        twin = live(params)
        twin_optimizer = getattr(torch.optim, name)(list(twin.values()), **options)
        twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    old, new = shapes_of(name, OLD), shapes_of(name, NEW)
    any_new = draw(new, 7) if name not in MIXING else {n: torch.zeros(s).double() for n, s in new.items()}
    grown = around({n: t.detach() for n, t in params.items()}, any_new)
    larger, optimizer = carried(way, name, options, params, optimizer, grown)
    gradient = draw(old, 4)
    got = moved(larger, optimizer, around(gradient, any_new), name in SPARSE)
    want = moved(twin, twin_optimizer, gradient, name in SPARSE)
    for n in old:
        mine, factor = corner(got[n], want[n]), 1.0
        if name in ("Adafactor", "Muon"):  # sizes of whole parameters are in it
            factor = (mine * want[n]).sum() / (want[n] * want[n]).sum()
        tol = {"Muon": 1e-12, "Adafactor": 1e-12, "LBFGS": 1e-12}.get(name, 0.0)
        assert (mine - factor * want[n]).abs().max() <= tol * want[n].abs().max(), n
        assert 0.5 < float(factor) < 2
        if name not in MIXING:
            new_ones = got[n][around({n: torch.zeros(old[n])}, {n: torch.ones(new[n])})[n].bool()]
            assert (new_ones != 0).all(), "new entries are trained"


def test_the_estimate_of_adafactor_is_kept():
    """Over growth of rows, of columns, of both; after another step without gradient there; and back."""
    r = torch.rand(4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c = torch.rand(1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    c = c * r.mean() / c.mean()
    estimate = lambda s: s["row_var"] @ s["col_var"] / s["row_var"].mean()
    params = {"w": torch.ones(4, 3).double()}
    state = {"state": {0: {"row_var": r, "col_var": c}}, "param_groups": [{"params": [0]}]}
    for shape in ((6, 3), (4, 5), (7, 4)):
        grown = {"w": torch.ones(shape).double()}
        for fill in ("zero", "mean"):
            new = growth.grow_like(state, params, grown, fill=fill)["state"][0]
            assert torch.allclose(estimate(new)[:4, :3], estimate(state["state"][0]), rtol=1e-14)
        assert torch.allclose(estimate(new).mean(), estimate(state["state"][0]).mean(), rtol=1e-12)
        zero = growth.grow_like(state, params, grown)["state"][0]
        g = torch.zeros(shape).double()
        g[:4, :3] = draw({"g": (4, 3)}, 2)["g"]
        one = {
            "row_var": 0.5 * r + 0.5 * g[:4, :3].square().mean(1, True),
            "col_var": 0.5 * c + 0.5 * g[:4, :3].square().mean(0, True),
        }
        two = {"row_var": 0.5 * zero["row_var"] + 0.5 * g.square().mean(1, True),
               "col_var": 0.5 * zero["col_var"] + 0.5 * g.square().mean(0, True)}  # fmt: skip
        assert torch.allclose(estimate(two)[:4, :3], estimate(one), rtol=1e-13)


@pytest.mark.parametrize("squeezed", [False, True])
def test_factors_of_pruned_units(squeezed):
    params = {"a": {"weight": torch.ones(4, 3).double()}, "b": {"weight": torch.ones(2, 4).double()}}
    pair = growth.Pair("a", "b")
    names = ("exp_avg_sq_row", "exp_avg_sq_col") if squeezed else ("row_var", "col_var")
    entries, estimates = {}, {}
    for i, shape in enumerate([(4, 3), (2, 4)]):
        V = draw({"V": shape}, i)["V"].square()
        r, c = V.mean(1, keepdim=True), V.mean(0, keepdim=True)
        entries[i] = dict(zip(names, (r[:, 0], c[0]) if squeezed else (r, c))) | {"step": torch.tensor(3.0)}
        estimates[i] = r @ c / r.mean()
    state = {"state": entries, "param_groups": [{"params": [0, 1]}]}
    small = growth.prune_like(state, params, pair, [1, 2])["state"]
    want = {0: estimates[0][[0, 3]], 1: estimates[1][:, [0, 3]]}
    for i, entry in small.items():
        r, c = (t.reshape(s) for t, s in zip((entry[n] for n in names), ((-1, 1), (1, -1))))
        assert torch.allclose(r @ c / r.mean(), want[i], rtol=1e-13)
        assert torch.allclose(r.mean(), c.mean(), rtol=1e-13)
        assert entry["step"] == 3


W = {"w": torch.ones(4, 3).double(), "b": torch.ones(4).double()}
LARGER = {"w": torch.ones(6, 3).double(), "b": torch.ones(6).double()}


def psd(n, seed=0):
    a = draw({"a": (n, n + 2)}, seed)["a"]
    return a @ a.mT


def root(A):
    values, vectors = torch.linalg.eigh(A)
    return vectors @ torch.diag(values**-0.25) @ vectors.mT


KINDS = {
    "names": lambda L, R: {"precond_0": L, "precond_1": R},
    "a list": lambda L, R: {"GG": [L, R], "momentum": torch.ones(4, 3).double()},
    "a tuple": lambda L, R: {"factors": (L, R), "step": 3},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("live_one", [False, True])
def test_matrices_of_axes_as_of_shampoo(kind, live_one):
    """Steps L^-1/4 G R^-1/4 of old entries are the same, whatever new ones do."""
    L, R = psd(4), psd(3, 1)
    entry = KINDS[kind](L, R)
    if live_one:
        params = {n: t.clone().requires_grad_() for n, t in W.items()}
        optimizer = torch.optim.SGD(list(params.values()), 0.1)
        optimizer.state[params["w"]] = entry
        larger = swap_parameters(optimizer, params, LARGER)
        new = optimizer.state[larger["w"]]
    else:
        dicts = {"state": {0: {}, 1: entry}, "param_groups": [{"params": [0, 1]}]}
        new = growth.grow_like(dicts, W, LARGER, order="leaves")["state"][1]
        by_path = growth.grow_like({"opt": {"w": entry}}, W, LARGER)["opt"]["w"]
        for a, b in zip(trees.leaves(new), trees.leaves(by_path), strict=True):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    first, second = [t for t in trees.leaves(new) if getattr(t, "ndim", 0) == 2 and t.shape[0] == t.shape[1]]
    assert (first.shape, second.shape) == ((6, 6), (3, 3))
    g = draw({"g": (6, 3)}, 5)["g"]
    got = root(first) @ g @ root(second)
    assert torch.allclose(got[:4], root(L) @ g[:4] @ root(R), rtol=1e-10)
    assert got.isfinite().all()
    assert got[4:].abs().max() < 10 * got[:4].abs().max()


def test_bases_stay_bases():
    Q = torch.linalg.qr(draw({"q": (4, 4)}, 3)["q"]).Q
    new = growth.grow_like({"w": {"Q": [Q, torch.eye(3).double()]}}, W, LARGER)["w"]["Q"]
    assert torch.allclose(new[0] @ new[0].mT, torch.eye(6).double(), atol=1e-12)
    assert torch.equal(new[0][:4, :4], Q)
    with pytest.raises(ValueError, match="is an orthonormal basis, of which a part is none"):
        growth.prune_like(
            {"a.weight": {"Q": [Q]}}, {"a.weight": W["w"], "b.weight": W["w"].mT}, growth.Pair("a", "b"), [0]
        )
    kept = growth.prune_like(
        {"a.weight": {"GG": [psd(4)]}}, {"a.weight": W["w"], "b.weight": W["w"].mT}, growth.Pair("a", "b"), [0]
    )
    assert torch.equal(kept["a.weight"]["GG"][0], psd(4)[1:, 1:])


def test_what_is_not_known_is_named():
    square, larger = {"w": torch.ones(3, 3)}, {"w": torch.ones(5, 3)}
    with pytest.raises(ValueError, match=r"state: w\.G: shape \(3, 3\) fits several axes|two"):
        squared(torch.ones(3, 3), Move((3, 3), (5, 3)), None, "state: w.G")
    with pytest.raises(
        ValueError, match=r"v_row\.w of w \(4, 3\), which becomes \(6, 3\), has shape \(4,\), .* start such state anew"
    ):
        growth.grow_like({"v_row": {"w": torch.ones(4), "b": torch.ones(1)}}, W, LARGER)
    with pytest.raises(ValueError, match=r"shapes \[\[\(3, 1\), \(3, 3\)\]\], .* start anew what"):
        growth.grow_like(
            {"state": {0: {"m": torch.ones(3, 3), "acc": torch.ones(3, 1)}}, "param_groups": [{"params": [0]}]},
            square,
            larger,
        )


def test_numbers_are_never_taken_for_entries():
    """Steps `[]` and `[1]`, per parameter or for all, of a parameter with a single entry too."""
    one, two = {"w": torch.ones(1)}, {"w": torch.ones(3)}
    dicts = {"state": {0: {"step": torch.tensor([7.0]), "m": torch.ones(1)}}, "param_groups": [{"params": [0]}]}
    new = growth.grow_like(dicts, one, two)["state"][0]
    assert torch.equal(new["step"], torch.tensor([7.0]))
    assert torch.equal(new["m"], torch.tensor([1.0, 0, 0]))
    trees_of = {"count": {"w": torch.tensor(3), "b": torch.tensor([3])}, "mu": W}
    kept = growth.grow_like(trees_of, W, LARGER)
    assert kept["count"]["w"] == 3
    assert kept["count"]["b"].shape == (1,)
    assert kept["mu"]["w"].shape == (6, 3)


ScaleByAdam = namedtuple("ScaleByAdam", "mu nu count")
Empty = namedtuple("Empty", "")


def test_states_of_functional_libraries():
    """Chains of named tuples with a counter per leaf, tuples of trees, moments of Lion."""
    counts = {n: torch.tensor(3) for n in W}
    state = (ScaleByAdam(W, W, counts), Empty(), (torch.tensor(2), {"m": W}), [W, {"lr": 0.1}])
    new = growth.grow_like(state, W, LARGER)
    assert type(new[0]) is ScaleByAdam
    assert type(new[1]) is Empty
    for tree in (new[0].mu, new[0].nu, new[2][1]["m"], new[3][0]):
        trees.check_like(tree, LARGER, "carried")
    assert new[0].count == counts
    assert new[3][1] == {"lr": 0.1}


def test_iterates_beside_params_start_at_the_grown_ones():
    """Schedule-free z, averages: by the difference, as the docstring says."""
    z = {n: t + 0.5 for n, t in W.items()}
    grown = {n: 2 * t for n, t in LARGER.items()}
    new = trees.add(grown, growth.grow_like({"z": trees.sub(z, W)}, W, grown)["z"])
    for n, t in new.items():
        assert torch.equal(corner(t, W[n]), corner(grown[n], W[n]) + 0.5)
        assert torch.equal(t[len(W[n]) :], grown[n][len(W[n]) :])


def test_averaged_models_and_schedulers():
    from torch.optim.swa_utils import AveragedModel

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    averaged = AveragedModel(model, use_buffers=True)
    averaged.update_parameters(model)
    params = {n: t.detach() for n, t in model.state_dict().items()}
    grown = growth.widen(params, growth.Pair("0", "2", norm="1"), 2)
    new = growth.grow_like(averaged.state_dict(), params, grown)
    assert new["n_averaged"] == 1
    assert {n.removeprefix("module."): t.shape for n, t in new.items() if n != "n_averaged"} == {
        n: t.shape for n, t in grown.items()
    }
    assert new["module.1.num_batches_tracked"].dtype == torch.int64
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    both = growth.grow_like({"scheduler": scheduler.state_dict(), "params": params}, params, grown)
    assert both["scheduler"] == scheduler.state_dict()
