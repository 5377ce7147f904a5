"""Checks: what is said before anything runs, by name, with what was got, what is expected and the cure.

In reading order:
    arguments     numbers, sizes, dtypes and devices of what a function is given
    wrapping      wrappers at home where the function is
    explanations  torch's own errors, in the words of the arguments
    annotations   arguments held against annotations
    precision     numbers in the precision of their tensors, whatever torch.autocast is on
    doors         what every public function of params does first
    modules       whether a torch module does what its class says
    uncompiled    what torch.compile was given
"""

from linmaps.checks.arguments import (
    Params,
    Shape,
    alike,
    floating,
    homogeneous,
    number,
    one_kind,
    require,
    room,
    size,
    values,
)

__all__ = [
    "Params",
    "Shape",
    "alike",
    "floating",
    "homogeneous",
    "number",
    "one_kind",
    "require",
    "room",
    "size",
    "values",
]


def __dir__() -> list[str]:
    return sorted(__all__)
