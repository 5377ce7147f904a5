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
# # The tour: a promise, a metric and growth, for a whole ensemble at once
#
# Six small networks read the handwritten digits that scikit-learn ships.  All six live in one tree of parameters with a
# leading axis, and every step below is written for *one* network and mapped over the six with `torch.func.vmap`:
#
# 1. **linmaps** – the first hidden layer is an orthogonal projection 64 → 16, and stays one whatever the optimizer does;
# 2. **fisher** – natural-gradient steps with the Fisher matrix (KFAC) against plain gradient steps;
# 3. **growth** – a closed-form step enlarges the second hidden layer from 4 to 12 units; Adam's state goes along.
#
# Run it as a script (`python notebooks/01_tour.py`) or read it as a notebook with its outputs.

# %%
import time
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.func import grad, vmap
from tqdm import tqdm

import fisher
import growth
import linmaps
from linmaps import trees

INTERACTIVE = "get_ipython" in globals()
if not INTERACTIVE:
    matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

START = time.perf_counter()
OUT = (Path(__file__).parent if "__file__" in globals() else Path.cwd()) / "out"
OUT.mkdir(exist_ok=True)
MEMBERS = 6

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32)
t = torch.tensor(digits.target)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:1347], order[1347:]
mean, std = x[train].mean(0), x[train].std(0)
x = (x - mean) / std.clamp_min(1.0)
x_train, t_train, x_test, t_test = x[train], t[train], x[test], t[test]
print(
    f"digits: {len(train)} images to train on, {len(test)} to test on, {x.shape[1]} pixels, {MEMBERS} networks at once"
)

# %% [markdown]
# ## One network, six members
#
# `encoder` is a *spec*: a frozen record of numbers, whose methods are pure functions of a dict of free parameters.
# `hidden` and `output` are plain dense layers.  The network is a function of a tree; there is no module.

# %%
encoder = linmaps.Orthogonal(in_features=64, out_features=16)


def network(params, x):
    h = torch.tanh(encoder.apply(params["encoder"], x))
    h = torch.tanh(F.linear(h, params["hidden"]["weight"], params["hidden"]["bias"]))
    return F.linear(h, params["output"]["weight"], params["output"]["bias"])


def dense(generator, n_in, n_out):
    weight = torch.randn(n_out, n_in, generator=generator) / n_in**0.5
    return {"weight": weight, "bias": torch.zeros(n_out)}


def new_member(seed, width=4):
    g = torch.Generator().manual_seed(seed)
    return {"encoder": encoder.init(g), "hidden": dense(g, 16, width), "output": dense(g, width, 10)}


def loss(params, x, t):
    return F.cross_entropy(network(params, x), t)


def measure(params):
    """Loss, test accuracy and violation of the promise of one member."""
    accuracy = (network(params, x_test).argmax(-1) == t_test).float().mean()
    return loss(params, x_train, t_train), accuracy, encoder.violation(encoder.effective_W(params["encoder"]))


start = trees.stack([new_member(seed) for seed in range(MEMBERS)])
ROWS = []


def report(what, params, since):
    losses, accuracy, violation = vmap(measure)(params)
    width = params["hidden"]["bias"].shape[-1]
    ROWS.append((what, width, losses, accuracy, violation.max(), time.perf_counter() - since))
    return losses.mean().item()


report("start", start, START)

# %% [markdown]
# ## What the Fisher matrix sees
#
# `LayerCollection.from_function` watches the function once.  `hidden` and `output` get Kronecker factors.  The encoder's
# leaf is not a weight: the weight W is computed from it.  The map says so, and is one use of W, seen *through* to the leaf:
# its block is $J'(G \otimes A)J$ with J the derivative of W.

# %%
layers = fisher.LayerCollection.from_function(network, trees.unstack(start)[0], x_train)
print(layers)

# %% [markdown]
# ## Natural gradient against plain gradient
#
# A natural-gradient step solves $(F + \lambda I)\,d = \nabla L$ with the Fisher matrix of the current batch: exactly in the
# outputs (nine columns for ten classes), in the mean over the examples of the batch.  Its length is a trust region: the
# output distribution may move by at most $\tfrac12 \eta^2 d'Fd = 0.01$ (a KL divergence).  Both methods get the same number
# of steps on the same batches; the plain step has the best of four step sizes.

# %%
STEPS, BATCH = 30, 256
batches = torch.randint(len(x_train), (STEPS, BATCH), generator=torch.Generator().manual_seed(1))


def plain_step(params, x, t, rate):
    return trees.axpy(-rate, grad(loss)(params, x, t), params)


def natural_step(params, x, t, divergence, damping):
    metric = fisher.fim(network, params, x, representation=fisher.PMatKFAC, layers=layers)
    direction = metric.solve(grad(loss)(params, x, t), regul=damping)
    rate = (2 * divergence / metric.vTMv(direction)).sqrt().clamp_max(1.0)
    return trees.axpy(-rate, direction, params)


def descend(step, name):
    params, curve = start, []
    for index in tqdm(batches, desc=name, leave=False):
        params = vmap(lambda p: step(p, x_train[index], t_train[index]))(params)  # noqa: B023
        curve.append(vmap(lambda p: loss(p, x_train, t_train))(params))
    return params, torch.stack(curve)


plain = {}
for rate in (0.1, 0.3, 1.0, 3.0):
    begin = time.perf_counter()
    plain[rate] = (*descend(lambda p, x, t: plain_step(p, x, t, rate), f"gradient, rate {rate}"), begin)  # noqa: B023
    plain[rate] += (time.perf_counter() - begin,)
best = min(plain, key=lambda r: plain[r][1][-1].mean().nan_to_num(torch.inf).item())
by_gradient, gradient_curve = plain[best][:2]
report(f"{STEPS} gradient steps (rate {best})", by_gradient, time.perf_counter() - plain[best][3])

begin = time.perf_counter()
by_fisher, fisher_curve = descend(lambda p, x, t: natural_step(p, x, t, 0.01, 0.01), "natural gradient")
report(f"{STEPS} natural-gradient steps", by_fisher, begin)
print(
    f"training loss after {STEPS} steps: {gradient_curve[-1].mean():.3f} plain, {fisher_curve[-1].mean():.3f} natural"
)

# %% [markdown]
# ## Training goes on with Adam, and the layer grows
#
# Adam is torch's own: one optimizer for all six members, since it works entry by entry.

# %%
pair = growth.Pair(before="hidden", after="output")


def adam(params, state, steps, seed, rate=1e-2, name="adam"):
    flat, treedef = trees.flatten(trees.map(lambda p: p.detach().clone().requires_grad_(), params))
    params = treedef.unflatten(flat)
    optimizer = torch.optim.Adam(flat, lr=rate)
    if state is not None:
        optimizer.load_state_dict(state)
    picks = torch.randint(len(x_train), (steps, 128), generator=torch.Generator().manual_seed(seed))
    curve = []
    for index in tqdm(picks, desc=name, leave=False):
        optimizer.zero_grad()
        losses = vmap(lambda p: loss(p, x_train[index], t_train[index]))(params)  # noqa: B023
        losses.sum().backward()
        optimizer.step()
        curve.append(losses.detach())
    return trees.map(lambda p: p.detach(), params), optimizer.state_dict(), torch.stack(curve)


begin = time.perf_counter()
small, state, before = adam(by_fisher, None, 150, seed=2, name="adam, 4 units")
report("150 Adam steps", small, begin)

# %% [markdown]
# One pass over the data gives the statistics of the pair; the best change of the existing output weights and the best
# eight new units follow in closed form.  The amplitude is the best of a short list for each member, by the training loss.

# %%
begin = time.perf_counter()
AMPLITUDES = torch.tensor([0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0])


def grow_one(params):
    stats = growth.statistics(network, params, (x_train, t_train), pair, loss="cross_entropy")
    delta = growth.optimal_delta(stats)
    new = growth.optimal_neurons(stats, k=8, delta=delta)
    preview = vmap(
        lambda scale: F.cross_entropy(
            growth.apply_extended(network, params, pair, new, delta, (0.0, scale), x_train), t_train
        )
    )
    losses = preview(AMPLITUDES)
    scale = AMPLITUDES[1:][losses[1:].argmin()]  # never zero: a unit without amplitude has no gradient
    return growth.grow(params, pair, new, delta=delta, scale=(0.0, scale)), new.gain, delta.decrease, losses


grown, gain, decrease, previews = vmap(grow_one)(small)
state = growth.grow_like(state, small, grown)
growth_loss = report("grown by 8 units, closed form", grown, begin)
print("first-order gain of the new units:", " ".join(f"{g:.4f}" for g in gain))
print("old entries unchanged:", bool((grown["hidden"]["weight"][:, :4] == small["hidden"]["weight"]).all()))

begin = time.perf_counter()
large, _, after = adam(grown, state, 150, seed=3, name="adam, 12 units")
report("150 Adam steps, state carried over", large, begin)

begin = time.perf_counter()
stayed, _, stay = adam(*adam(by_fisher, None, 150, seed=2, name="again")[:2], 150, seed=3, name="adam, stays at 4")
report("for comparison: 4 units, 300 Adam steps", stayed, begin)

# %% [markdown]
# ## The table and the pictures

# %%


def spread(values, form):
    return f"{values.mean():{form}} ± {values.std():{form}}"


head = f"{'step':<42s} {'width':>5s}  {'training loss':<17s} {'test accuracy':<17s} {'violation':>9s} {'seconds':>8s}"
print(head + "\n" + "-" * len(head))
for what, width, losses, accuracy, violation, seconds in ROWS:
    print(
        f"{what:<42s} {width:>5d}  {spread(losses, '.4f'):<17s} {spread(accuracy, '.4f'):<17s} {violation:>9.1e} {seconds:>8.2f}"
    )
print(f"\nmean ± standard deviation over {MEMBERS} members; violation: the largest |W'W - I| of any member")


def band(axis, curve, label, first=0):
    steps = torch.arange(first, first + len(curve))
    middle, width = curve.mean(1), curve.std(1)
    axis.plot(steps, middle, label=label)
    axis.fill_between(steps, middle - width, middle + width, alpha=0.2)


figure, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
band(axes[0], gradient_curve, f"gradient, rate {best}")
band(axes[0], fisher_curve, "natural gradient (KFAC)")
axes[0].set(title="Same steps, same batches", xlabel="step", ylabel="training loss", yscale="log")
smooth = lambda c: c.unfold(0, 10, 10).mean(-1)
for curve, label, first in (
    (before, "4 units", 0),
    (after, "grown to 12, state carried", 15),
    (stay, "stays at 4", 15),
):
    band(axes[1], smooth(curve), label, first)
axes[1].axvline(15, color="grey", lw=1, ls=":")
axes[1].set(title="Adam before and after the growth step", xlabel="ten steps", ylabel="batch loss", yscale="log")
axes[2].plot(AMPLITUDES, previews.T, color="grey", alpha=0.6)
axes[2].plot(AMPLITUDES, previews.mean(0), color="C1", label="mean")
axes[2].set(
    title="Preview: loss over the amplitude of the new units",
    xlabel="amplitude",
    ylabel="training loss",
    xscale="symlog",
)
for axis in axes:
    axis.legend()
    axis.grid(alpha=0.3)
figure.savefig(OUT / "tour_training.png", dpi=110)

weights = vmap(encoder.effective_W)(large["encoder"])
figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
tiles = F.pad(weights[0].T.reshape(2, 8, 8, 8), (1, 1, 1, 1), value=torch.nan)
limit = weights[0].abs().max()
axes[0].imshow(tiles.permute(0, 2, 1, 3).reshape(20, 80), cmap="RdBu_r", vmin=-limit, vmax=limit)
axes[0].set(title="The 16 orthonormal filters of the first member", xticks=[], yticks=[])
axes[1].plot(vmap(encoder.singular_values)(large["encoder"]).T, ".-", color="C0", alpha=0.5)
axes[1].plot(vmap(torch.linalg.svdvals)(large["hidden"]["weight"]).T, ".-", color="grey", alpha=0.4)
axes[1].set(title="Singular values after training: encoder (blue), hidden (grey)", xlabel="index", ylim=(0, None))
figure.savefig(OUT / "tour_promise.png", dpi=110)
print(f"plots: {', '.join(sorted('notebooks/out/' + p.name for p in OUT.glob('tour_*.png')))}")
print(f"total: {time.perf_counter() - START:.0f} s")
