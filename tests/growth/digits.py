"""The digits protocol: 1347 images to train on, 450 to test, one hidden layer of ReLU, SGD(0.1, momentum 0.9), batches of 64."""

import functools
import math

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import linear

import growth
from linmaps import trees

PAIR = growth.Pair("hidden", "output")


@functools.cache
def digits(seed: int = 0) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(train, test), each (x `[N, 64]` in [0, 1], classes `[N]`)."""
    x, y = load_digits(return_X_y=True)
    a, b, c, d = train_test_split(x / 16, y, test_size=0.25, random_state=seed)
    pack = lambda x, y: (torch.tensor(x, dtype=torch.float32), torch.tensor(y))
    return pack(a, c), pack(b, d)


def f(params, x: Tensor) -> Tensor:
    hidden, output = params["hidden"], params["output"]
    return linear(torch.relu(linear(x, hidden["weight"], hidden["bias"])), output["weight"], output["bias"])


def member(seed: int, width: int) -> dict:
    """A network initialized as torch.nn.Linear does."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n, *shape: (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(n)
    return {
        "hidden": {"weight": draw(64, width, 64), "bias": draw(64, width)},
        "output": {"weight": draw(width, 10, width), "bias": draw(width, 10)},
    }


def ensemble(members: int, width: int) -> dict:
    return trees.stack([member(seed, width) for seed in range(members)])


def orders(members: int, epochs) -> list[Tensor]:
    """Batches of each phase, `[members, steps, 64]`, in another order for each member."""
    made = [
        growth.shuffles(1347, epochs, 64, generator=torch.Generator().manual_seed(1000 + s)) for s in range(members)
    ]
    return [torch.stack(phase) for phase in zip(*made)]


def accuracy(data):
    x, y = data
    return lambda params: (f(params, x).argmax(-1) == y).float().mean()
