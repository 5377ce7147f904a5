"""What a fit trains on: tensors in memory by indices, or batches that come again, one in memory at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

from torch import Tensor

from fisher.checks.axes import batch_size
from fisher.checks.data import one_batch
from fisher.checks.finiteness import finite
from growth.checks.data import again, examples
from linmaps import trees
from linmaps.checks import size
from linmaps.trees.seals import sealed

CHUNK = 4096  # examples of tensors in memory that go through f at once
EPOCHS = 2**20


class Memory:
    """(x, target) in memory; order: indices of batches, one tensor `[steps, B]` per phase.

    parts: all of it for passes; total: batches of all phases.

    >>> import torch
    >>> feed = Memory((torch.eye(3), torch.arange(3)), [torch.tensor([[0, 2]])])
    >>> [target for _, target in feed.phase(0)], feed.total
    ([tensor([0, 2])], 1)
    """

    def __init__(self, data: Any, order: Sequence[Any], *, check_finite: bool = True) -> None:
        if not isinstance(data, tuple) or len(data) != 2:
            raise TypeError(
                f"data: got {type(data).__name__}, expected a tuple (x, target) of tensors in memory, or batches of those that "
                "come again (a list, a DataLoader)"
            )
        if not all(isinstance(index, Tensor) for index in order):
            raise TypeError(
                "order: got numbers of epochs for tensors in memory, expected indices of batches, a tensor [steps, B] per phase: "
                "growth.shuffles(n, epochs, batch, generator=...)"
            )
        self.data, self.order = sealed(data, "data"), order
        if check_finite:
            finite(self.data, "data", "clean or drop these examples (or pass check_finite=False)")
        n = batch_size(self.data)
        self.parts: Any = [trees.map(lambda t, i=i: t[i : i + CHUNK], self.data) for i in range(0, n, CHUNK)]
        self.total: int | None = sum(len(t) for t in order)

    def phase(self, number: int) -> Iterator[tuple[Any, Any]]:
        for index in self.order[number]:
            yield trees.map(lambda t, i=index: t.index_select(0, i), self.data)


class Stream:
    """Batches that come again; order: how many passes over them each phase trains for.

    >>> import torch
    >>> feed = Stream([(torch.ones(2, 1), torch.zeros(2)), (torch.ones(1, 1), torch.zeros(1))], [2, 0])
    >>> [len(x) for x, _ in feed.phase(0)], feed.total
    ([2, 1, 2, 1], 4)
    """

    def __init__(self, data: Any, order: Sequence[Any], *, check_finite: bool = True) -> None:
        again(data, "fit_and_grow")
        for i, epochs in enumerate(order):
            if isinstance(epochs, Tensor):
                raise TypeError(
                    f"order[{i}]: got a tensor for data that come in batches, expected how many epochs phase {i} trains for, an "
                    "int; indices are for a tuple (x, target) in memory"
                )
            size(epochs, f"order[{i}]", 0, EPOCHS, cure="epochs of this phase")
        self.parts, self.order, self.check_finite = data, order, check_finite
        self.total = sum(order) * len(data) if isinstance(data, Sized) else None

    def phase(self, number: int) -> Iterator[tuple[Any, Any]]:
        for _ in range(self.order[number]):
            for _, x, target, _ in examples(self.parts, (), progress=False, check_finite=self.check_finite):
                yield x, target


def feed(data: Any, order: Sequence[Any], *, check_finite: bool = True) -> Memory | Stream:
    """The one that data are.

    >>> import torch
    >>> type(feed([torch.ones(1)], [1])).__name__
    'Stream'
    """
    return (Memory if one_batch(data) else Stream)(data, order, check_finite=check_finite)


def drawn(noise: Any, order: Sequence[Any]) -> Callable[[int], Iterable[Any]]:
    """The noise of each step of a phase: None for all without any, else tensors of as many steps as order has.

    >>> import torch
    >>> list(drawn([torch.ones(2, 3)], [torch.zeros(2, 4)])(0))
    [tensor([1., 1., 1.]), tensor([1., 1., 1.])]
    """
    if noise is None:
        return lambda phase: itertools.repeat(None)
    steps = [len(t) if isinstance(t, Tensor) else None for t in order]
    if None in steps:
        raise ValueError("noise: got some for data that come in batches, expected None; give a generator")
    got = [len(t) for t in noise]
    if got != steps:
        raise ValueError(f"noise: got {got} steps by phase, expected {steps}, as order has")
    return lambda phase: noise[phase]
