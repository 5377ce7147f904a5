"""Growth through what joins positions unit by unit: pooling, padding, dropout in eval; slopes against finite differences."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.func import vmap

import fisher
import growth
from linmaps import trees
from tests.laws import close

G = torch.Generator().manual_seed(0)
X = torch.randn(6, 2, 8, 8, generator=G, dtype=torch.float64)
T = torch.arange(6) % 3
C = nn.Conv2d


def head(c, n=9):
    return [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(c * n, 3)]


def dense(n):
    return [nn.Flatten(), nn.Linear(4 * n, 3)]


class By(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


AVERAGE, LARGEST = nn.functional.adaptive_avg_pool2d, nn.functional.adaptive_max_pool2d
HEADS = {  # spellings of a global pool, and of others that leave one number of each unit
    "mean": lambda x: x.mean((2, 3)),
    "amax": lambda x: torch.amax(x, dim=(2, 3)),
    "squeezed": lambda x: AVERAGE(x, 1).squeeze(-1).squeeze(-1),
    "squeezed at once": lambda x: torch.squeeze(LARGEST(x, 1)),
    "squeezed axes": lambda x: AVERAGE(x, 1).squeeze((2, 3)),
    "indexed": lambda x: AVERAGE(x, 1)[:, :, 0, 0],
    "indexed from the end": lambda x: LARGEST(x, 1)[..., 0, -1],
    "axis by axis": lambda x: x.mean(-1).mean(-1),
    "axes kept": lambda x: x.mean(-1, True).sum(dim=2, keepdim=True)[:, :, 0, 0],
    "largest, then average": lambda x: x.amax(-1).mean(-1),
    "average, then largest": lambda x: x.mean(2).max(-1)[0],
    "largest of rows": lambda x: torch.max(x, dim=-2, keepdim=True).values.mean((2, 3)),
    "flattened mean": lambda x: x.flatten(2).mean(-1),
    "flattened largest": lambda x: x.flatten(2).max(-1)[0],
    "flattened values": lambda x: x.flatten(2).max(dim=-1).values,
    "viewed": lambda x: x.view(x.shape[0], x.shape[1], -1).mean(-1),
    "reshaped": lambda x: x.reshape(*x.shape[:2], -1, 2).sum((2, 3)),
    "one position": lambda x: x[:, :, 2, 3],
    "a part": lambda x: x[:, :, 1:5, ::2].mean((2, 3)),
}


def prelu(n):
    """One with slopes that differ, of both signs, none of them that of a new unit."""
    layer = nn.PReLU(n)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.4, 0.9, n + 2)[1:-1])
    return layer


# what stands between, what follows the layer after (a convolution of 4 to 5 channels) or that layer itself
BETWEEN = {
    "tanh avg": ([nn.Tanh(), nn.AvgPool2d(2)], None),
    "tanh avg padded": ([nn.Tanh(), nn.AvgPool2d(3, 2, 1)], None),
    "avg tanh": ([nn.AvgPool2d(2), nn.Tanh()], None),
    "relu max": ([nn.ReLU(), nn.MaxPool2d(2)], None),
    "max relu": ([nn.MaxPool2d(2), nn.ReLU()], None),
    "gelu max overlapping": ([nn.GELU(), nn.MaxPool2d(3, 2, 1)], None),
    "max dilated": ([nn.MaxPool2d(2, 1, 0, 2), nn.ReLU()], None),
    "relu avg": ([nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)], None),
    "relu adaptive max": ([nn.ReLU(), nn.AdaptiveMaxPool2d(3)], None),
    "tanh lp": ([nn.ReLU(), nn.LPPool2d(2, 2)], None),
    "tanh twice": ([nn.Tanh(), nn.AvgPool2d(2), nn.ReLU(), nn.MaxPool2d(2, 1)], None),
    "head": ([nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()], nn.Linear(4, 3)),
    **{f"head {name}": ([nn.Tanh(), By(head)], nn.Linear(4, 3)) for name, head in HEADS.items()},
    "head of relu": ([nn.ReLU(), By(HEADS["flattened values"])], nn.Linear(4, 3)),
    "pool of flattened maps": ([nn.Tanh(), nn.Flatten(2), nn.AvgPool1d(2), nn.Flatten()], nn.Linear(72, 3)),
    "a part flattened": ([nn.Tanh(), By(lambda x: x[..., :3, 1:]), nn.Flatten()], nn.Linear(60, 3)),
    "lenet": ([nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()], nn.Linear(36, 3)),
    "flattened average": ([nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()], nn.Linear(36, 3)),
    "dropout": ([nn.ReLU(), nn.Dropout2d(), nn.MaxPool2d(2), nn.AlphaDropout()], None),
    "rrelu": ([nn.RReLU(), nn.AvgPool2d(2)], None),
    "circular": ([nn.ReLU()], C(4, 5, 3, padding=1, padding_mode="circular")),
    "reflect": ([nn.Tanh(), nn.MaxPool2d(2)], C(4, 5, 3, padding=1, padding_mode="reflect")),
    "replicate": ([nn.Tanh()], C(4, 5, 3, padding=1, padding_mode="replicate")),
    "padded": ([nn.ReLU(), nn.ZeroPad2d((1, 0, 0, 1))], None),
    "upsampled": ([nn.Tanh(), nn.Upsample(scale_factor=2)], None),
    "prelu": ([prelu(4)], None),
    "prelu max": ([prelu(4), nn.MaxPool2d(2)], None),
    "max prelu": ([nn.MaxPool2d(3, 2, 1), prelu(4)], None),
    "prelu avg": ([prelu(4), nn.AvgPool2d(2), nn.Tanh()], None),
    "prelu twice": ([prelu(4), nn.AvgPool2d(2), prelu(4)], None),
    "prelu of one slope": ([prelu(1), nn.MaxPool2d(2)], None),
    "prelu flattened": ([prelu(4), nn.MaxPool2d(2), nn.Flatten()], nn.Linear(36, 3)),
    "prelu of each position": ([nn.AvgPool2d(2), nn.Flatten(), prelu(36)], nn.Linear(36, 3)),
    "prelu head": ([prelu(4), By(HEADS["amax"])], nn.Linear(4, 3)),
}
SMOOTH = (
    "tanh avg",
    "tanh avg padded",
    "avg tanh",
    "head mean",
    "head axis by axis",
    "head viewed",
    "head indexed",
    "flattened average",
    "replicate",
    "upsampled",
)


def net(name, norm=False):
    torch.manual_seed(1)
    middle, last = BETWEEN[name]
    last = last or C(4, 5, 3, padding=1)
    front = [C(2, 4, 3), *([nn.BatchNorm2d(4)] if norm else []), *middle]
    tail = [] if isinstance(last, nn.Linear) else [nn.Tanh(), *head(5)]
    model = nn.Sequential(*front, last, *tail).double()
    if norm:
        model(X)
    pair = growth.Pair("0", str(len(front)), norm="1" if norm else None)
    return (*fisher.functional(model.eval(), buffers=True), pair, model)


def loss(f, params):
    return nn.functional.cross_entropy(f(params, X), T)


def measured(f, params, pair, new, delta, which):
    """The slope of the mean loss in the amplitude of units (or of the delta) at 0+, by Richardson's rule of three points."""
    scale = (lambda t: (0.0, t)) if which == "units" else (lambda t: (t, 0.0))
    at = lambda t: loss(f, growth.grow(params, pair, new, delta=delta, scale=scale(t)))
    t = 1e-7 if which == "units" else 1e-5
    one, two, zero = at(t), at(2 * t), loss(f, params)
    return (4 * one - two - 3 * zero) / (2 * t)


WITH_NORM = ("tanh avg", "relu max", "max relu", "head", "lenet", "circular", "prelu", "prelu max", "prelu flattened")


@pytest.mark.parametrize(("name", "norm"), [(name, False) for name in BETWEEN] + [(name, True) for name in WITH_NORM])
def test_slopes(name, norm):
    f, params, pair, _ = net(name, norm)
    stats = growth.statistics(f, params, (X, T), pair)
    delta = growth.optimal_delta(stats, ridge=1e-6)
    change = measured(f, params, pair, None, delta, "delta")
    close(-change, delta.decrease, 1e-6 * float(delta.decrease.abs()), "decrease")
    new = growth.optimal_neurons(stats, 2, ridge=1e-4)
    chosen = growth.choose_sign(f, params, (X, T), pair, new)
    got = measured(f, params, pair, chosen, None, "units")
    rounding = 1e-8  # of a loss near 1 over an amplitude of 1e-7
    close(-got, chosen.gain, 1e-4 * float(chosen.gain.abs()) + rounding, "gain")
    assert chosen.gain > 0
    close(loss(f, growth.grow(params, pair, chosen, scale=0.0)), loss(f, params), 1e-10, "at amplitude 0")
    if name in SMOOTH:
        close(chosen.gain, new.gain, 1e-9, "exact without a choice of sign")


@pytest.mark.parametrize("name", SMOOTH)
def test_no_other_unit_gains_more_for_its_size(name):
    """The closed form is the largest gain over |A|_S |w|, S the second moment of the inputs as the layer after sees them."""
    f, params, pair, _ = net(name)
    stats = growth.statistics(f, params, (X, T), pair)
    best = growth.optimal_neurons(stats, 1, target="gradient", ridge=1e-9)
    size = lambda n: ((n.joined @ stats.S_prev) * n.joined).sum(1).sqrt() * n.fan_out.norm(dim=0)
    draw = torch.Generator().manual_seed(3)
    near = lambda t: t + 0.3 * t.norm() * torch.randn(t.shape, generator=draw, dtype=t.dtype) / t.numel() ** 0.5
    for _ in range(10):
        other = dataclasses.replace(
            best, fan_in=near(best.fan_in), fan_in_bias=near(best.fan_in_bias), fan_out=near(best.fan_out)
        )
        gain = growth.choose_sign(f, params, (X, T), pair, other).gain
        assert gain / size(other) <= best.gain / size(best) * (1 + 1e-9)


def test_statistics_of_averages_are_those_of_averaged_inputs():
    """A linear convolution, then an average: the same numbers as with the average before the convolution's products."""
    torch.manual_seed(0)
    w, v = torch.randn(4, 2, 1, 1, dtype=torch.float64), torch.randn(3, 4 * 16, dtype=torch.float64)
    pool = nn.functional.avg_pool2d
    late = lambda p, x: pool(nn.functional.conv2d(x, p["a"]["weight"]), 2).flatten(1) @ p["b"]["weight"].T
    early = lambda p, x: nn.functional.conv2d(pool(x, 2), p["a"]["weight"]).flatten(1) @ p["b"]["weight"].T
    params, pair = {"a": {"weight": w}, "b": {"weight": v}}, growth.Pair("a", "b")
    one, two = (growth.statistics(f, params, (X, T), pair) for f in (late, early))
    for name in ("S", "M", "S_prev", "M_prev", "P"):
        close(getattr(one, name), getattr(two, name), 1e-12, name)


def test_batches_ensembles_and_purity():
    f, params, pair, _ = net("relu max")
    before = trees.map(torch.clone, params)
    whole = growth.statistics(f, params, (X, T), pair)
    parts = growth.statistics(f, params, [(X[:2], T[:2]), (X[2:], T[2:])], pair)
    close(whole, parts, 1e-12, "batches")
    close(params, before, 0.0, "params")
    both = trees.stack([params, trees.map(lambda t: 1.1 * t, params)])
    stacked = vmap(lambda p: growth.statistics(f, p, (X, T), pair))(both)
    each = [growth.statistics(f, p, (X, T), pair) for p in trees.unstack(both)]
    close(stacked.M_prev, torch.stack([s.M_prev for s in each]), 1e-12, "ensemble")


@pytest.mark.parametrize("name", ["lenet", "relu max", "head"])
def test_a_network_grows_and_goes_back_into_its_module(name):
    f, params, pair, model = net(name, norm=True)
    stats = growth.statistics(f, params, (X, T), pair)
    new = growth.choose_sign(f, params, (X, T), pair, growth.optimal_neurons(stats, 3, ridge=0.1))
    scale = growth.line_search(f, params, (X, T), pair, new, None).scale
    grown = growth.grow(params, pair, new, scale=scale)
    assert loss(f, grown) < loss(f, params)
    module = growth.into_module(model, grown)
    close(module(X).detach(), f(grown, X), 1e-12, "module")
    close(growth.prune(grown, pair, [4, 5, 6]), params, 0.0, "prune")


REFUSED = {
    "fractional": ([nn.ReLU(), nn.FractionalMaxPool2d(2, output_size=3, _random_samples=torch.full((6, 4, 2), 0.5))], "pool"),
    "layer norm": ([nn.ReLU(), nn.LayerNorm(6)], "norm mixes"),
    "group norm": ([nn.GroupNorm(2, 4), nn.ReLU()], "norm mixes"),
    "softmax": ([nn.Softmax(1)], "softmax mixes"),
    "pool over channels": ([nn.ReLU(), nn.AvgPool3d((2, 1, 1))], "avg_pool3d pools"),
    "permuted": ([nn.ReLU(), By(lambda x: AVERAGE(x, 1).transpose(0, 1).squeeze(-1).transpose(0, 1))], "transpose is not read"),
    "some units": ([nn.ReLU(), nn.AvgPool2d(2), By(lambda x: x[:, [3, 0, 1, 2]])], "getitem is not read"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_its_name(name):
    middle, words = REFUSED[name]
    torch.manual_seed(1)
    front = nn.Sequential(C(2, 4, 3), *middle).double().eval()
    width = front(X)[0].numel()
    f, params = fisher.functional(nn.Sequential(*front, nn.Flatten(), nn.Linear(width, 3)).double().eval())
    with pytest.raises(ValueError, match=words):
        growth.statistics(f, params, (X, T), growth.Pair("0", str(len(front) + 1)))


@pytest.mark.parametrize("through", ["statistics", "widen", "prune"])
@pytest.mark.parametrize("view", [lambda x: x.view(-1, 144), lambda x: torch.reshape(x, (-1, 144))])
def test_a_view_that_keeps_a_width_is_named(view, through):
    torch.manual_seed(1)
    f, params = fisher.functional(nn.Sequential(C(2, 4, 3), nn.ReLU(), By(view), nn.Linear(144, 3)).double())
    pair = growth.Pair("0", "3")
    calls = {
        "statistics": lambda: growth.statistics(f, params, (X, T), pair),
        "widen": lambda: growth.widen(params, pair, 1, f=f, x=X),
        "prune": lambda: growth.prune(params, pair, [0], f=f, x=X),
    }
    with pytest.raises(ValueError, match=r"(view|reshape) keeps the width of now.*flatten\(1\)"):
        calls[through]()


def test_dropout_of_nothing_is_read_in_train_mode():
    model = nn.Sequential(C(2, 4, 3), nn.Dropout(0.0), nn.ReLU(), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(4, 3))
    f, params = fisher.functional(model.double().train())
    growth.statistics(f, params, (X, T), growth.Pair("0", "5"))


@pytest.mark.parametrize("classes", [8, 3])
def test_classes_that_may_be_on_two_axes_are_refused(classes):
    model = nn.Sequential(C(2, 4, 3, padding=1), nn.ReLU(), C(4, classes, 1)).double()
    f, params = fisher.functional(model)
    words = "torch has classes" if classes == 8 else "classes last"
    target = torch.arange(6 * 64).reshape(6, 8, 8) % classes
    with pytest.raises(ValueError, match=words):
        growth.statistics(f, params, (X, target), growth.Pair("0", "2"))
    own = lambda y, t: nn.functional.cross_entropy(y, t, reduction="none").flatten(1).sum(1)
    growth.statistics(f, params, (X, target), growth.Pair("0", "2"), own)


def test_a_named_activation_is_compared():
    f, params, pair, _ = net("relu max")
    pooled = lambda z: nn.functional.max_pool2d(z.relu(), 2)
    for activation in (torch.relu, pooled):
        with pytest.raises(ValueError, match="leave activation=None"):
            growth.statistics(f, params, (X, T), growth.Pair(pair.before, pair.after, activation=activation))


def test_a_constant_that_padding_makes_uneven_is_refused():
    """sigma(0) != 0 averaged with zeros of the padding is another constant at the border."""
    torch.manual_seed(1)
    model = nn.Sequential(C(2, 4, 3), nn.Sigmoid(), nn.AvgPool2d(3, 1, 1), C(4, 3, 6), nn.Flatten()).double().eval()
    f, params = fisher.functional(model)
    with pytest.raises(ValueError, match=r"the activation is 0\.5 at 0"):
        growth.statistics(f, params, (X, T), growth.Pair("0", "3"))
