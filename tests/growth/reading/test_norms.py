"""Norms around a pair: batch norm between its layers, in both modes; norms in front of it and behind it; those that mix units."""

import copy
import dataclasses
import re

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

import fisher
import growth
from linmaps import trees
from tests.growth.reading.test_maps import prelu
from tests.laws import close

G = torch.Generator().manual_seed(0)
randn = lambda g, *s: torch.randn(*s, generator=g, dtype=torch.float64)
R = lambda *s: randn(G, *s)
IMAGES = 3 * R(12, 2, 6, 6) * torch.tensor([1.0, 0.3]).reshape(2, 1, 1).double() + 2
T = torch.arange(12) % 3
ROWS, TOKENS = 2 * R(12, 3) + 1, R(12, 5, 3)
C, B = nn.Conv2d, nn.BatchNorm2d
TAIL = [nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3)]
BETWEEN = {  # layers, the number of the second of the pair, inputs
    "conv": ([C(2, 4, 3), B(4), nn.ReLU(), C(4, 5, 3), *TAIL], 3, IMAGES),
    "padded, strided": ([C(2, 4, 3, 2, 1), B(4), nn.Tanh(), C(4, 5, 3, padding=1), *TAIL], 3, IMAGES),
    "without a bias": ([C(2, 4, 3, bias=False), B(4), nn.ReLU(), C(4, 5, 3), *TAIL], 3, IMAGES),
    "another eps": ([C(2, 4, 3), B(4, eps=1e-3), nn.ReLU(), C(4, 5, 3), *TAIL], 3, IMAGES),
    "pooled": ([C(2, 4, 3), B(4), nn.ReLU(), nn.MaxPool2d(2), C(4, 5, 1), *TAIL], 4, IMAGES),
    "averaged, flattened": ([C(2, 4, 3), B(4), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)], 5, IMAGES),
    "with slopes": ([C(2, 4, 3), B(4), prelu(4), nn.MaxPool2d(2), C(4, 5, 1), *TAIL], 4, IMAGES),
    "dense": ([nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)], 3, ROWS),
    "dense without biases": ([nn.Linear(3, 4, False), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3, False)], 3, ROWS),
}


def net(name, table=BETWEEN):
    """Batch norms hold the moments of all data, so that both modes agree before growth."""
    torch.manual_seed(2)
    draws = torch.Generator().manual_seed(2)  # its own, whichever tests ran before
    layers, after, x = table[name]
    model = nn.Sequential(*copy.deepcopy(layers)).double()
    for part in model.modules():
        for name_, t in part.named_parameters(recurse=False):
            if not isinstance(part, nn.PReLU):
                t.data = randn(draws, *t.shape) * max(1, t[0].numel()) ** -0.5 + (
                    1 if t.ndim == 1 and name_ == "weight" else 0
                )
    for k, part in enumerate(model):
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            z = model[:k].eval()(x).transpose(0, 1).flatten(1)
            part.running_mean, part.running_var = z.mean(1).detach(), z.var(1, unbiased=False).detach()
    return *fisher.functional(model.eval(), buffers=True), growth.Pair("0", str(after), norm="1"), model, x


def in_train_mode(model, params, x):
    return growth.into_module(model, params).train()(x).detach()


def units(f, params, data, pair):
    stats = growth.statistics(f, params, [(data[0][:5], data[1][:5]), (data[0][5:], data[1][5:])], pair)
    return growth.choose_sign(f, params, data, pair, growth.optimal_neurons(stats, 2, "gradient", ridge=0.1))


@pytest.mark.parametrize("name", BETWEEN)
def test_new_channels_are_the_same_in_both_modes(name):
    f, params, pair, model, x = net(name)
    new = units(f, params, (x, T), pair)
    close(in_train_mode(model, params, x), f(params, x), 1e-10, "before growth")
    for t in (0.0, 1e-6, 0.3, 20.0):
        grown = growth.grow(params, pair, new, scale=t)
        close(in_train_mode(model, grown, x), f(grown, x), 1e-10, "after growth")
        plain = growth.grow(params, pair, dataclasses.replace(new, norm=None), scale=t)
        exact = torch.full((2,), (1 + model[1].eps) ** 0.5, dtype=torch.float64)
        plain["1.weight"] = torch.cat([params["1.weight"], exact])
        close(f(grown, x), f(plain, x), 1e-10, "the identity in eval mode")
        z = growth.into_module(model, grown)[0](x).transpose(0, 1).flatten(1)[4:].detach()
        close(grown["1.running_mean"][4:], z.mean(1), 1e-10, "mean")
        if t:
            close(grown["1.running_var"][4:], z.var(1, unbiased=False), 1e-10 * (1 + t), "variance")
    apart = (in_train_mode(model, plain, x) - f(plain, x)).abs().amax()
    assert apart > 1e-3, "without moments the modes differ"


@pytest.mark.parametrize("name", BETWEEN)
def test_slopes_through_the_norm(name):
    f, params, pair, _, x = net(name)
    stats = growth.statistics(f, params, (x, T), pair)
    by_hand(f, params, pair, stats, x)


WITHOUT_SCALES = {
    "conv": ([C(2, 4, 3), B(4, affine=False), nn.ReLU(), nn.MaxPool2d(2), C(4, 5, 1), *TAIL], 4, IMAGES),
    "dense": ([nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Tanh(), nn.Linear(4, 3)], 3, ROWS),
}


@pytest.mark.parametrize("name", WITHOUT_SCALES)
def test_slopes_through_a_norm_of_statistics_alone(name):
    f, params, pair, model, x = net(name, WITHOUT_SCALES)
    stats = growth.statistics(f, params, (x, T), pair)
    new = by_hand(f, params, pair, stats, x)
    grown = growth.grow(params, pair, new)
    assert grown["1.running_var"].shape == (6,)
    close(growth.into_module(model, grown)(x).detach(), f(grown, x), 1e-12, "module")


def by_hand(f, params, pair, stats, x):
    """Slopes of the delta and of units against finite differences, and the function at amplitude 0."""
    loss = lambda p: F.cross_entropy(f(p, x), T)
    delta = growth.optimal_delta(stats, ridge=1e-6)
    at = lambda t: loss(growth.grow(params, pair, None, delta=delta, scale=t))
    h = 1e-5 / max(1.0, float(delta.decrease))
    got = (4 * at(h) - at(2 * h) - 3 * loss(params)) / (2 * h)
    rounding = 1e-15 / h  # of a loss near 1
    close(-got, delta.decrease, 1e-6 * float(delta.decrease) + rounding, "decrease")
    new = growth.choose_sign(f, params, (x, T), pair, growth.optimal_neurons(stats, 2, "gradient", ridge=1e-4))
    at = lambda t: loss(growth.grow(params, pair, new, scale=t))
    got = (4 * at(1e-7) - at(2e-7) - 3 * loss(params)) / 2e-7
    close(-got, new.gain, 1e-4 * float(new.gain) + 1e-8, "gain")
    assert new.gain > 1e-5
    close(f(growth.grow(params, pair, new, scale=0.0), x), f(params, x), 1e-10, "at amplitude 0")
    return new


def test_moments_follow_what_is_done_to_units():
    f, params, pair, model, x = net("conv")
    stats = growth.statistics(f, params, (x, T), pair)
    new = growth.optimal_neurons(stats, 2, "gradient")
    draw = lambda: torch.Generator().manual_seed(3)
    made = {
        "scaled": growth.scale_neurons(new, fan_in=-3.0),
        "merged": growth.merge_neurons(new, growth.random(stats, 2, generator=draw(), std_out=0.3)),
        "paired": growth.paired(new, noise=0.1, generator=draw()),
        "normalized": growth.normalize(new, None, params, pair)[0],
        "gradmax": growth.gradmax(stats, 2),
        "zero out": growth.zero_out(stats, 2),
        "merged statistics": growth.optimal_neurons(stats + stats, 2, "gradient"),
    }
    for name, some in made.items():
        grown = growth.grow(params, pair, some, scale=0.5)
        close(in_train_mode(model, grown, x), f(grown, x), 1e-10, name)
    step = growth.step(f, params, (x, T), pair, 3, state=params)
    close(in_train_mode(model, step.params, x), f(step.params, x), 1e-10, "step")
    both = trees.stack([params, trees.map(lambda t: 1.1 * t, params)])
    run = lambda p: growth.grow(p, pair, growth.optimal_neurons(growth.statistics(f, p, (x, T), pair), 1), scale=0.2)
    close(vmap(run)(both), trees.stack([run(p) for p in trees.unstack(both)]), 1e-8, "ensemble")


def test_constant_units_keep_a_norm_of_variance_1():
    f, params, pair, model, x = net("dense")
    new = growth.zero_in(growth.statistics(f, params, (x, T), pair), 2)
    grown = growth.grow(params, pair, new)
    close(grown["1.running_var"][4:], torch.ones(2).double(), 0.0, "variance")
    close(in_train_mode(model, grown, x), f(params, x), 1e-10, "train mode")


HAND = lambda z, m, v, w, b: (z - m) / (v + 1e-5).sqrt() * w + b


@pytest.mark.parametrize("where", ["by hand", "behind the activation", "of units without data"])
def test_what_is_not_measured_gets_the_identity(where):
    _, params, pair, _, x = net("dense")

    def f(p, x):
        leaves = [p[f"1.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
        norm = HAND if where == "by hand" else F.batch_norm
        z = F.linear(x, p["0.weight"], p["0.bias"])
        h = norm(z.tanh(), *leaves) if where == "behind the activation" else norm(z, *leaves).tanh()
        return F.linear(h, p["3.weight"], p["3.bias"])

    stats = growth.statistics(f, params, (x, T), growth.Pair("0", "3", torch.tanh, norm="1"))
    new = growth.random(stats, 2)
    if where == "of units without data":
        assert stats.norm is not None
        new = growth.initialize(params, pair, 2, generator=torch.Generator())
    grown = growth.grow(params, pair, new)
    for name, fill in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        close(grown[f"1.{name}"][4:], torch.full((2,), fill).double(), 0.0, name)


class ByHand(nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Residual(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        y = x + self.body(x)
        return y.mean(1) if y.ndim == 3 else y.flatten(1)


L = nn.Linear
AROUND = {  # the layers of a residual block, the numbers of the pair's, inputs
    "layer norm, in front": ([nn.LayerNorm(3), L(3, 4), nn.Tanh(), L(4, 3)], (1, 3), ROWS),
    "layer norm, behind": ([L(3, 4), nn.Tanh(), L(4, 3), nn.LayerNorm(3)], (0, 2), ROWS),
    "both, tokens": ([nn.LayerNorm(3), L(3, 4), nn.GELU(), L(4, 3), nn.LayerNorm(3)], (1, 3), TOKENS),
    "rms norm, in front": ([nn.RMSNorm(3), L(3, 4), nn.ReLU(), L(4, 3)], (1, 3), TOKENS),
    "rms norm, behind": ([L(3, 4), nn.ReLU(), L(4, 3), nn.RMSNorm(3)], (0, 2), ROWS),
    "rms norm by hand, in front": ([ByHand(), L(3, 4), nn.SiLU(), L(4, 3)], (1, 3), TOKENS),
    "rms norm by hand, behind": ([L(3, 4), nn.SiLU(), L(4, 3), ByHand()], (0, 2), TOKENS),
    "batch norm, in front": ([nn.BatchNorm1d(3), L(3, 4), nn.Tanh(), L(4, 3)], (1, 3), ROWS),
    "batch norm, behind": ([L(3, 4), nn.Tanh(), L(4, 3), nn.BatchNorm1d(3)], (0, 2), ROWS),
    "group norm, in front": ([nn.GroupNorm(1, 2), C(2, 4, 3, padding=1), nn.Tanh(), C(4, 2, 3, padding=1)], (1, 3), IMAGES),
    "group norm, behind": ([C(2, 4, 3, padding=1), nn.ReLU(), C(4, 2, 1), nn.GroupNorm(1, 2)], (0, 2), IMAGES),
    "batch norms around": ([B(2), C(2, 4, 1), nn.ReLU(), C(4, 2, 1), B(2)], (1, 3), IMAGES),
    "instance norm, in front": ([nn.InstanceNorm2d(2), C(2, 4, 1), nn.ReLU(), C(4, 2, 1)], (1, 3), IMAGES),
    "instance norm, behind": ([C(2, 4, 1), prelu(4), C(4, 2, 1), nn.InstanceNorm2d(2, affine=True)], (0, 2), IMAGES),
    "layer norm of maps": ([nn.LayerNorm((2, 6, 6)), C(2, 4, 1), nn.GELU(), C(4, 2, 1)], (1, 3), IMAGES),
    "local response, in front": ([nn.LocalResponseNorm(2), C(2, 4, 1), nn.ReLU(), C(4, 2, 1)], (1, 3), IMAGES),
    "softmax behind": ([L(3, 4), prelu(4), L(4, 3), nn.Softmax(-1)], (0, 2), ROWS),
}  # fmt: skip


@pytest.mark.parametrize("name", AROUND)
def test_slopes_with_norms_in_front_and_behind(name):
    torch.manual_seed(1)
    draws = torch.Generator().manual_seed(1)
    layers, (before, after), x = AROUND[name]
    width = x.shape[-1] if x.ndim < 4 else x[0].numel()
    model = nn.Sequential(Residual(*copy.deepcopy(layers)), nn.Linear(width, 3)).double()
    model(x)  # batch norms see data once
    for part in model.modules():
        for own, t in part.named_parameters(recurse=False):
            if own == "weight" and t.ndim == 1 and not isinstance(part, nn.PReLU):
                t.data = 1 + 0.5 * randn(draws, *t.shape)
    f, params = fisher.functional(model.eval(), buffers=True)
    pair = growth.Pair(f"0.body.{before}", f"0.body.{after}")
    by_hand(f, params, pair, growth.statistics(f, params, (x, T), pair), x)


class Mean(nn.Module):
    def forward(self, x):
        return x.tanh() * x.mean(-1, keepdim=True)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(4, 4)

    def forward(self, x):
        return x.tanh() * self.w(x)


class Skip(nn.Module):
    def forward(self, x):
        return x + torch.ones(x.shape, dtype=x.dtype)


class Flip(nn.Module):
    def forward(self, x):
        return x.flip(-1)


MIXING = {  # what stands between, the words that name it
    "layer norm": ([nn.LayerNorm(4)], ROWS, "layer_norm mixes"),
    "layer norm of tokens": ([nn.LayerNorm(4), nn.ReLU()], TOKENS, "layer_norm mixes"),
    "rms norm": ([nn.RMSNorm(4)], ROWS, "rms_norm mixes"),
    "rms norm by hand": ([ByHand()], ROWS, "through square, mean, add, rsqrt, mul"),
    "group norm": ([nn.GroupNorm(2, 4), nn.ReLU()], IMAGES, "group_norm mixes"),
    "group norm of single units": ([nn.GroupNorm(4, 4), nn.ReLU()], IMAGES, "group_norm mixes"),
    "instance norm": ([nn.InstanceNorm2d(4), nn.ReLU()], IMAGES, "instance_norm gives each unit's map full size"),
    "instance norm with leaves": (
        [nn.InstanceNorm2d(4, affine=True)],
        IMAGES,
        "instance_norm gives each unit's map full",
    ),
    "softmax": ([nn.Softmax(-1)], ROWS, "softmax mixes"),
    "log softmax": ([nn.LogSoftmax(-1)], ROWS, "log_softmax mixes"),
    "local response norm": ([nn.LocalResponseNorm(2)], IMAGES, "local_response_norm mixes"),
    "gate": ([Mean()], ROWS, "through tanh, mean, mul"),
    "gate with a layer": ([Gate()], ROWS, "through tanh, linear, mul; linear of 1.w.weight, a layer, stands between"),
    "glu": ([nn.GLU()], ROWS, "0.weight (4, 3) has 4 outputs, 2.weight (3, 2) takes 2"),
    "batch norm without a name": ([B(4)], IMAGES, "batch_norm is a norm: name it, Pair(before, after, norm='1')"),
    "batch norm before a pool": (
        [B(4), nn.ReLU(), nn.MaxPool2d(2)],
        IMAGES,
        "batch_norm is a norm: name it, Pair(before, after, norm='1')",
    ),
    "batch norm without scales": ([nn.BatchNorm1d(4, affine=False)], ROWS, "name it, Pair(before, after, norm='1')"),
    "depthwise": (
        [C(4, 4, 3, groups=4), nn.ReLU()],
        IMAGES,
        "a depthwise convolution, 1.weight, stands between: name it",
    ),
    "residual before a pool": (
        [Skip(), nn.ReLU(), nn.MaxPool2d(2)],
        IMAGES,
        "add takes another tensor, in which new units have no part",
    ),
    "flip before a pool": ([Flip(), nn.MaxPool2d(2)], IMAGES, "flip is not read"),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_units_is_refused_by_its_name(name):
    torch.manual_seed(1)
    middle, x, words = MIXING[name]
    first = C(2, 4, 3) if x.ndim == 4 else nn.Linear(3, 4)
    front = nn.Sequential(first, *copy.deepcopy(middle)).double().eval()
    y = front(x)
    tail = [nn.Flatten(), nn.Linear(y[0].numel(), 3)] if x.ndim == 4 else [nn.Linear(y.shape[-1], 3)]
    g, params = fisher.functional(nn.Sequential(*front, *tail).double().eval(), buffers=True)
    f = lambda p, x: g(p, x).mean(1) if x.ndim == 3 else g(p, x)
    with pytest.raises(ValueError, match=re.escape(words)):
        growth.statistics(f, params, (x, T), growth.Pair("0", str(len(front) + len(tail) - 1)))
