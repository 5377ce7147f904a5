"""The table of doors: each entry to function space and to second derivatives, and what each refuses or takes."""

import gc
import weakref
from collections import OrderedDict, UserDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

import fisher
from linmaps import trees
from tests.fisher.checks.test_doors import RANDOM, inputs, model
from tests.laws import close

T = torch.arange(6) % 2
OWN = "0.weight"


def cross_entropy(y, t):
    return F.cross_entropy(y, t, reduction="none")


def found(f, p, x):
    """Layers of f, found where it is deterministic (a collection says nothing of the mode that f is in)."""
    return fisher.LayerCollection.from_function(f, p, x, check=False)


ENTRIES = {
    "jacobian": lambda f, p, x, **k: fisher.jacobian(f, p, x, **k),
    "jacobian by layers": lambda f, p, x, **k: fisher.jacobian(f, p, x, **{"layers": found(f, p, x), **k}),
    "jacobian implicit": lambda f, p, x, **k: fisher.jacobian(f, p, x, fisher.PFMapImplicit, **k),
    "gram": lambda f, p, x, **k: fisher.gram(f, p, x, **k),
    "gram by layers": lambda f, p, x, **k: fisher.gram(f, p, x, **{"layers": found(f, p, x), **k}),
    "gram of two": lambda f, p, x, **k: fisher.gram(f, p, inputs(2)[:, : x.shape[1]].to(x.dtype), x, **k),
    "hessian": lambda f, p, x, **k: fisher.hessian(lambda p, x, t: cross_entropy(f(p, x), t).mean(), p, (x, T), **k),
    "hessian of [B]": lambda f, p, x, **k: fisher.hessian(lambda p, x, t: cross_entropy(f(p, x), t), p, (x, T), **k),
    "hessian implicit": lambda f, p, x, **k: fisher.hessian(
        lambda p, x, t: cross_entropy(f(p, x), t).mean(), p, [(x[:4], T[:4]), (x[4:], T[4:])], fisher.PMatImplicit, **k
    ),
    "ggn": lambda f, p, x, **k: fisher.ggn(f, cross_entropy, p, (x, T), **k),
    "ggn diagonal": lambda f, p, x, **k: fisher.ggn(f, cross_entropy, p, (x, T), fisher.PMatDiag, **k),
    "ggn implicit": lambda f, p, x, **k: fisher.ggn(f, cross_entropy, p, (x, T), fisher.PMatImplicit, **k),
    "ggn of batches": lambda f, p, x, **k: fisher.ggn(f, cross_entropy, p, [(x[:2], T[:2]), (x[2:], T[2:])], **k),
}
OF = {"PMatImplicit.of": lambda f, p, x, **k: fisher.PMatImplicit.of(f, p, [x[:2], x[2:]], **k)}
ALL = ENTRIES | OF
SUB = {k: v for k, v in ENTRIES.items() if "by layers" not in k}


def net():
    return model(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def numbers(made):
    """What is compared of a result: its matrix."""
    return made.to_torch()


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ALL)
@pytest.mark.parametrize("name", RANDOM)
def test_random_functions_are_refused(entry, name):
    _, p, f = RANDOM[name]()
    with pytest.raises(ValueError, match=r"is random: two runs on the same input differ.*model\.eval\(\)"):
        ALL[entry](f, p, inputs())


@pytest.mark.parametrize("entry", ALL)
def test_random_functions_are_refused_in_ensembles(entry):
    _, p, f = RANDOM["dropout"]()
    for randomness in ("error", "different"):
        with pytest.raises(ValueError, match=r"is random: two runs"):
            vmap(lambda p: numbers(ALL[entry](f, p, inputs())), randomness=randomness)(trees.stack([p, p]))


def batch_norm(**options):
    return model(nn.Linear(3, 4), nn.BatchNorm1d(4, **options), nn.Tanh(), nn.Linear(4, 2))


def without_statistics():
    m, p, f = batch_norm(track_running_stats=False)
    m.eval()
    return m, p, f


def between(mix):
    m, p, f = net()
    return m, p, lambda p, x: f(p, mix(x))


MIXING = {
    "batch norm in train mode": batch_norm,
    "batch norm without statistics": without_statistics,
    "centred": lambda: between(lambda x: x - x.mean(0)),
    "centred without gradient": lambda: between(lambda x: x - x.mean(0).detach()),
    "of those before": lambda: between(lambda x: x.cumsum(0)),
    "of the next": lambda: between(lambda x: torch.cat([x[:-1], x[-2:-1] + x[-1:]])),
}


@pytest.mark.parametrize("entry", ALL)
@pytest.mark.parametrize("name", MIXING)
def test_examples_that_mix_are_refused_before_anything_moves(entry, name):
    m, p, f = MIXING[name]()
    before = trees.map(torch.clone, dict(m.named_buffers()))
    with pytest.raises(ValueError, match=r"depends on other examples.*eval"):
        ALL[entry](f, p, inputs())
    close(dict(m.named_buffers()), before, 0.0, "buffers")


@pytest.mark.parametrize("entry", ALL)
def test_tokens_that_mix_are_refused(entry):
    """Inputs without a gradient: the outputs show it."""
    p = {"table": inputs(4)[:, :2].contiguous(), "w": inputs(2)[:, :2].contiguous()}
    f = lambda p, x: (lambda e: (e - e.mean(0)) @ p["w"])(p["table"][x[:, 0]])
    x = torch.arange(6)[:, None] % 4
    if entry == "gram of two":
        with pytest.raises(ValueError, match="depends on other examples"):
            fisher.gram(f, p, x[:2], x)
        return
    with pytest.raises(ValueError, match=r"depends on other examples.*eval"):
        ALL[entry](f, p, x)


@pytest.mark.parametrize("entry", ALL)
def test_nan_is_named_and_taken_where_it_is_asked_for(entry):
    _, p, f = net()
    x = inputs()
    x[5, 1] = torch.nan
    with pytest.raises(ValueError, match=r"data: batch \d: .*1 of \d+ entries NaN or infinite.*check_finite=False"):
        ALL[entry](f, p, x)
    broken = {**p, OWN: p[OWN] * torch.inf}
    with pytest.raises(ValueError, match=r"params: 0\.weight: got 12 of 12 entries NaN or infinite"):
        ALL[entry](f, broken, inputs())
    with pytest.raises(ValueError, match=r"NaN or infinite, expected finite numbers"):
        ALL[entry](lambda p, x: f(p, x) * x.new_full((), torch.inf), p, inputs())
    made = ALL[entry](f, p, x, check_finite=False)
    if "implicit" not in entry and entry not in OF:
        assert numbers(made).isnan().any()
    ALL[entry](f, p, x, check=False, check_finite=False)


def test_derivatives_that_torch_has_not_are_named():
    loss = lambda p, x: torch.linalg.det(p["A"]) + 0 * x.mean()
    for representation in (fisher.PMatDense, fisher.PMatImplicit):
        with pytest.raises(ValueError, match=r"hessian: A: got 9 of 9 entries NaN or infinite"):
            fisher.hessian(loss, {"A": torch.eye(3).double()}, inputs(2), representation)
    root = lambda p, x: (p["w"] * x).norm(dim=1, keepdim=True)
    with pytest.raises(ValueError, match=r"jacobian: .*NaN or infinite"):
        fisher.jacobian(lambda p, x: (p["w"] ** 2 * x**2).sum(1).sqrt(), {"w": torch.zeros(3).double()}, inputs())
    assert root({"w": torch.ones(3)}, torch.ones(1, 3)).shape == (1, 1)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if "jacobian" in e or e == "gram"])
def test_a_target_is_refused_where_there_is_no_use_for_it(entry):
    _, p, f = net()
    call = {"gram": fisher.gram}.get(entry, fisher.jacobian)
    for x in ((inputs(), T), [(inputs(), T)]):
        with pytest.raises(ValueError, match=r"x: got a pair \(x, target\), expected inputs alone"):
            call(f, p, x)
    both = lambda p, x: f(p, x[0]) + x[1]
    close(
        call(both, p, ((inputs(), inputs()[:, :2]),)).to_torch(), call(f, p, inputs()).to_torch(), 1e-13, "two inputs"
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_that_is_not_of_each_example_has_no_ggn(reduction):
    _, p, f = net()
    for data in ((inputs(), T), [(inputs()[:2], T[:2]), (inputs()[2:], T[2:])]):
        with pytest.raises(
            ValueError, match=r"loss\(y, target\): got a result of shape \(\), expected \[\d\].*reduction='none'"
        ):
            fisher.ggn(f, lambda y, t: F.cross_entropy(y, t, reduction=reduction), p, data)
    with pytest.raises(ValueError, match=r"f\(params, x\): got shape \(\), expected a tensor \[6, ...\]"):
        fisher.ggn(lambda p, x: f(p, x).sum(), lambda y, t: y**2 * t.double(), p, (inputs(), T))
    with pytest.raises(ValueError, match=r"loss\(y, target\): the output of one example depends on other examples"):
        fisher.ggn(f, lambda y, t: ((y - y.mean(0)) ** 2).sum(1), p, (inputs(), T))


IGNORED = torch.tensor([0, 1, -100, 0, -100, 1])
NO_MEANS = {
    "class weights": lambda y, t: F.cross_entropy(y, t, weight=torch.tensor([0.2, 3.0]).double()),
    "ignored": lambda y, t: F.cross_entropy(y, IGNORED[: len(t)] if len(t) == 6 else t),
    "sum": lambda y, t: F.cross_entropy(y, t, reduction="sum"),
    "root of the mean": lambda y, t: cross_entropy(y, t).mean().sqrt(),
}


@pytest.mark.parametrize("name", NO_MEANS)
def test_hessian_of_what_is_no_mean_over_examples_is_refused(name):
    _, p, f = net()
    loss = lambda p, x, t: NO_MEANS[name](f(p, x), t)
    with pytest.raises(ValueError, match=r"is not the mean|depends on other examples"):
        fisher.hessian(loss, p, (inputs(), T))


def test_hessian_of_weighted_losses_of_each_example_is_that_of_any_batches():
    _, p, f = net()
    weight = torch.tensor([0.2, 3.0]).double()
    loss = lambda p, x, t: F.cross_entropy(f(p, x), t, weight=weight, reduction="none")
    whole = fisher.hessian(loss, p, (inputs(), T)).to_torch()
    x = inputs()
    close(fisher.hessian(loss, p, [(x[:1], T[:1]), (x[1:], T[1:])]).to_torch(), whole, 1e-13, "batches")
    close(
        fisher.hessian(loss, p, [(x[b : b + 1], T[b : b + 1]) for b in range(6)]).to_torch(), whole, 1e-13, "one by one"
    )
    close(fisher.hessian(lambda *a: loss(*a).mean(), p, (x, T)).to_torch(), whole, 1e-13, "mean")
    single = [(x[b : b + 1], T[b : b + 1]) for b in range(6)]
    with pytest.raises(ValueError, match="is not the mean"):  # one example each: shown by two of them together
        fisher.hessian(lambda p, x, t: F.cross_entropy(f(p, x), t, weight=weight), p, single)


# --- taken ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", SUB)
@pytest.mark.parametrize("names", [["0"], ["2"]])
def test_a_sub_collection_gives_the_matrix_of_its_leaves(entry, names):
    _, p, f = net()
    layers = fisher.LayerCollection.from_function(f, p, inputs())
    own = layers.select(names)
    got, frozen = SUB[entry](f, p, inputs(), layers=own), {k: t for k, t in p.items() if k[0] != names[0]}
    want = SUB[entry](lambda q, x: f({**frozen, **q}, x), {k: t for k, t in p.items() if k[0] == names[0]}, inputs())
    close(numbers(got), numbers(want), 1e-12, entry)
    close(numbers(SUB[entry](f, p, inputs(), layers=layers)), numbers(SUB[entry](f, p, inputs())), 1e-12, "all")
    with pytest.raises(ValueError, match=r"params \(of the LayerCollection\): leaves do not match"):
        SUB[entry](f, {"w": p[OWN]}, inputs(), layers=own)


def test_blocks_of_a_sub_collection():
    _, p, f = net()
    own = fisher.LayerCollection.from_function(f, p, inputs()).select(["2"])
    for make in (ENTRIES["ggn"], ENTRIES["hessian"]):
        blocks = lambda **k: make(f, p, inputs(), layers=own, **k)  # noqa: B023
        data = (inputs(), T)
        H = (
            fisher.ggn(f, cross_entropy, p, data, fisher.PMatBlockDiag, layers=own)
            if make is ENTRIES["ggn"]
            else fisher.hessian(
                lambda p, x, t: cross_entropy(f(p, x), t).mean(), p, data, fisher.PMatBlockDiag, layers=own
            )
        )
        close(H.to_torch(), blocks().to_torch(), 1e-12, "one block is all of it")


MAPPINGS = {
    "OrderedDict": lambda p: OrderedDict(reversed(p.items())),
    "UserDict": lambda p: UserDict(p),
    "ParameterDict": lambda p: nn.ParameterDict({k.replace(".", "_"): t for k, t in p.items()}),
}


@pytest.mark.parametrize("entry", ALL)
@pytest.mark.parametrize("name", ["OrderedDict", "UserDict"])
def test_params_in_any_mapping(entry, name):
    _, p, f = net()
    ordered = dict(reversed(p.items())) if name == "OrderedDict" else p
    got, want = ALL[entry](f, MAPPINGS[name](p), inputs()), ALL[entry](f, ordered, inputs())
    if name == "OrderedDict":  # its flat order is its own
        assert torch.allclose(numbers(got).sum(), numbers(want).sum(), atol=1e-10)
    else:
        close(numbers(got), numbers(want), 0.0, entry)


@pytest.mark.parametrize("entry", ALL)
def test_inputs_in_any_mapping(entry):
    _, p, f = net()
    if entry not in ("jacobian", "gram", "hessian", "ggn"):
        return
    whole = lambda p, x: f(p, x["x"])
    x = UserDict(x=inputs())
    got = {
        "jacobian": lambda f, x: fisher.jacobian(f, p, (x,)),
        "gram": lambda f, x: fisher.gram(f, p, (x,)),
        "hessian": lambda f, x: fisher.hessian(lambda p, x, t: cross_entropy(f(p, x), t).mean(), p, (x, T)),
        "ggn": lambda f, x: fisher.ggn(f, cross_entropy, p, (x, T)),
    }[entry]
    close(numbers(got(whole, x)), numbers(got(f, inputs())), 1e-13, entry)


@pytest.mark.parametrize("entry", ALL)
def test_parameters_are_taken_without_their_graph(entry):
    m, _, f = net()
    own = dict(m.named_parameters())
    made = ALL[entry](f, own, inputs())
    assert not any(t.requires_grad for t in trees.leaves(made))
    assert not numbers(made).requires_grad
    assert all(t.requires_grad for t in own.values())
    tracked = {k: t.detach().requires_grad_() for k, t in own.items()}
    numbers(ALL[entry](f, tracked, inputs())).pow(2).sum().backward()
    want = grad(lambda p: numbers(ALL[entry](f, p, inputs())).pow(2).sum())({k: t.detach() for k, t in own.items()})
    close(
        {k: torch.zeros_like(t) if t.grad is None else t.grad for k, t in tracked.items()},
        want,
        1e-9,
        "any other tensor keeps it",
    )


REPRESENTATIONS = [
    fisher.PMatDense, fisher.PMatBlockDiag, fisher.PMatDiag, fisher.PMatQuasiDiag, fisher.PMatKFAC, fisher.PMatEKFAC,
    fisher.PMatEKFACBlockDiag, fisher.PMatLowRank, fisher.PMatMixed, fisher.PMatEye, fisher.PMatImplicit,
]  # fmt: skip


@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_fim_takes_parameters_without_their_graph(representation):
    m, _, f = net()
    own, kept = dict(m.named_parameters()), []

    def watched(p, x):
        y = f(p, x)
        kept.append(weakref.ref(y))
        return y

    F_ = fisher.fim(watched, own, [(inputs()[:3], T[:3]), (inputs()[3:], T[3:])], representation)
    gc.collect()
    assert not any(t.requires_grad for t in trees.leaves(F_))
    assert not any(ref() is not None for ref in kept)
    as_dict = fisher.fim(f, UserDict(own), inputs(), representation)
    close(trees.leaves(as_dict), trees.leaves(fisher.fim(f, own, inputs(), representation)), 0.0, "mapping")
    ordered = OrderedDict(reversed(own.items()))
    v = {k: torch.ones_like(t) for k, t in own.items()}
    close(
        dict(fisher.fim(f, ordered, inputs(), representation).mv(v)),
        fisher.fim(f, own, inputs(), representation).mv(v),
        1e-12,
        "other order",
    )


def test_prelu_by_any_way():
    """torch's rule for vmap over examples of prelu sums the gradients of all of them."""
    _, p, f = model(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2))
    x = inputs()
    rows = [trees.leaves(grad(lambda p, b=b, c=c: f(p, x)[b, c])(p)) for b in range(6) for c in range(2)]
    want = torch.stack([torch.cat([t.flatten() for t in row]) for row in rows]).reshape(6, 2, -1)
    close(fisher.jacobian(f, p, x).to_torch(), want, 1e-13, "jacobian")
    F_ = fisher.PMatImplicit.of(f, p, x, "gaussian")
    dense = torch.einsum("bci,bcj->ij", want, want) / 6
    close(F_.to_torch(), dense, 1e-13, "products")
    close(F_.get_diag(), F_.layout.unravel(dense.diagonal()), 1e-13, "diagonal")
    close(F_.trace(), dense.trace(), 1e-13, "trace")


class Twice(torch.autograd.Function):
    """x; twice that under vmap."""

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g

    @staticmethod
    def jvp(ctx, v):
        return v

    @staticmethod
    def vmap(info, dims, x):
        return 2 * x, dims[0]


class Wrong(Twice):
    """x; half of its derivative in forward mode, twice of it in reverse mode under vmap."""

    @staticmethod
    def backward(ctx, g):
        return Twice.apply(g)

    @staticmethod
    def jvp(ctx, v):
        return 0.5 * v

    @staticmethod
    def vmap(info, dims, x):
        return x.clone(), dims[0]


@pytest.mark.parametrize(
    "entry", ["jacobian", "jacobian implicit", "hessian", "hessian implicit", "ggn", "ggn implicit"]
)
def test_derivatives_that_disagree_are_refused(entry):
    """An autograd.Function whose forward mode, or whose rule for vmap, is not that of its backward."""
    _, p, f = net()
    wrong = lambda q, x: f(q, Wrong.apply(x * q[OWN][0]))
    with pytest.raises(ValueError, match=r"differ, expected one derivative|do not add up to autograd's gradient"):
        ENTRIES[entry](wrong, p, inputs())


def test_the_modules_own_functional_call():
    """state_dict and named_parameters, in torch's order, as params and as v."""
    m = nn.Linear(3, 2).double()
    f = lambda p, x: functional_call(m, p, (x,))
    F_ = fisher.fim(f, dict(m.named_parameters()), inputs(), fisher.PMatImplicit)
    close(
        F_.mv(m.state_dict()),
        dict(fisher.fim(f, m.state_dict(), inputs(), fisher.PMatDense).mv(m.state_dict())),
        1e-12,
        "mv",
    )


LAYERS = {
    "LayerCollection": lambda f, p, x, **k: fisher.LayerCollection.from_function(f, p, x),
    "layer_io": lambda f, p, x, **k: fisher.layer_io(
        f, p, x, fisher.LayerCollection.from_function(net()[2], net()[1], inputs()), lambda y: torch.ones_like(y)[None]
    ),
    "fim": lambda f, p, x, **k: fisher.fim(f, p, x),
    "functional_laplace": lambda f, p, x, **k: fisher.recipes.functional_laplace(f, p, x),
    "example_gradients": lambda f, p, x, **k: fisher.example_gradients(
        lambda p, x, t: cross_entropy(f(p, x), t), p, (x, T)
    ),
}


@pytest.mark.parametrize("entry", [*ALL, *LAYERS])
def test_none_among_params_is_refused_by_its_path(entry):
    _, p, f = net()
    optional = lambda p, x: f({k: t for k, t in p["own"].items() if t is not None}, x)
    with pytest.raises(TypeError, match=r"params: own\.extra: got None, expected a tensor.*leave the key out"):
        (ALL | LAYERS)[entry](optional, {"own": p | {"extra": None}}, inputs())


@pytest.mark.parametrize("entry", [e for e in [*ENTRIES, *LAYERS] if e not in ("hessian implicit", "ggn of batches")])
def test_inputs_that_are_not_dense_are_refused(entry):  # those two cut x themselves, which torch refuses
    _, p, f = net()
    with pytest.raises(TypeError, match=r"got (a tensor of )?layout torch.sparse_coo, expected a dense.*to_dense"):
        (ALL | LAYERS)[entry](f, p, inputs().to_sparse())
