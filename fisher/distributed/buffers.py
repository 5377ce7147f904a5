"""Trees as few flat buffers of one dtype and device each, and back."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fisher.distributed.groups import near
from fisher.distributed.marks import Symmetric, from_triangle, is_marked, triangle
from linmaps import trees

LARGEST = 2**24  # numbers of a buffer of several tensors


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a leaf is: all that another process needs to know to make one."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str  # its type
    symmetric: bool

    @property
    def numbers(self) -> int:
        """How many are sent."""
        if not self.symmetric:
            return math.prod(self.shape)
        n = self.shape[-1]
        return math.prod(self.shape[:-2]) * (n * (n + 1) // 2)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The structure of a tree and the kinds of its leaves, marks taken whole."""

    structure: Any
    kinds: tuple[Kind, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, tree: Any) -> Plan:
        """The plan of a tree of tensors and marks."""
        flat, structure = trees.flatten(tree, is_marked)
        kinds = [(t.matrix, True) if is_marked(t) else (t, False) for t in flat]
        names = map(trees.path_str, trees.paths(structure.unflatten(range(len(flat)))))
        return cls(structure, tuple(Kind(tuple(t.shape), t.dtype, t.device.type, s) for t, s in kinds), tuple(names))

    @property
    def print(self) -> int:
        """A number that other plans do not have."""
        return zlib.crc32(
            repr([(n, k.shape, str(k.dtype), k.symmetric) for n, k in zip(self.names, self.kinds)]).encode()
        )

    def zeros(self) -> Any:
        """A tree of zeros, on the devices of this process."""
        made = [torch.zeros(k.shape, dtype=k.dtype, device=near(k.device)) for k in self.kinds]
        return self.structure.unflatten([Symmetric(t) if k.symmetric else t for t, k in zip(made, self.kinds)])

    def buckets(self) -> list[list[int]]:
        """The leaves that share a buffer, by their numbers."""
        found: dict[tuple[torch.dtype, str], list[list[int]]] = {}
        held: dict[tuple[torch.dtype, str], int] = {}
        for n, kind in enumerate(self.kinds):
            key = kind.dtype, kind.device
            if key not in found or held[key] + kind.numbers > LARGEST:
                found.setdefault(key, []).append([])
                held[key] = 0
            found[key][-1].append(n)
            held[key] += kind.numbers
        return [bucket for buckets in found.values() for bucket in buckets]

    def flat(self, tree: Any) -> Iterator[Tensor]:
        """The buffers `[numbers]` of a tree, one for each bucket, made when it is asked for; complex numbers as pairs."""
        flat = trees.flatten(tree, is_marked)[0]
        for bucket in self.buckets():
            yield torch.cat([self._numbers(flat[n]).flatten() for n in bucket])

    def empty(self) -> Iterator[Tensor]:
        """Buffers like those of `flat`, with no numbers yet."""
        for bucket in self.buckets():
            dtype = self.kinds[bucket[0]].dtype
            long = sum(self.kinds[n].numbers for n in bucket) * (1 + dtype.is_complex)
            real = dtype.to_real() if dtype.is_complex else dtype
            yield torch.empty(long, dtype=real, device=near(self.kinds[bucket[0]].device))

    def tree(self, buffers: Iterable[Tensor]) -> Any:
        """The tree of its buffers, which may be made one after the other: none is held."""
        made: dict[int, Any] = {}
        for bucket, buffer in zip(self.buckets(), buffers):
            wide = 1 + self.kinds[bucket[0]].dtype.is_complex
            for n, t in zip(bucket, buffer.split([self.kinds[n].numbers * wide for n in bucket])):
                made[n] = self._leaf(self.kinds[n], t)
        return self.structure.unflatten([made[n] for n in range(len(self.kinds))])

    @staticmethod
    def _numbers(leaf: Any) -> Tensor:
        t = triangle(leaf.matrix) if is_marked(leaf) else leaf
        return torch.view_as_real(t.contiguous()) if t.is_complex() else t

    def _leaf(self, kind: Kind, t: Tensor) -> Any:
        if kind.dtype.is_complex:
            t = torch.view_as_complex(t.unflatten(0, (-1, 2)))
        if not kind.symmetric:
            return t.reshape(kind.shape).clone()
        n = kind.shape[-1]
        return Symmetric(from_triangle(t.reshape(*kind.shape[:-2], n * (n + 1) // 2), n))
