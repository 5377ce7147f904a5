"""What a module of another library holds, read with checks, and without an import: classes are known by name alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from linmaps.composed.compose import Affine
from linmaps.composed.composite import Composite
from linmaps.numerics.dtypes import working_dtype

Found = tuple[Any, dict[str, Any]]  # a Map or an RNNCell, and its params


class Seen:
    """What a module holds, read with a check: another library may have a class of the same name."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.title = f"from_module: {type(module).__name__}"

    def get(self, name: str, kind: type | tuple[type, ...]) -> Any:
        value = getattr(self.module, name, None)
        if not isinstance(value, kind):
            raise TypeError(
                f"{self.title} whose {name} is {type(value).__name__}, as no module of slim; choose a spec of "
                "linmaps.maps and copy its leaves"
            )
        return value

    def tensor(self, name: str, *shape: int) -> Tensor:
        """Half precision comes as float32, to be computed with."""
        t: Tensor = self.get(name, Tensor).detach()
        if tuple(t.shape) != shape:
            raise TypeError(f"{self.title} whose {name} has shape {tuple(t.shape)}, expected {shape}")
        return t.to(working_dtype(t.dtype))

    def number(self, name: str) -> float:
        value = self.get(name, (int, float, Tensor))
        return float(value.detach()) if isinstance(value, Tensor) else value

    def part(self, name: str) -> Seen:
        return Seen(self.get(name, torch.nn.Module))

    @property
    def sizes(self) -> tuple[int, int]:
        return self.get("in_features", int), self.get("out_features", int)

    @property
    def n(self) -> int:
        n, m = self.sizes
        if n != m:
            raise ValueError(f"{self.title} of {n} x {m}: it has no matrix; make it square")
        return n

    @property
    def bounds(self) -> dict[str, Any]:
        return {key: self.number(key) for key in ("sigma_min", "sigma_max")}


def with_bias(seen: Seen, spec: Any, params: dict[str, Any]) -> Found:
    """The bias of a module, where it has one, added to what its matrix became."""
    bias = getattr(seen.module, "bias", None)
    if bias is None or "bias" in params:  # there already: that of an inner map, which is the one in use
        return spec, params
    row = bias.detach().reshape(-1)
    if "twiddle" in params and params["twiddle"].is_complex():
        row = torch.view_as_complex(row.reshape(-1, 2))
    row = row.expand(spec.out_features)
    if isinstance(spec, Composite):
        return Affine(spec), {"map": params, "bias": row}
    return replace(spec, bias=True), params | {"bias": row}
