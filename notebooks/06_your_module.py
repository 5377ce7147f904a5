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
# # Your nn.Module: uncertainty, memory, influence, stability, growth and compression
#
# What can be had of a `torch.nn.Module` that was trained with a `DataLoader` and an optimizer of `torch.optim`,
# without rewriting it: error bars, memory of an earlier task, suspicious labels, cells that stay stable, more
# channels in mid-training, smaller matrices.  No `torch.func` is needed.  Run it as a
# script (`python notebooks/06_your_module.py`) or read it as a notebook with its outputs.
#
# > **Findings**
# >
# > * **Error bars depend on the prior, and on what doubts.**  On digits turned by 40° the softmax has a loss of 3.488;
# >   Laplace with the prior precision of most evidence has 1.670, but is far too cautious on digits as they are
# >   (calibration error 0.383 against 0.012).  On a curve its band holds 0.947 of new points where it says 0.95, and
# >   a last layer learns 80 points more by `update` as if it had seen all at once (curves apart by 0.0145).
# > * **A second task need not wipe out the first.**  Mean accuracy in both is 0.774 without a penalty, 0.862 with
# >   that of the diagonal Fisher matrix, 0.904 with that of KFAC, and 0.940 if both are learned at once.
# > * **Influence finds wrong labels where the loss cannot.**  Of the 46 images most harmful to held-out ones 0.935
# >   have wrong labels, though the network knows these by heart; by the loss 0.804, at random 0.080.  Of the ten
# >   images to blame for each wrong answer 0.823 have one.  In a network stopped early the loss finds 1.000.
# > * **A bound on the map is a bound on the rollout.**  The free cell passes radius 1 in training (1.0081), and
# >   after 900 steps its error is 5.55, where the signal is gone; a `Spectral` map ends at 0.9902, with a third of
# >   its error before.
# > * **Growth saves a run, and not more; half of an MLP is spare.**  Ten channels in closed form take the loss from
# >   0.205 to 0.139 at once, and end at 0.977; random ones end at 0.975, twelve from the start at 0.986.  Half of
# >   the entries of a transformer's MLPs can go (0.960 before, 0.951 after, 0.969 tuned).

# %%
import copy
import io
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import figures
import figures_module
import fisher
import growth
import linmaps
from fisher import recipes

START = time.process_time()
torch.set_num_threads(1)  # the networks are small: a second thread would only be waited for

digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, held_out, test = ((images[part], labels[part]) for part in order.split([1147, 200, 450]))
print(
    f"{len(train[0])} images {tuple(images.shape[1:])} to train on, {len(held_out[0])} held out, {len(test[0])} to test"
)

# %% [markdown]
# ## 1. A classifier, trained as ever
#
# *What does the library ask of a model?*  Nothing: this section is plain torch, and does not import from it.  A
# convolutional network, a `DataLoader`, Adam.

# %%


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 16, 10),
    )


def loader_of(data: tuple[Tensor, Tensor], seed: int = 0) -> DataLoader:
    return DataLoader(TensorDataset(*data), 64, shuffle=True, generator=torch.Generator().manual_seed(seed))


def fit(model: nn.Module, loader: DataLoader, epochs: int, rate: float = 3e-3, penalty=None) -> None:
    """Adam; `penalty` is a function of the named parameters, added to the loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    model.train()
    for _ in range(epochs):
        for x, t in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), t)
            if penalty is not None:
                loss = loss + penalty(dict(model.named_parameters()))
            loss.backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def scores(model: nn.Module, data: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Loss and accuracy."""
    y = model(data[0])
    return float(F.cross_entropy(y, data[1])), float((y.argmax(1) == data[1]).float().mean())


torch.manual_seed(0)
model, loader = conv_net(), loader_of(train)
fit(model, loader, epochs=30)
print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
for name, data in (("train", train), ("test", test)):
    print("{:5} loss {:.3f}, accuracy {:.3f}".format(name, *scores(model, data)))

# %% [markdown]
# ## 2. Laplace: how sure may it be?
#
# *The softmax says 0.99; is it right 99 times in 100, and on images unlike those of the training?*
# `fisher.functional` gives the module as a function `f(params, x)` beside its parameters, and leaves the module as it
# is.  `fim` takes the loader.  The Fisher matrix is printed with what was found in the network.

# %%
f, params = fisher.functional(model)
matrix = fisher.fim(f, params, loader)  # Kronecker factors, unless another representation is asked for
print(matrix)
print(matrix.layers)

# %% [markdown]
# The Laplace approximation takes the matrix as the precision of a Gaussian over the parameters; what is left to
# choose is the precision of the prior.  `tune_prior_precision` maximizes the evidence, from the training data alone.
# The other usual way is the loss on held-out images.  The matrix is decomposed once, whatever the prior.

# %%
posterior = recipes.laplace(f, params, matrix, n_examples=len(train[0]))
by_evidence = recipes.tune_prior_precision(posterior)


def nll(p: Tensor, t: Tensor) -> float:
    return float(F.nll_loss(p.log(), t))


GRID = [30.0, 100.0, 300.0, 1000.0, 3000.0]
tried = [recipes.laplace(f, params, matrix, len(train[0]), prior_precision=value) for value in GRID]
losses = [nll(p.probabilities(held_out[0]), held_out[1]) for p in tried]
by_held_out = tried[losses.index(min(losses))]
with torch.no_grad():
    logits = model(held_out[0])
    temperature = min((1.0, 1.25, 1.5, 2.0, 2.5, 3.0), key=lambda T: F.cross_entropy(logits / T, held_out[1]))
print(f"prior precision {by_evidence.prior_precision:.2f} by the evidence")
print("loss of held-out images by prior precision:", ", ".join(f"{v:g}: {loss:.3f}" for v, loss in zip(GRID, losses)))
print(f"{by_held_out.prior_precision:g} is taken; for comparison a temperature of {temperature:g}, by the same images")

# %% [markdown]
# *One prior for all, or one for each layer?  Probabilities by a formula, or by samples?*  `by="layer"` gives each layer
# its own precision.  A posterior of the last layer alone is that of a matrix of the last layer alone.  `link=` says how
# the Gaussian of the logits becomes probabilities: "probit" by MacKay's formula of each variance alone, "mc" by samples
# of all logits together.

# %%
by_layer = recipes.tune_prior_precision(posterior, by="layer")
of_last = fisher.fim(f, params, loader, layers=matrix.layers.select(["6"]))
last_alone = recipes.tune_prior_precision(recipes.laplace(f, params, of_last, len(train[0])))
fitted = posterior.log_likelihood(train)
priors = {
    "one number": by_evidence,
    "by layer": by_layer,
    "last layer alone": last_alone,
}
print(f"{'posterior, test images':26}{'evidence':>10}{'NLL, probit':>13}{'NLL, mc':>10}{'apart by':>10}")
for name, one in priors.items():
    probit = one.probabilities(test[0])
    drawn = one.probabilities(test[0], link="mc", generator=torch.Generator().manual_seed(0), n_samples=1000)
    print(
        f"{name:26}{one.log_marginal_likelihood(fitted):>10.1f}{nll(probit, test[1]):>13.3f}{nll(drawn, test[1]):>10.3f}"
        f"{(probit - drawn).abs().max():>10.3f}"
    )
print("prior precision by layer:", ", ".join(f"{name} {float(v):.2f}" for name, v in by_layer.prior_precision.items()))

# %% [markdown]
# The evidence prefers the last layer alone to all layers: a Gaussian around all weights claims more doubt than there is.
# Probit ignores that the logits of an image err together, and is the more cautious; samples cost a root of a 10 by 10
# matrix for each image, and say it of all of them.

# %% [markdown]
# Tested on the test images as they are, turned, and with noise.  The calibration error (ECE) is the mean distance
# between confidence and accuracy, in ten bins of confidence.

# %%


def turned(x: Tensor, degrees: float) -> Tensor:
    a = torch.tensor(degrees).deg2rad()
    turn = torch.stack([a.cos(), -a.sin(), a.new_zeros(()), a.sin(), a.cos(), a.new_zeros(())]).reshape(1, 2, 3)
    grid = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def calibration(p: Tensor, t: Tensor, bins: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Mean confidence, accuracy and share of the examples [bins], zero in empty bins."""
    confidence, guess = p.max(1)
    inside = F.one_hot((confidence * bins).long().clamp(max=bins - 1), bins).float()
    counts = inside.sum(0)
    mean = lambda values: values @ inside / counts.clamp_min(1)
    return mean(confidence), mean((guess == t).float()), counts / len(t)


def ece(p: Tensor, t: Tensor) -> float:
    confidence, accuracy, share = calibration(p, t)
    return float((share * (confidence - accuracy).abs()).sum())


noise = 0.4 * torch.randn(test[0].shape, generator=torch.Generator().manual_seed(1))
inputs = {
    "as they are": test[0],
    "turned by 40°": turned(test[0], 40),
    "with noise": test[0] + noise,
}
with torch.no_grad():
    found = {
        name: {
            "softmax": model(x).softmax(1),
            "temperature": (model(x) / temperature).softmax(1),
            "Laplace, held out": by_held_out.probabilities(x),
            "Laplace, evidence": by_evidence.probabilities(x),
        }
        for name, x in inputs.items()
    }
ways = list(found["as they are"])
print(f"{'test images':16}{'accuracy':>9}" + "".join(f"{way:>20}" for way in ways))
print(" " * 25 + f"{'NLL    ECE':>20}" * len(ways))
for name, of in found.items():
    accuracy = (of["softmax"].argmax(1) == test[1]).float().mean()
    print(
        f"{name:16}{accuracy:>9.3f}" + "".join(f"{nll(of[w], test[1]):>13.3f}{ece(of[w], test[1]):>7.3f}" for w in ways)
    )
shifted = found["turned by 40°"]
figures.show(
    figures_module.module_calibration(
        {way: calibration(shifted[way], test[1]) for way in ways if way != "temperature"}
    ),
    "module_calibration",
)

# %% [markdown]
# **Left: is confidence accuracy?**  Points below the dotted line are images of which the network is surer than it
# should be. The softmax gives most turned digits a confidence above 0.9 and is right in six of ten of these.  Laplace
# with the prior from held-out images is near it; with the prior of most evidence it lies on the other side of the
# line.
#
# **Right: how often each confidence is.**  The evidence knows nothing of held-out images, and its prior lets the
# network doubt nearly all turned digits.  That is the better choice where images like these must be expected, as the
# loss in the table says, and the worse one where they must not: on images as they are its calibration error is the
# largest.
#
# The digit that is named hardly changes by any of them.  A temperature is one number as well, costs nothing, and does
# here what the held-out prior does.

# %% [markdown]
# ## 3. Error bars on a curve, and what comes later
#
# *Where does a regression know nothing, and does it know that?*  80 points on both sides of a gap, noise of standard
# deviation 0.2, an MLP of torch.  `tune_noise(prior=True)` finds the noise and the prior precision together, of the
# same points.  Three posteriors: Kronecker factors, the dense matrix, and the last layer alone.

# %%
generator = torch.Generator().manual_seed(0)
law = lambda x: torch.sin(2 * x) + 0.3 * x


def measured(n: int, *ranges: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """n points of each range, with noise of standard deviation 0.2."""
    x = torch.cat([low + (high - low) * torch.rand(n, 1, generator=generator) for low, high in ranges])
    return x, law(x) + 0.2 * torch.randn(x.shape, generator=generator)


outer = (-3.0, -1.0), (1.0, 3.0)
seen_points, unseen_points, gap_points = measured(40, *outer), measured(200, *outer), measured(40, (-1.0, 1.0))
torch.manual_seed(0)
curve = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(curve.parameters(), lr=1e-2)
for _ in range(800):
    optimizer.zero_grad()
    F.mse_loss(curve(seen_points[0]), seen_points[1]).backward()
    optimizer.step()
c, weights = fisher.functional(curve)
layers = fisher.LayerCollection.from_function(c, weights, seen_points[0])
kinds = {
    "all layers, KFAC": (fisher.PMatKFAC, layers),
    "all layers, dense": (fisher.PMatDense, layers),
    "last layer alone": (fisher.PMatDense, layers.select(["4"])),
}
curves = {}
for name, (kind, own) in kinds.items():
    M = fisher.fim(c, weights, seen_points[0], kind, "gaussian", layers=own)
    curves[name] = recipes.tune_noise(recipes.laplace(c, weights, M, len(seen_points[0])), seen_points, prior=True)

# %% [markdown]
# Noise, prior, how many of 400 new points lie in the 95 % band, and the doubt (a standard deviation, without noise) in
# the gap, among the points, and beyond them.  `predict(joint=True)` is the covariance of all points together;
# `functional_laplace` has the same from kernels of the examples, without a matrix of the size of the parameters.

# %%
grid = torch.linspace(-4, 4, 161)[:, None]
at = {f"at x = {x}": 80 + 20 * x for x in (0, 2, 4)}
print(f"{'':20}{'noise':>8}{'prior':>8}{'in 95 %':>9}{'NLL':>8}   doubt" + "".join(f"{name:>12}" for name in at))
for name, posterior_of in curves.items():
    mean, S = posterior_of.predict(unseen_points[0], noise=True)
    normal = torch.distributions.Normal(mean[:, 0], S[:, 0, 0].sqrt())
    inside = ((unseen_points[1][:, 0] - normal.mean).abs() < 1.96 * normal.stddev).float().mean()
    doubt = posterior_of.predict(grid)[1][:, 0, 0].sqrt()
    print(
        f"{name:20}{float(posterior_of.likelihood.variance) ** 0.5:>8.3f}{float(posterior_of.prior_precision):>8.3f}"
        f"{inside:>9.3f}{-normal.log_prob(unseen_points[1][:, 0]).mean():>8.3f}{'':8}"
        + "".join(f"{doubt[k]:>12.3f}" for k in at.values())
    )
dense = curves["all layers, dense"]
joint = dense.predict(grid, joint=True)[1]
in_functions = recipes.functional_laplace(
    c, weights, seen_points[0], dense.prior_precision, likelihood=dense.likelihood, layers=layers
).predict(grid, joint=True)[1]
print(
    f"joint covariance of {len(grid)} points {tuple(joint.shape)}, from kernels of the {len(seen_points[0])} examples "
    f"off by {(joint - in_functions).abs().max() / joint.abs().max():.1e} of its largest entry"
)

# %% [markdown]
# The dense posterior finds the noise and its band holds what it says.  Factors, which leave out how layers err
# together, blame the noise, and their band is too wide.  The last layer alone is nearly as good with 33 of the 1,153
# parameters, but in the gap it doubts less than it should: its features are taken for granted.
#
# *Then points of the gap arrive, and the old ones are gone.*  `log_prob` is the prior of what is learned next, and
# `update` adds what the new points know.  Of a last layer both are exact.

# %%
tuned = curves["last layer alone"]
ownership = tuned.matrix.known_layers


def settled(data: tuple[Tensor, Tensor], prior) -> dict[str, Tensor]:
    """Parameters with the last layer at the minimum of -log p(data | params) - prior(params)."""
    model = copy.deepcopy(curve)
    free = torch.optim.LBFGS(model[4].parameters(), max_iter=500, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        free.zero_grad()
        fit = tuned.likelihood.log_prob(model(data[0]), data[1]).sum()
        value = -fit - prior(dict(model.named_parameters()))
        value.backward()
        return value

    free.step(loss)
    return fisher.functional(model)[1]


def matrix_at(params: dict[str, Tensor], x: Tensor):
    return fisher.fim(c, params, x, fisher.PMatDense, tuned.likelihood, layers=ownership)


broad = lambda p: -tuned.prior_precision / 2 * (p["4.weight"].square().sum() + p["4.bias"].square().sum())
start = settled(seen_points, broad)
first = recipes.laplace(c, start, matrix_at(start, seen_points[0]), len(seen_points[0]), tuned.prior_precision)
moved_on = settled(gap_points, first.log_prob)  # what was learned is the prior of what is learned next
second = first.update(matrix_at(moved_on, gap_points[0]), len(gap_points[0]), moved_on)
forgetful = settled(gap_points, lambda p: 0.0)

everything = tuple(torch.cat(parts) for parts in zip(seen_points, gap_points))
whole = settled(everything, broad)
at_once = recipes.laplace(c, whole, matrix_at(whole, everything[0]), len(everything[0]), tuned.prior_precision)
error = lambda params, data: float(F.mse_loss(c(params, data[0]), data[1]))
print(f"{'mean squared error':34}{'outer points':>14}{'points of the gap':>19}{'doubt at 0':>12}")
for name, (params_of, posterior_of) in {
    "before": (start, first),
    "after the gap, no prior": (forgetful, None),
    "after the gap, log_prob and update": (moved_on, second),
    "all points at once": (whole, at_once),
}.items():
    spread = "" if posterior_of is None else f"{posterior_of.predict(torch.zeros(1, 1))[1].sqrt().item():.3f}"
    print(f"{name:34}{error(params_of, unseen_points):>14.3f}{error(params_of, gap_points):>19.3f}{spread:>12}")
(mean, S), (mean_at_once, S_at_once) = second.predict(grid), at_once.predict(grid)
print(
    f"curves apart by at most {(mean - mean_at_once).abs().max():.4f}, "
    f"their standard deviations by {(S.sqrt() - S_at_once.sqrt()).abs().max():.4f}"
)
shown_curves = {
    "all layers": (curves["all layers, dense"], seen_points),
    "last layer alone": (first, seen_points),
    "last layer, after the points of the gap": (second, everything),
}
figures.show(
    figures_module.module_error_bars(
        grid[:, 0],
        law(grid)[:, 0],
        {
            name: (points, *(t.flatten() for t in posterior_of.predict(grid, noise=True)))
            for name, (posterior_of, points) in shown_curves.items()
        },
    ),
    "module_error_bars",
)

# %% [markdown]
# Without the prior the points of the gap are all that the layer knows, and the outer ones are lost.  With `log_prob`
# and `update` the curve and its doubt are those of all points at once, though the first 80 were never seen again.
#
# **Left:** the band of the dense posterior opens in the gap, where nothing was measured.  **Middle:** that of the last
# layer opens less.  **Right:** the points of the gap close it.

# %% [markdown]
# ## 4. A second task, without forgetting the first
#
# *The network is to learn something else; what keeps it from losing what it knew?*  The first task are the digits,
# the second the same digits with all pixels moved to other places, always in the same way.  Elastic weight
# consolidation adds to the loss of the second task `ewc_penalty`, the distance from the old parameters in the metric
# of their Fisher matrix.  It takes the live parameters of the module, and gradients go through it.

# %%


def dense_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))


places = torch.randperm(64, generator=torch.Generator().manual_seed(3))
moved = lambda data: (data[0].flatten(1)[:, places].reshape(data[0].shape), data[1])
first = loader_of(train)

torch.manual_seed(0)
knows_first = dense_net()
fit(knows_first, first, epochs=20, rate=1e-3)
g, anchor = fisher.functional(knows_first)
metrics = {
    "diagonal": fisher.fim(g, anchor, first, fisher.PMatDiag),
    "KFAC": fisher.fim(g, anchor, first, fisher.PMatKFAC),
}


def both(model: nn.Module) -> tuple[float, float]:
    """Test accuracy in the first task and in the second."""
    return scores(model, test)[1], scores(model, moved(test))[1]


def after_second(penalty=None) -> tuple[float, float]:
    model = copy.deepcopy(knows_first)
    fit(model, loader_of(moved(train), seed=1), epochs=15, rate=1e-3, penalty=penalty)
    return both(model)


STRENGTHS = (1, 10, 100, 1000)
curves = {
    name: [after_second(lambda p: recipes.ewc_penalty(metric, anchor, p, strength=s)) for s in STRENGTHS]  # noqa: B023
    for name, metric in metrics.items()
}
torch.manual_seed(0)
at_once = dense_net()
fit(at_once, loader_of(tuple(torch.cat(parts) for parts in zip(train, moved(train)))), epochs=20, rate=1e-3)
plain = after_second()
best = {name: max(zip(points, STRENGTHS), key=lambda point: sum(point[0])) for name, points in curves.items()}
rows = {"after the first task": both(knows_first), "second task, no penalty": plain}
rows |= {f"second task, {name}, strength {s}": point for name, (point, s) in best.items()}
rows |= {"both tasks at once": both(at_once)}
print(f"{'test accuracy':40}{'first':>8}{'second':>8}{'mean':>8}")
for name, (one, two) in rows.items():
    print(f"{name:40}{one:>8.3f}{two:>8.3f}{(one + two) / 2:>8.3f}")
figures.show(figures_module.module_two_tasks(curves, STRENGTHS, plain, both(at_once)), "module_two_tasks")

# %% [markdown]
# Each line is one metric at four strengths.  Without the penalty (cross) the second task is learned and a third of
# the first is lost.  The diagonal must be strong to keep the first task, and then hinders the second.  KFAC knows
# which parameters belong together, and keeps what matters with room to learn: at strength 10 its loss in the first
# task is that of three images in a hundred.  Learning both at once (star) stays out of reach for all: a quadratic
# penalty does not make up for the data.

# %% [markdown]
# ## 5. Which labels are wrong?
#
# *Among 1,147 labels 92 are wrong; which?*  `self_influence` says what a training example does to its own loss,
# `influence` what it does to the loss of others, here of the 200 held-out images, whose labels are right.  The
# network is looked at early, and late, when it has learned the wrong labels by heart.  The plain loss of each example
# is the ranking to beat.

# %%
g = torch.Generator().manual_seed(5)
wrong = torch.randperm(len(train[1]), generator=g)[:92]
flipped = torch.zeros(len(train[1]), dtype=torch.bool)
flipped[wrong] = True
given = train[1].clone()
given[wrong] = (given[wrong] + torch.randint(1, 10, (92,), generator=g)) % 10
noisy = (train[0], given)

torch.manual_seed(0)
pupil, noisy_loader = conv_net(), loader_of(noisy)
rankings = {}
for name, epochs in (("early", 15), ("late", 85)):
    fit(pupil, noisy_loader, epochs)
    h, p = fisher.functional(pupil)
    metric = fisher.fim(h, p, noisy_loader).eigendecomposition()
    with torch.no_grad():
        loss = F.cross_entropy(pupil(noisy[0]), given, reduction="none")
    own = recipes.self_influence(h, p, noisy, metric, regul=1e-3)
    on_others = recipes.influence(h, p, noisy, metric, held_out, regul=1e-3).mean(0)
    rankings[name] = {"loss": loss, "self-influence": -own, "influence on held-out": on_others}
    print(
        f"{name}: accuracy {scores(pupil, test)[1]:.3f} on the test images, "
        f"{scores(pupil, (noisy[0][flipped], given[flipped]))[1]:.3f} on the wrong labels"
    )

order_by = lambda score: score.argsort(descending=True)
precision = lambda score, k: float(flipped[order_by(score)[:k]].float().mean())
print(f"\n{'share of wrong labels among the first':40}" + "".join(f"{k:>8}" for k in (23, 46, 92)))
print(f"{'at random':40}" + "".join(f"{flipped.float().mean():>8.3f}" for _ in range(3)))
for name, ranking in rankings.items():
    for way, score in ranking.items():
        print(f"{name + ', by ' + way:40}" + "".join(f"{precision(score, k):>8.3f}" for k in (23, 46, 92)))
suspects = order_by(rankings["late"]["influence on held-out"])[:12]
shown = (train[0][suspects], given[suspects], train[1][suspects])
figures.show(figures_module.module_wrong_labels(rankings, flipped, shown), "module_wrong_labels")

# %% [markdown]
# **Left: stopped early.**  The network knows none of the wrong labels yet (accuracy 0.000 on them), so a large loss
# is all that it takes; both influences do the same or worse, at the cost of a Fisher matrix.
#
# **Middle: late.**  Now the network agrees with 98 of 100 wrong labels, and their loss is small.  The influence on
# held-out images still names them: to have learned them by heart harms others.  So where training was long, or was
# somebody else's, a few images with good labels are worth more than the loss.
#
# **Right: the most harmful images**, with the label that they were given and the true one.

# %% [markdown]
# *Which images make the network miss this one?*  `measurement=` takes any number of outputs in place of a loss: here the
# margin of the true digit over the one that the network names, of each test image that it gets wrong.  For each of
# these the ten training images are taken whose weight lowers the margin most.
#
# *And without the suspects?*  A weight in the data, `(x, target, weight)`, multiplies an example's loss: weight 0 leaves
# it out, of training, of the Fisher matrix and of influences alike.

# %%
with torch.no_grad():
    said = pupil(test[0]).argmax(1)
missed = (said != test[1]).nonzero().squeeze(1)


def margin(params: dict[str, Tensor], x: Tensor, pair: Tensor) -> Tensor:
    """Logit of the true digit minus that of the digit named, [B]."""
    true, named = h(params, x).gather(1, pair).unbind(1)
    return true - named


questions = (test[0][missed], torch.stack([test[1][missed], said[missed]], 1))
blame = recipes.influence(h, p, noisy, metric, questions, regul=1e-3, measurement=margin)
top = blame.argsort(1)[:, :10]
says_so = given == said[missed][:, None]
print(f"{len(missed)} test images are missed; of the ten images to blame for each, and of all images:")
print(f"labelled as the wrong answer {says_so.gather(1, top).float().mean():.3f}, {says_so.float().mean():.3f}")
print(f"with a wrong label           {flipped[top].float().mean():.3f}, {flipped.float().mean():.3f}")


def taught(weight: Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = conv_net().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        for x, t, w in loader_of((*noisy, weight)):
            optimizer.zero_grad()
            (w * F.cross_entropy(model(x), t, reduction="none")).mean().backward()
            optimizer.step()
    return model.eval()


suspected = order_by(rankings["late"]["influence on held-out"])[:92]
at_random = torch.randperm(len(given), generator=torch.Generator().manual_seed(1))[:92]
weights_of = {name: torch.ones(len(given)) for name in ("all labels", "92 at random left out", "92 suspects left out")}
weights_of["92 at random left out"][at_random] = 0
weights_of["92 suspects left out"][suspected] = 0
weights_of["wrong labels left out"] = (~flipped).float()
print(f"\n{'30 epochs, test images':26}{'loss':>8}{'accuracy':>10}")
for name, weight in weights_of.items():
    print("{:26}{:>8.3f}{:>10.3f}".format(name, *scores(taught(weight), test)))
weight = weights_of["92 suspects left out"]
again = recipes.self_influence(h, p, (*noisy, weight), fisher.fim(h, p, (*noisy, weight)), regul=1e-3)
print(f"largest self-influence of a suspect of weight 0: {again[suspected].abs().max():.3f}")

# %% [markdown]
# Wrong answers come from wrong labels: most of the images to blame have one, and they carry the very digit that the
# network names four times as often as chance.  Without the suspects the loss on test images falls, and not by leaving
# out any 92; their digits do not get more often right, with so few images the harm of the good ones left out is the
# price.

# %% [markdown]
# ## 6. A recurrent cell that cannot explode
#
# *A model of a decaying signal is to be run for a thousand steps, and was trained on twenty; what keeps it in
# bounds?*  The signal is the sum of two damped oscillations, seen with noise.  An encoder reads 12 values, a linear
# map takes the hidden state from each step to the next.  Three maps: torch's own; `linmaps.Module` of `Schur`, whose
# eigenvalues are below 1 in modulus whatever the optimizer does; and torch's own whose weight is bound by
# `linmaps.parametrize` to singular values below 1.

# %%
SEEN, AHEAD, FAR, UNITS, STEPS = 12, 24, 1000, 24, 800
wave_generator = torch.Generator().manual_seed(0)


def waves(n: int) -> tuple[Tensor, Tensor]:
    """Signals [n, time] without noise, and with."""
    amplitude, phase = torch.randn(2, n, 2, 1, generator=wave_generator)
    time = torch.arange(SEEN + FAR)
    damping, frequency = torch.tensor([[0.02], [0.01]]), torch.tensor([[0.35], [0.9]])
    clean = (amplitude * torch.exp(-damping * time) * torch.cos(frequency * time + 3 * phase)).sum(1)
    return clean, clean + 0.2 * torch.randn(clean.shape, generator=wave_generator)


(_, seen), (clean, unseen) = waves(32), waves(64)


class Rollout(nn.Module):
    def __init__(self, hidden: nn.Module) -> None:
        super().__init__()
        self.encode, self.hidden, self.read = nn.Linear(SEEN, UNITS), hidden, nn.Linear(UNITS, 1, bias=False)

    def transition(self) -> Tensor:
        """The matrix [n, n] that takes a state, a row, to the next: made once, not at each step."""
        return self.hidden.weight.T

    def forward(self, start: Tensor, steps: int) -> Tensor:
        W, states = self.transition(), [self.encode(start)]
        for _ in range(steps):
            states.append(states[-1] @ W)
        return self.read(torch.stack(states[1:], 1)).squeeze(-1)


def free() -> nn.Module:
    return nn.Linear(UNITS, UNITS, bias=False)


MAPS = {
    "nn.Linear": free,
    "Module(Schur)": lambda: linmaps.Module(linmaps.Schur(UNITS)),
    "parametrize(Spectral)": lambda: linmaps.parametrize(
        free(), "weight", linmaps.Spectral(UNITS, sigma_min=0.1, sigma_max=1.0)
    ),
}


def radius(cell: Rollout) -> float:
    return float(torch.linalg.eigvals(cell.transition().detach()).abs().max())


def trained(make, seed: int) -> tuple[Rollout, list[float]]:
    torch.manual_seed(seed)
    cell = Rollout(make())
    optimizer, radii = torch.optim.Adam(cell.parameters(), lr=1e-2), [radius(cell)]
    for step in range(STEPS):
        batch = seen[torch.randint(len(seen), (16,))]
        optimizer.zero_grad()
        F.mse_loss(cell(batch[:, :SEEN], AHEAD), batch[:, SEEN : SEEN + AHEAD]).backward()
        optimizer.step()
        if step % 10 == 9:
            radii.append(radius(cell))
    return cell, radii


SEEDS = range(3)
cells = {name: [trained(make, seed) for seed in SEEDS] for name, make in MAPS.items()}
with torch.no_grad():
    rollouts = {name: torch.stack([cell(unseen[:, :SEEN], FAR) for cell, _ in of]) for name, of in cells.items()}
parts = {"1-24": slice(0, AHEAD), "25-100": slice(AHEAD, 100), "901-1000": slice(900, FAR)}
print(f"{'mean squared error, three seeds each':>58}{'largest radius':>38}")
print(
    f"{'hidden map':24}"
    + "".join(f"{'steps ' + part:>17}" for part in parts)
    + f"{'in training':>14}{'at the end':>14}"
)
for name, y in rollouts.items():
    errors = ((y - clean[:, SEEN:]) ** 2).mean(1)  # [seeds, time]
    radii = torch.tensor([r for _, r in cells[name]])
    print(
        f"{name:24}"
        + "".join(f"{errors[:, part].mean():>17.3g}" for part in parts.values())
        + f"{radii.max():>14.4f}{radii[:, -1].max():>14.4f}"
    )
widest = {name: max(SEEDS, key=lambda seed: of[seed][1][-1]) for name, of in cells.items()}
print(f"{'the signal itself':24}" + "".join(f"{(clean[:, SEEN:][:, p] ** 2).mean():>17.3g}" for p in parts.values()))
above = {name: sum(radii[-1] > 1 for _, radii in of) for name, of in cells.items()}
print("seeds that end above radius 1:", ", ".join(f"{name} {n} of {len(SEEDS)}" for name, n in above.items()))
figures.show(
    figures_module.module_stable_cell(
        {name: torch.tensor([r for _, r in of]) for name, of in cells.items()},
        {name: y[widest[name], 0] for name, y in rollouts.items()},
        clean[0, SEEN:],
        AHEAD,
    ),
    "module_stable_cell",
)

# %% [markdown]
# **Left: the spectral radius in training.**  Of the free map (orange) it goes over 1 again and again: nothing in the
# data of 24 steps holds it below, as the true one, 0.99, is close.  The other two cannot pass 1.  That of `Schur`
# creeps up: its moduli are sigmoids, and the optimizer has a long way to go where they are flat.
#
# **Right: one signal rolled out** for 1,000 steps by the seed with the largest radius.  On the steps trained on all
# are alike.  Beyond, the free map grows without end; that is one seed of three, and nobody knows before which one it
# will be. `Schur` damps too early, `Spectral` follows the signal over four decades.
#
# The map is made once for each rollout, by `transition`, and not at each step.  To call the module `hidden` inside of
# the loop is as right, and costs the making of the matrix at each step, more than ten times as long as the rest of
# the training.

# %% [markdown]
# ## 7. More channels, while the optimizer and its scheduler go on
#
# *The network turns out too small; must training start anew?*  Two convolutions with a batch norm between them, AdamW
# and a cosine schedule of 12 epochs.  After 4 epochs the 2 channels become 12.  `functional(..., buffers=True)`
# counts the running statistics among the parameters, the `Pair` names the norm, so that it grows along.

# %%
EPOCHS, GROW_AT, SMALL, LARGE = 12, 4, 2, 12


def norm_net(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 16, 10),
    )


@torch.no_grad()
def loss_in_train_mode(model: nn.Module) -> float:
    """Of all training images; a copy measures them, so that the running statistics of the module stay."""
    return float(F.cross_entropy(copy.deepcopy(model).train()(train[0]), train[1]))


pair = growth.Pair("0", "3", norm="1")


def closed_form(params, f, loader):
    """The best ten channels that first-order statistics can tell, in the metric of the outputs, and the best amplitudes."""
    metric = {"output_metric": "fisher", "shrinkage": 0.1}
    stats = growth.statistics(f, params, loader, pair)
    delta = growth.optimal_delta(stats, **metric)
    new = growth.optimal_neurons(stats, LARGE - SMALL, delta=delta, **metric)
    new = growth.choose_sign(f, params, loader, pair, new)
    few = (train[0][:512], train[1][:512])  # enough for two numbers
    found = growth.line_search(f, params, few, pair, new, delta)
    return growth.grow(params, pair, new, delta=delta, scale=found.scale)


def random_channels(params, f, loader):
    """Random incoming weights, zero outgoing ones."""
    return growth.widen(params, pair, LARGE - SMALL, method="zero_out", generator=torch.Generator().manual_seed(9))


# %% [markdown]
# `into_module` makes a module of the larger sizes, and puts its parameters where the old ones stood in the optimizer,
# with moments padded by zeros.  The scheduler knows the optimizer alone, and does not notice.

# %%


def grown_module(model: nn.Module, optimizer: torch.optim.Optimizer, grow, loader) -> nn.Module:
    model.eval()
    f, params = fisher.functional(model, buffers=True)
    return growth.into_module(model, grow(params, f, loader), optimizer=optimizer)


def course(seed: int, channels: int, grow=None):
    """The module after 12 epochs, the training loss and the rate after each, and the losses around growth."""
    torch.manual_seed(seed)
    model, loader = norm_net(channels), loader_of(train, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler, curve, around = CosineAnnealingLR(optimizer, EPOCHS), [], ()
    for epoch in range(EPOCHS):
        if epoch == GROW_AT and grow is not None:
            model = grown_module(model, optimizer, grow, loader)
            around = (curve[-1], scores(model, train)[0], loss_in_train_mode(model))
        model.train()
        for x, t in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), t).backward()
            optimizer.step()
        scheduler.step()
        curve.append(scores(model.eval(), train)[0])
    return model, curve, around


WAYS = {
    f"{SMALL} channels": (SMALL, None),
    "grown, closed form": (SMALL, closed_form),
    "grown, random channels": (SMALL, random_channels),
    f"{LARGE} channels": (LARGE, None),
}
runs = {name: [course(seed, *way) for seed in SEEDS] for name, way in WAYS.items()}
columns = {"train loss": 12, "test loss": 11, "accuracy": 10, "at growth: before": 20, "after": 8, "in train mode": 15}
print(f"{'mean of three seeds':26}" + "".join(f"{name:>{width}}" for name, width in columns.items()))
for name, of in runs.items():
    values = torch.tensor([(curve[-1], *scores(grown, test), *around) for grown, curve, around in of]).mean(0)
    print(f"{name:26}" + "".join(f"{v:>{width}.3f}" for v, width in zip(values.tolist(), columns.values())))
figures.show(
    figures_module.module_growth({name: torch.tensor([run[1] for run in of]) for name, of in runs.items()}, GROW_AT),
    "module_growth",
)

# %% [markdown]
# The lines are training losses, mean and range of three seeds.  The closed form falls at once, and is ahead of random
# channels for three epochs, with the momentum of AdamW and the rate of the schedule going on as if nothing had
# happened.  At the end both are equal within their range: growth by any channels beats staying at 2, and 12 channels
# from the start beat both.  What growth saves is the run that was already paid for.
#
# In train mode a batch norm measures its channels anew.  `grow` gives new ones the mean and the variance that they have
# on the data, which the statistics know, and a scale and a shift that undo these: the network is the same in both modes,
# and the first batch is no shock (last column).

# %% [markdown]
# ## 8. A transformer with smaller matrices
#
# *Most parameters of a transformer are in the two matrices of its MLPs; how many are needed?*  Each row of an image
# is a token.  `linmaps.factorize` takes a trained `nn.Linear` and returns a spec and params near it, `linmaps.Module`
# makes a layer of these, and three epochs of fine-tuning follow.  Small dense networks, trained from the start, are
# the measure.


# %%
class RowReader(nn.Module):
    def __init__(self, hidden: int = 256, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(0.1 * torch.randn(8, width))
        layer = nn.TransformerEncoderLayer(width, 4, hidden, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x.squeeze(1)) + self.place).mean(1))


def read_rows(hidden: int, epochs: int = 12) -> nn.Module:
    torch.manual_seed(0)
    model, loader = RowReader(hidden), loader_of(train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = OneCycleLR(optimizer, 3e-3, total_steps=epochs * len(loader))
    for _ in range(epochs):
        for x, t in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), t).backward()
            optimizer.step()
            scheduler.step()
    return model.eval()


def compressed(model: nn.Module, **options) -> tuple[nn.Module, list[float]]:
    """A copy whose MLPs are factorized, and the relative errors of their matrices."""
    model, errors = copy.deepcopy(model), []
    for layer in model.encoder.layers:
        for name in ("linear1", "linear2"):
            result = linmaps.factorize(getattr(layer, name), **options)
            spec, params = result
            setattr(layer, name, linmaps.Module(spec, params=params))
            errors.append(float(result.error))
    return model, errors


count = lambda model: sum(p.numel() for p in model.parameters())
reader = read_rows(256)
print(f"{'MLPs':26}{'parameters':>12}{'error of W':>12}{'accuracy':>10}{'fine-tuned':>12}")
print(f"{'dense, 256 hidden units':26}{count(reader):>12,}{'':12}{scores(reader, test)[1]:>10.3f}")
for kind in ("lowrank", "tt"):
    for rank in (0.5, 0.25, 0.1):
        small, errors = compressed(reader, factorization=kind, rank=rank)
        before = scores(small, test)[1]
        fit(small, loader_of(train), epochs=3, rate=1e-3)
        line = f"{kind + f', {rank:.0%} of them':26}{count(small):>12,}{sum(errors) / len(errors):>12.2f}"
        print(f"{line}{before:>10.3f}{scores(small, test)[1]:>12.3f}")
for hidden in (64, 24):
    dense = read_rows(hidden)
    print(f"{f'dense, {hidden} hidden units':26}{count(dense):>12,}{'':12}{scores(dense, test)[1]:>10.3f}")

# %% [markdown]
# The errors of the matrices are large, since trained matrices are not of low rank; the network bears them all the
# same. Half of the entries go without loss, and a tenth of them, tuned, is enough for 0.927.  But a network with 24
# hidden units, small from the start, has 0.958 with as many parameters: compression is for networks that somebody has
# already trained, not a way to train a small one.  (With 450 test images a difference of 0.02 says little.)

# %% [markdown]
# ## 9. Save and load
#
# *What survives `torch.save`?*  A `linmaps.Module` has a `state_dict` of its leaves.  A grown module has one of the
# larger sizes: `into_module` makes a module of it from the class of the small one.  Trees of params and Fisher
# matrices are saved as they are, and `torch.load` takes them with its default, `weights_only=True`.

# %%


def round_trip(thing):
    """Saved and loaded, and the size in kB."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file), file.getbuffer().nbytes / 1000


cell, other = cells["Module(Schur)"][0][0], Rollout(MAPS["Module(Schur)"]())
loaded, size = round_trip(cell.state_dict())
other.load_state_dict(loaded)
print(
    f"recurrent cell {size:6.1f} kB, same rollout: {torch.equal(cell(unseen[:, :SEEN], 50), other(unseen[:, :SEEN], 50))}"
)

large = runs["grown, closed form"][0][0]
loaded, size = round_trip(large.state_dict())
again = growth.into_module(norm_net(SMALL), loaded).eval()
print(f"grown network  {size:6.1f} kB, same outputs: {torch.equal(large(test[0]), again(test[0]))}, {again[0]}")

smallest = copy.deepcopy(small)
loaded, size = round_trip(small.state_dict())
smallest.load_state_dict(loaded)
print(f"transformer    {size:6.1f} kB, same outputs: {torch.equal(small(test[0]), smallest(test[0]))}")

loaded, size = round_trip(by_held_out)
restored = loaded.on_function(f)
same = torch.equal(restored.probabilities(test[0][:50]), by_held_out.probabilities(test[0][:50]))
print(f"posterior      {size:6.1f} kB, same probabilities: {same}, Laplace of {type(restored.F).__name__}")
print(f"total: {time.process_time() - START:.0f} s of the processor")

# %% [markdown]
# A posterior holds the function `f`, which no file takes: it is saved without, and gets it back by `on_function(f)`.
# `linmaps.trees.save(tree, path)` writes the same things as safetensors, which need no pickle and can be read by others.
