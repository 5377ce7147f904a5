"""The doors of function space and of second derivatives: what each entry point does with what it should refuse."""

import threading
from collections import OrderedDict, UserDict

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

import fisher
from fisher.checks import agreement, purity
from linmaps import trees
from tests.laws import close


def model(*layers: nn.Module) -> tuple:
    net = nn.Sequential(*layers).double()
    params = {
        k: torch.cos(torch.arange(1.0, t.numel() + 1).double()).reshape(t.shape) for k, t in net.named_parameters()
    }
    return net, params, lambda p, x: functional_call(net, p, (x,))


def inputs(batch: int = 6) -> Tensor:
    return torch.sin(torch.arange(batch * 3.0).double() ** 2).reshape(batch, 3)


def zero_after_dropout() -> tuple:
    """Noise that shows in gradients alone: dropout before weights that start at zero."""
    net, params, f = model(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    return net, params | {"2.weight": torch.zeros(2, 8).double()}, f


RANDOM = {
    "dropout": lambda: model(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2)),
    "little dropout": lambda: model(nn.Linear(3, 64), nn.Dropout(0.05), nn.Tanh(), nn.Linear(64, 2)),
    "feature dropout": lambda: model(nn.Linear(3, 8), nn.FeatureAlphaDropout(0.5), nn.Tanh(), nn.Linear(8, 2)),
    "before zeros": zero_after_dropout,
}


@pytest.mark.parametrize("name", RANDOM)
def test_a_random_function_does_not_repeat(name):
    _, params, f = RANDOM[name]()
    with pytest.raises(ValueError, match=r"is random.*eval"):
        purity.repeatable(f, params, inputs())


def test_a_random_member_does_not_repeat_under_vmap():
    _, params, f = RANDOM["dropout"]()
    both = trees.stack([params, params])
    for randomness in ("error", "same", "different"):
        with pytest.raises(ValueError, match=r"is random.*eval"):
            vmap(lambda p: purity.repeatable(f, p, inputs())[0], randomness=randomness)(both)


def test_deterministic_functions_repeat():
    """In eval mode, with NaN in the data, and where drawn numbers are not used: what repeats passes, unchanged."""
    net, params, f = RANDOM["dropout"]()
    net.eval()
    x = inputs()
    y, back = purity.repeatable(f, params, x)
    assert torch.equal(y, f(params, x))
    assert torch.equal(
        back(torch.ones_like(y))[0]["0.bias"], vjp(lambda p: f(p, x), params)[1](torch.ones_like(y))[0]["0.bias"]
    )
    broken = x.clone()
    broken[0, 0] = torch.nan
    purity.repeatable(f, params, broken)
    drawn = lambda p, x: functional_call(nn.Linear(3, 2), p, (x,))  # draws what params replace
    purity.repeatable(drawn, {"weight": torch.ones(2, 3), "bias": torch.ones(2)}, x.float())
    vmap(lambda p: purity.repeatable(f, p, x)[0])(trees.stack([params, params]))


def test_rounding_is_no_randomness():
    t = torch.linspace(-1, 1, 50)
    assert agreement.repeats(t, t * (1 + 1e-6))
    assert not agreement.repeats(t, t * (1 + 1e-3))
    assert agreement.repeats(t[:0], t[:0])
    assert not agreement.repeats(t, t[:3])


# --- v in any mapping --------------------------------------------------------------------------------------------


def tanh_layer(p: dict, x: Tensor) -> Tensor:
    return torch.tanh(x @ p["w"] + p["b"])


LAYER = {"b": torch.zeros(2).double(), "w": torch.sin(torch.arange(6.0).double()).reshape(3, 2)}
T = torch.arange(6) % 2
cross_entropy = lambda y, t: nn.functional.cross_entropy(y, t, reduction="none")
mean_loss = lambda p, x, t: cross_entropy(tanh_layer(p, x), t).mean()

MATRICES = {
    **{
        R.__name__: lambda p, R=R: fisher.fim(tanh_layer, p, inputs(), R)
        for R in (
            fisher.PMatDense, fisher.PMatBlockDiag, fisher.PMatDiag, fisher.PMatQuasiDiag, fisher.PMatKFAC, fisher.PMatEKFAC,
            fisher.PMatEKFACBlockDiag, fisher.PMatLowRank, fisher.PMatMixed, fisher.PMatEye, fisher.PMatImplicit,
        )
    },
    "hessian": lambda p: fisher.hessian(mean_loss, p, (inputs(), T), fisher.PMatImplicit),
    "ggn": lambda p: fisher.ggn(tanh_layer, cross_entropy, p, (inputs(), T), fisher.PMatImplicit),
    "pullback": lambda p: fisher.pullback(
        fisher.fim(tanh_layer, p, inputs(), fisher.PMatDense), lambda q: {"w": 2 * q["w"], "b": q["b"]}, p
    ),
}  # fmt: skip

ORDERS = {
    "other order": lambda v: {k: v[k] for k in reversed(v)},
    "OrderedDict": lambda v: OrderedDict((k, v[k]) for k in reversed(v)),
    "UserDict": lambda v: UserDict({k: v[k] for k in reversed(v)}),
    "ParameterDict": lambda v: nn.ParameterDict({k: v[k] for k in reversed(v)}),
}


@pytest.mark.parametrize("name", MATRICES)
def test_vectors_in_any_mapping(name):
    """mv, vTMv, solve, and products with maps take v by its keys; the results are trees like params."""
    F, v = MATRICES[name](LAYER), {"b": torch.ones(2).double(), "w": inputs(2).T.contiguous()}
    for how in ORDERS.values():
        w = how(v)
        close(F.mv(w), F.mv(v), 0.0, "mv")
        close(F.vTMv(w), F.vTMv(v), 0.0, "vTMv")
        close(F.solve(w, 5.0), F.solve(v, 5.0), 0.0, "solve")
        stacked = trees.map(lambda t: t[None], v)
        close(F.mapTMmap(how(stacked)), F.mapTMmap(stacked), 0.0, "mapTMmap")
        assert list(trees.paths(F.mv(w))) == list(trees.paths(LAYER))
    with pytest.raises(ValueError, match=r"v: leaves do not match.*missing \['w'\], unexpected \['u'\]"):
        F.mv(OrderedDict(u=v["w"], b=v["b"]))


@pytest.mark.parametrize("representation", [fisher.PFMapDense, fisher.PFMapImplicit])
def test_jacobians_take_vectors_in_any_mapping(representation):
    J, v = fisher.jacobian(tanh_layer, LAYER, inputs(), representation), {"b": torch.ones(2).double(), "w": LAYER["w"]}
    for how in ORDERS.values():
        close(J.jvp(how(v)), J.jvp(v), 0.0, "jvp")


# --- forward mode ------------------------------------------------------------------------------------------------

BUFFER = torch.sin(torch.arange(8.0).double() ** 2)
SHARED = {
    "unfold": {"w": BUFFER[:4].unfold(0, 2, 1)[:3], "b": BUFFER[6:]},
    "expand": {"w": BUFFER[:2].expand(3, 2), "b": BUFFER[6:]},
    "as_strided": {"w": BUFFER.as_strided((3, 2), (1, 2)), "b": BUFFER[6:]},
    "views of one vector": {"w": BUFFER[:6].view(3, 2), "b": BUFFER[6:]},
    "leaves that overlap": {"w": BUFFER[:6].view(3, 2), "b": BUFFER[5:7]},
    "one tensor twice": {"w": BUFFER[:1].expand(3, 2), "b": BUFFER[:1].expand(2)},
}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("which", ["PMatImplicit", "hessian", "ggn", "pullback"])
def test_params_that_share_memory(name, which):
    shared = SHARED[name]
    own = trees.map(torch.clone, shared)
    close(MATRICES[which](shared).to_torch(), MATRICES[which](own).to_torch(), 1e-12, which)
    v = {"b": torch.ones(2).double(), "w": inputs(2).T.contiguous()}
    J = [fisher.jacobian(tanh_layer, p, inputs(), fisher.PFMapImplicit).jvp(v) for p in (shared, own)]
    close(J[0], J[1], 1e-12, "jvp")
    stacked = trees.map(lambda t: t.expand(2, *t.shape), shared)  # members that share memory
    product = lambda p: MATRICES[which](p).mv(v)
    close(vmap(product)(stacked), trees.stack([product(own)] * 2), 1e-12, "ensemble")


@pytest.mark.parametrize("which", ["PMatImplicit", "hessian", "ggn", "pullback"])
def test_products_in_threads(which):
    """torch's forward mode is one for the process: products in four threads are those of one."""
    want, found = MATRICES[which](LAYER).to_torch(), []

    def work() -> None:
        found.extend(MATRICES[which](LAYER).to_torch() for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 20
    assert all(torch.equal(t, want) for t in found)
