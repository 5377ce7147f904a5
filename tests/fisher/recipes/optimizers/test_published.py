"""SOAP beside the algorithm as it was published, written down densely: every number of a run, with its corrections of bias."""

import pytest
import torch
from torch.func import grad, jacrev, vmap

from fisher.recipes import soap
from linmaps import trees
from tests.laws import close

D = torch.float64
R = torch.Generator().manual_seed(0)
X, T = torch.randn(40, 5, generator=R, dtype=D), torch.arange(40) % 3
P = {"w": torch.randn(5, 4, generator=R, dtype=D), "v": torch.randn(4, 3, generator=R, dtype=D)}
BATCHES = [(X[i : i + 8], T[i : i + 8]) for i in range(0, 40, 8)]


def f(p, x):
    return torch.tanh(x @ p["w"]) @ p["v"]


def loss(p, batch):
    return torch.nn.functional.cross_entropy(f(p, batch[0]), batch[1])


def factors(p, x):
    """{leaf: (second moment of its inputs, of the gradients of samples by its outputs)} under the model's own targets."""
    h = x @ p["w"]
    y = f(p, x)
    by_hidden = vmap(jacrev(lambda h: torch.tanh(h) @ p["v"]))(h)
    q = y.softmax(-1)
    H = torch.diag_embed(q) - q[:, :, None] * q[:, None, :]
    second = lambda t: t.T @ t / len(t)
    return {"w": (second(x), (by_hidden.mT @ H @ by_hidden).mean(0)), "v": (second(torch.tanh(h)), H.mean(0))}


def published(steps, every, rate, decay, first, second, eps):
    """Params after each step: factors L, R as moving averages without bias, Adam in their eigenbases, every so many steps new."""
    p, found = P, []
    m, v, bases, L = trees.zeros_like(P), {}, {}, {}
    for t in range(steps):
        batch = BATCHES[t % len(BATCHES)]
        g = grad(loss)(p, batch)
        seen = factors(p, batch[0])
        if t == 0:  # init saw the first batch too
            L = {name: [(1 - decay) * s for s in own] for name, own in seen.items()}
        L = {name: [decay * a + (1 - decay) * s for a, s in zip(L[name], own)] for name, own in seen.items()}
        moved = {}
        for name in p:
            if t % every == 0:
                fresh = [torch.linalg.eigh(s / (1 - decay ** (t + 2)))[1] for s in L[name]]
                if name in bases:
                    (U, W), (A, B) = bases[name], fresh
                    v[name] = (A.T @ U) ** 2 @ v[name] @ ((B.T @ W) ** 2).T
                bases[name] = fresh
            U, W = bases[name]
            m[name] = first * m[name] + (1 - first) * g[name]
            v[name] = second * v.get(name, torch.zeros_like(g[name])) + (1 - second) * (U.T @ g[name] @ W) ** 2
            mean = U.T @ m[name] @ W / (1 - first ** (t + 1))
            root = (v[name] / (1 - second ** (t + 1))).sqrt()
            flat = v[name] <= (10 * torch.finfo(D).eps) ** 2 * v[name].sum()  # logits moved alike
            moved[name] = -rate * U @ torch.where(flat, 0.0, mean / (root + eps)) @ W.T
        p = trees.add(p, moved)
        found.append(p)
    return found


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("betas", [(0.95, 0.95), (0.9, 0.99), (0.0, 0.5)])
def test_soap_is_the_published_algorithm(every, betas):
    numbers = {"rate": 0.03, "decay": 0.8, "eps": 1e-8}
    rule = soap(f, estimator="exact", bases_every=every, betas=betas, **numbers)
    p, state = P, rule.init(P, BATCHES[0])
    for t, want in enumerate(published(8, every, first=betas[0], second=betas[1], **numbers)):
        batch = BATCHES[t % len(BATCHES)]
        updates, state = rule.update(grad(loss)(p, batch), state, p, batch=batch)
        p = trees.add(p, updates)
        close(p, want, 1e-8, f"params after step {t}")
