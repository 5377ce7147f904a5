"""The rules of the collector, for those who add one: which torch call uses a parameter leaf how.

>>> import torch, fisher
>>> fisher.rules.RULES[torch.nn.functional.linear].__name__
'linear'
"""

from fisher.collector.rules import (
    RULES,
    Arrangement,
    Channels,
    Contraction,
    Convolution,
    Elementwise,
    Form,
    Match,
    Rule,
    View,
    linear,
    matmul,
    register,
)

__all__ = [
    "RULES",
    "Arrangement",
    "Channels",
    "Contraction",
    "Convolution",
    "Elementwise",
    "Form",
    "Match",
    "Rule",
    "View",
    "linear",
    "matmul",
    "register",
]


def __dir__() -> list[str]:
    return sorted(__all__)
