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
# leading axis, and every step below is written for *one* network and mapped over the six with `torch.func.vmap`.
# Run it as a script (`python notebooks/01_tour.py`) or read it as a notebook with its outputs.
#
# > **Findings**
# >
# > * **A promise is kept.**  The orthogonal layer stays orthogonal through natural gradients, Adam and a growth step:
# >   $|W'W - I|$ is never above 2.2e-06, which is rounding in float32.
# > * **Per step the metric pays.**  After 10 natural-gradient steps the training loss is 0.871, after 10 plain steps on the
# >   same batches, at the best of four rates, 1.354.
# > * **Per second it does not, here.**  25 plain steps reach the same 0.871 in less than a second, the 10 natural ones take
# >   more than five: nearly all for the block of the 1,024 parameters of the orthogonal layer.
# > * **A layer grows in closed form.**  Eight new units, found in a tenth of a second without any training, bring the
# >   loss from 0.243 to 0.129 and the test accuracy from 0.881 to 0.914; what was learned stays as it was.
# > * **Growth is a way on, not a better end.**  150 steps of Adam later the grown networks have a test accuracy of 0.955,
# >   those that stay at 4 units 0.912; networks of 12 units from the start, by Adam alone, have 0.958.

# %%
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.func import grad, vmap
from tqdm import tqdm

import figures
import fisher
import growth
import linmaps
from linmaps import trees

START = time.perf_counter()
torch.set_num_threads(1)  # small matrices gain next to nothing from a second thread, and sums keep their order
MEMBERS = 6

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32)
t = torch.tensor(digits.target)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
train, test = order[:1347], order[1347:]
mean, std = x[train].mean(0), x[train].std(0)
x = (x - mean) / std.clamp_min(1.0)
x_train, t_train, x_test, t_test = x[train], t[train], x[test], t[test]
print(f"{len(train)} images to train on, {len(test)} to test on, {x.shape[1]} pixels, {MEMBERS} networks at once")

# %% [markdown]
# ## 1. One network, six members
#
# *What is a network here, and what is an ensemble?*  `encoder` is a *spec*: a frozen record of numbers, whose methods are
# pure functions of a dict of free parameters.  Its matrix is an orthogonal projection 64 → 16, whatever the optimizer
# does to the parameters.  `hidden` and `output` are plain dense layers.  The network is a function of a tree; there is
# no module.  An ensemble is the same tree with a leading axis.

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


def ensemble(width):
    return trees.stack([new_member(seed, width) for seed in range(MEMBERS)])


start = ensemble(4)
ROWS = []


def report(what, params, since):
    """A row of the table at the end."""
    width = params["hidden"]["bias"].shape[-1]
    ROWS.append((what, width, *vmap(measure)(params), time.perf_counter() - since))


report("start", start, START)
for path in trees.paths(start):
    print(f"{trees.path_str(path):<14s} {tuple(trees.get(start, path).shape)}")

# %% [markdown]
# ## 2. What the Fisher matrix sees
#
# *Which leaf is used how?*  `LayerCollection.from_function` watches the function once.  `hidden` and `output` get
# Kronecker factors.  The encoder's leaf is not a weight: the weight W is computed from it.  The map says so, and is one
# use of W, seen *through* to the leaf: its block is $J'(G \otimes A)J$ with J the derivative of W.

# %%
layers = fisher.LayerCollection.from_function(network, trees.unstack(start)[0], x_train)
print(layers)

# %% [markdown]
# ## 3. Natural gradient against plain gradient
#
# *What does the metric buy, per step and per second?*  A natural-gradient step solves $(F + \lambda I)\,d = \nabla L$
# with the Fisher matrix of the current batch: exactly in the outputs (nine columns for ten classes), in the mean over
# the examples of the batch.  Its length is a trust region: the output distribution may move by at most
# $\tfrac12 \eta^2 d'Fd = 0.01$ (a KL divergence).  Both methods get the same number of steps on the same batches; the
# plain step has the best of four step sizes.  Then the plain steps go on until they reach the same loss.

# %%
STEPS, BATCH = 10, 256
batches = torch.randint(len(x_train), (50 * STEPS, BATCH), generator=torch.Generator().manual_seed(1))


def plain_step(params, x, t, rate):
    return trees.axpy(-rate, grad(loss)(params, x, t), params)


def natural_step(params, x, t, divergence, damping):
    metric = fisher.fim(network, params, x, representation=fisher.PMatKFAC, layers=layers)
    direction = metric.solve(grad(loss)(params, x, t), regul=damping)
    rate = (2 * divergence / metric.vTMv(direction)).sqrt().clamp_max(1.0)
    return trees.axpy(-rate, direction, params)


def descend(step, name, steps=STEPS, until=0.0):
    """The params after so many steps, or when the mean loss is below a bound; the losses; the seconds."""
    params, curve, since = start, [], time.perf_counter()
    for index in tqdm(batches[:steps], desc=name, leave=False):
        params = vmap(lambda p: step(p, x_train[index], t_train[index]))(params)  # noqa: B023
        curve.append(vmap(lambda p: loss(p, x_train, t_train))(params))
        if curve[-1].mean() < until:
            break
    return params, torch.stack(curve), time.perf_counter() - since


def plain(rate, **options):
    return descend(lambda p, x, t: plain_step(p, x, t, rate), f"gradient, rate {rate}", **options)


tried = {rate: plain(rate) for rate in (0.1, 0.3, 1.0, 3.0)}
best = min(tried, key=lambda r: tried[r][1][-1].mean().nan_to_num(torch.inf).item())
by_gradient, gradient_curve, seconds = tried[best]
report(f"{STEPS} gradient steps (rate {best})", by_gradient, time.perf_counter() - seconds)

by_fisher, fisher_curve, seconds = descend(lambda p, x, t: natural_step(p, x, t, 0.01, 0.01), "natural gradient")
report(f"{STEPS} natural-gradient steps", by_fisher, time.perf_counter() - seconds)

goal = fisher_curve[-1].mean()
longer = {rate: plain(rate, steps=len(batches), until=goal) for rate in (1.0, 3.0)}
print(f"training loss after {STEPS} steps: {gradient_curve[-1].mean():.3f} plain, {goal:.3f} natural")
print(f"the natural steps take {seconds / STEPS:.2f} s each, {MEMBERS} networks together; to reach the same loss")
for rate, (_, curve, took) in longer.items():
    end = "reached" if curve[-1].mean() < goal else f"not reached, {curve[-1].mean():.3f}"
    print(f"  plain steps of rate {rate}: {len(curve)} in {took:.1f} s ({end})")

# %% [markdown]
# ## 4. Training goes on with Adam, and the layer grows
#
# *Does a larger layer help, and what does enlarging cost?*  Adam is torch's own: one optimizer for all six members, since
# it works entry by entry.

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
    return growth.grow(params, pair, new, delta=delta, scale=(0.0, scale)), new.gain, scale, losses


grown, gain, amplitude, previews = vmap(grow_one)(small)
state = growth.grow_like(state, small, grown)
report("grown by 8 units, closed form", grown, begin)
print("first-order gain of the new units:", " ".join(f"{g:.4f}" for g in gain))
print("amplitude chosen:                 ", " ".join(f"{a:6.0f}" for a in amplitude))
print("old entries unchanged:", bool((grown["hidden"]["weight"][:, :4] == small["hidden"]["weight"]).all()))

begin = time.perf_counter()
large, _, after = adam(grown, state, 150, seed=3, name="adam, 12 units")
report("150 Adam steps, state carried over", large, begin)

# %% [markdown]
# Two comparisons: what the same steps of Adam give without growth, and what they give to 12 units from the start (300
# steps of Adam, without the natural-gradient steps before).

# %%
begin = time.perf_counter()
stayed, _, stay = adam(*adam(by_fisher, None, 150, seed=2, name="again")[:2], 150, seed=3, name="adam, stays at 4")
report("instead: 4 units, 300 Adam steps", stayed, begin)

begin = time.perf_counter()
wide, wide_state, _ = adam(ensemble(12), None, 150, seed=2, name="adam, 12 units")
wide, _, _ = adam(wide, wide_state, 150, seed=3, name="adam, 12 units")
report("instead: 12 units from the start, Adam", wide, begin)

# %% [markdown]
# ## 5. The table and the pictures
#
# *Is the promise kept, and what did each step give?*

# %%


def spread(values, form):
    return f"{values.mean():{form}} ± {values.std():{form}}"


head = f"{'step':<39s} {'width':>5s}  {'training loss':<15s} {'test accuracy':<15s} {'violation':>9s} {'seconds':>8s}"
print(head + "\n" + "-" * len(head))
for what, width, losses, accuracy, violation, seconds in ROWS:
    numbers = f"{spread(losses, '.3f'):<15s} {spread(accuracy, '.3f'):<15s} {violation.max():>9.1e} {seconds:>8.2f}"
    print(f"{what:<39s} {width:>5d}  {numbers}")
print(f"\nmean ± standard deviation over {MEMBERS} members; violation: the largest |W'W - I| of any member")

figures.show(
    figures.tour_training(
        {f"gradient, rate {best}": gradient_curve, "natural gradient (KFAC)": fisher_curve},
        {"4 units": (0, before), "grown to 12, state carried": (150, after), "stays at 4": (150, stay)},
        AMPLITUDES,
        previews,
    ),
    "tour_training",
)

# %% [markdown]
# **Left: same steps, same batches.**  The training loss of the six members (line: mean, band: one standard deviation)
# after each of the first 10 steps.  The natural gradient starts behind, since its trust region keeps the first
# steps short, and is ahead from the third step on; its band is narrow as well.  So the metric makes a step worth more; it
# does not make it cheap, and the axis shows no seconds.
#
# **Middle: Adam before and after the growth step.**  The loss on batches, ten at a time, over the 300 steps of Adam;
# the dotted line is the growth step.  The grown networks (orange) start lower than the small ones ended (blue), without
# a jump upwards: the state of Adam was carried over.  Those that stay at 4 units (green) go on at the old, slow pace and
# end at ten times the loss, so it is the eight units that make the difference, not the steps.
#
# **Right: preview of the growth step.**  The training loss of each member, had its new units this amplitude; nothing is
# trained.  At 0 the function is the old one, near 0 the loss falls along its slope (the reported gain), and the minimum
# is far out, at 30 to 100; at 300 all is lost again.  So the closed form gives the direction, and the amplitude
# needs a search.

# %%
filters = encoder.effective_W(trees.unstack(large)[0]["encoder"]).T
of_encoder = vmap(torch.linalg.svdvals)(vmap(encoder.effective_W)(large["encoder"]))  # measured, not by construction
of_hidden = vmap(torch.linalg.svdvals)(large["hidden"]["weight"])
for name, values in (("encoder", of_encoder), ("hidden", of_hidden)):
    print(f"singular values of {name:<8s} {values.min():.6f} to {values.max():.6f}")
figures.show(figures.tour_promise(filters, of_encoder, of_hidden), "tour_promise")
print(f"total: {time.perf_counter() - START:.0f} s")

# %% [markdown]
# **Left: filters.**  The sixteen columns of W of the first member after training, drawn as images of 8 × 8 pixels; red
# weights are positive, blue ones negative.  They show no strokes that one could name: an orthogonal projection keeps
# lengths and angles of what it lets through, and nothing asks for sparse filters.
#
# **Right: singular values.**  Those of the two hidden layers, sorted, of all six members.  All 96 of the encoder are 1
# and lie on one line: this is the promise.  Those of the layer after it, which promises nothing, spread over more
# than a factor of ten.
