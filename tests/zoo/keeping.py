"""A module that keeps functions of its own, which Python does not copy with it."""

import torch
from torch import nn

from linmaps import trees


class Keeping(nn.Module):
    """Keeps functions of its own; without any of them it is `net`-like."""

    def __init__(self, kind="method"):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4, dtype=torch.float64), nn.Linear(4, 2, dtype=torch.float64)
        block = self._block
        if kind == "compiled method":
            self.block = torch.compile(self._block, backend="eager")
        elif kind == "compiled forward":
            self.forward = torch.compile(self.forward, backend="eager")
        elif kind == "graph":
            self.act = trees.compiled(torch.tanh, backend="eager")
            self.block = lambda x: self.act(self.inner(x))
        elif kind == "function":
            self.block = lambda x: self._block(x)
        elif kind == "function of a method":
            self.block = lambda x: block(x)
        elif kind == "functions in containers":
            self.steps = [lambda x: self._block(x), {"k": (lambda x: self.steps[0](x), 1)}]
            self.block = lambda x: self.steps[1]["k"][0](x)
        elif kind == "hook":
            self.register_forward_hook(lambda module, given, y: y + self.inner.weight.sum())

    def _block(self, x):
        return torch.tanh(self.inner(x))

    def forward(self, x):
        return self.outer(getattr(self, "block", self._block)(x))


KEPT = ("compiled method", "compiled forward", "graph", "function", "function of a method", "functions in containers",
        "hook", "method")  # fmt: skip
