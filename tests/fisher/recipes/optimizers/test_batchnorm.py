"""in_train_mode: what torch does in train mode, as functions; K-FAC trains modules with batch norm by it."""

import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.nn.functional import batch_norm, cross_entropy, instance_norm
from torch.utils.data import DataLoader, TensorDataset

import fisher
import growth
from fisher.recipes import in_train_mode, kfac, partitioned
from linmaps import trees
from tests.fisher.digits import digits
from tests.laws import close

D = torch.float64


class Residual(nn.Module):
    """A block with a shortcut."""

    def __init__(self, channels):
        super().__init__()
        self.one, self.two = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.first, self.second = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels, affine=False)

    def forward(self, x):
        return torch.relu(x + self.second(self.two(torch.relu(self.first(self.one(x))))))


def convolutional(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), Residual(4), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 10),
        )  # fmt: skip


def images(n=120):
    x, t = digits(n)
    return x.reshape(-1, 1, 8, 8), t


def without_dropout(module):
    module.train()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    return module


def test_outputs_and_gradients_are_those_of_the_module_in_train_mode():
    module, (x, t) = convolutional().double(), images()
    f, params = fisher.functional(module.eval(), buffers=True)
    trained, _ = in_train_mode(f)
    g = grad(lambda p: cross_entropy(trained(p, x), t))(params)
    y = without_dropout(module)(x)
    cross_entropy(y, t).backward()
    close(trained(params, x), y.detach(), 1e-12, "outputs")
    for name, p in module.named_parameters():
        close(g[name], p.grad, 1e-12, name)
    assert not any(g[name].any() for name in g if "running" in name)


def test_statistics_are_what_torch_averages():
    module, (x, _) = convolutional().double(), images()
    f, params = fisher.functional(module.eval(), buffers=True)
    found = in_train_mode(f)[1](params, x)
    assert set(found) == {name for name in params if "running" in name}
    for part in without_dropout(module).modules():
        part.momentum = 1.0
    module(x)
    sizes = {"1": 9 * len(x), "3.first": 9 * len(x), "3.second": 9 * len(x), "7": len(x)}
    for name, value in module.named_buffers():
        if "running" in name:
            n = sizes[name.rpartition(".")[0]]
            close(found[name], value * ((n - 1) / n if name.endswith("var") else 1.0), 1e-12, name)


def test_kfac_trains_a_module_with_batch_norm():
    """From a loader, in float32; the running averages follow, and the module of the params in eval mode is good."""
    module, (x, t) = convolutional(), images(300)
    x = x.float()
    f, params = fisher.functional(module.eval(), buffers=True)
    trained, statistics = in_train_mode(f)
    optimizer, generator = kfac(f, statistics=statistics, forget=0.3), torch.Generator().manual_seed(0)
    loss = lambda p, x, t: cross_entropy(trained(p, x), t)
    state, start = None, loss(params, x, t)
    for _ in range(8):
        for batch in DataLoader(TensorDataset(x, t), 100, shuffle=True, generator=generator):
            batch = tuple(batch)
            state = optimizer.init(params, batch, generator=generator) if state is None else state
            g = grad(loss)(params, *batch)
            updates, state = optimizer.update(g, state, params, batch=batch, generator=generator)
            params = trees.add(params, updates)
    assert loss(params, x, t) < 0.2 * start
    assert (f(params, x).argmax(1) == t).float().mean() > 0.85
    module.load_state_dict(params, strict=False)  # the counters of batches are no params
    assert torch.allclose(module.eval()(x), f(params, x), atol=1e-5)


def test_an_ensemble_by_vmap():
    members = [fisher.functional(convolutional(seed).double().eval(), buffers=True) for seed in range(3)]
    f, (x, _) = members[0][0], images(40)
    trained, statistics = in_train_mode(f)
    stacked = trees.stack([params for _, params in members])
    both = vmap(lambda p: (trained(p, x), statistics(p, x)))(stacked)
    for k, (_, params) in enumerate(members):
        close(trees.unstack(both)[k], (trained(params, x), statistics(params, x)), 1e-12, f"member {k}")


def test_what_cannot_be_normalized_is_refused():
    x = torch.ones(3, 2)
    f, params = fisher.functional(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval())
    for run in in_train_mode(f):  # its buffers are constants of f
        with pytest.raises(ValueError, match=r"calls no batch norm.*buffers=True"):
            run(params, x)
    f, params = fisher.functional(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval(), buffers=True)
    with pytest.raises(ValueError, match=r"1.running_mean: got \(1, 2\), fewer than two values for each channel"):
        in_train_mode(f)[0](params, x[:1])
    twice = lambda p, x: batch_norm(batch_norm(x, p["mean"], p["var"]).exp(), p["mean"], p["var"])
    with pytest.raises(ValueError, match=r"mean: the batch norm of it is called twice"):
        in_train_mode(twice)[0]({"mean": torch.zeros(2), "var": torch.ones(2)}, torch.randn(3, 2))


Q = {"mean": torch.zeros(2), "var": torch.ones(2), "both": torch.ones(4)}
ODD = {
    "a constant variance": (
        lambda p, x: batch_norm(x, p["mean"], torch.ones(2)),
        r"mean: the running variance beside it",
    ),
    "a constant mean": (lambda p, x: batch_norm(x, torch.zeros(2), p["var"]), r"var: the running mean beside it"),
    "a variance made of a leaf": (
        lambda p, x: batch_norm(x, p["mean"], p["var"].clamp_min(1e-3)),
        r"mean: the running variance",
    ),
    "pieces of a leaf": (
        lambda p, x: batch_norm(x, p["both"][:2], p["both"][2:]),
        r"running mean .* is made of leaves",
    ),
    "train mode": (
        lambda p, x: batch_norm(x, p["mean"], p["var"], training=True),
        r"mean: its batch norm is in train mode",
    ),
    "an instance norm": (
        lambda p, x: instance_norm(x[..., None].expand(-1, -1, 3), p["mean"], p["var"], use_input_stats=False).mean(2),
        r"mean: is the running mean of an instance norm",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_statistics_that_are_leaves_in_part_are_refused(name):
    """Beside a batch norm that serves; params are left as they are."""
    odd, words = ODD[name]
    f = lambda p, x: odd(p, batch_norm(x, p["first mean"], p["first var"]))
    params = trees.map(torch.clone, Q | {"first mean": torch.zeros(2), "first var": torch.ones(2)})
    kept = trees.map(torch.clone, params)
    for run in in_train_mode(f):
        with pytest.raises(ValueError, match=words):
            run(params, torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    assert all(map(torch.equal, trees.leaves(params), trees.leaves(kept)))


def test_averages_read_without_their_graph():
    f = lambda p, x: batch_norm(x, p["mean"].detach(), p["var"].data)
    assert set(in_train_mode(f)[1](Q, torch.eye(2))) == {"mean", "var"}


def test_running_averages_by_torch_alone():
    """torch.batch_norm, whose arguments are in another order."""
    p = {"mean": torch.zeros(2, dtype=D), "var": torch.ones(2, dtype=D)}
    x = torch.randn(5, 2, dtype=D, generator=torch.Generator().manual_seed(0))
    f = lambda p, x: torch.batch_norm(x, None, None, p["mean"], p["var"], False, 0.1, 1e-5, False)
    trained, statistics = in_train_mode(f)
    close(trained(p, x), batch_norm(x, None, None, training=True), 1e-12, "outputs")
    close(statistics(p, x), {"mean": x.mean(0), "var": x.var(0, correction=0)}, 1e-12, "statistics")


@pytest.mark.parametrize("statistics_named", [False, True])
def test_one_of_several_optimizers_keeps_the_running_averages(statistics_named):
    """K-FAC of a part has those of the whole network, which the optimizers of the rest leave alone."""
    module, (x, t) = convolutional().double(), images(40)
    f, params = fisher.functional(module.eval(), buffers=True)
    trained, statistics = in_train_mode(f)
    layers = fisher.LayerCollection.from_function(f, params, x).select(lambda layer: layer.kind == "conv2d")
    own = ["0", "3.one", "3.two", *[path for path in params if "running" in path]] if statistics_named else layers
    first = kfac(f, estimator="exact", statistics=statistics, layers=layers)
    second = growth.adam(1e-2)
    both, batch = partitioned({"plain": ("10", second), "first": (own, first)}, rest=second), (x, t)
    states = first.init(params, batch), both.init(params, batch)
    for _ in range(2):
        g = grad(lambda p: cross_entropy(trained(p, x), t))(params)
        alone, one = first.update(g, states[0], params, batch=batch)
        updates, several = both.update(g, states[1], params, batch=batch)
        states = one, several
        for path in params:
            if "running" in path or path.split(".weight")[0] in ("0", "3.one", "3.two"):
                close(updates[path], alone[path], 1e-12, path)
        assert all(updates[path].any() for path in params)
        params = trees.add(params, updates)
