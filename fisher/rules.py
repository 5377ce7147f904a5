"""The rules of the collector, for those who add one: which torch call uses a parameter leaf how.

A rule for a call that torch dispatches (`torch.overrides`); y = x W / 2, so that the layer's input is x / 2:

>>> import torch, fisher
>>> from torch.overrides import wrap_torch_function
>>> half_linear = wrap_torch_function(lambda x, w: (x, w))(lambda x, w: x @ w / 2)
>>> def rule(args, kwargs, view):
...     x, w = args
...     return fisher.rules.Match("half_linear", view(w), None, x / 2, fisher.rules.Form(True)) if view(w) else None
>>> fisher.rules.register(half_linear, rule)
>>> f = lambda p, x: torch.tanh(half_linear(x, p["w"]))
>>> fisher.LayerCollection.from_function(f, {"w": torch.ones(2, 3)}, torch.ones(4, 2))
LayerCollection: 1 leaves, 6 parameters, 1 blocks, 52 B
layer  block      kind         out x in  uses  bytes  leaves  note
w      kronecker  half_linear  3 x 2        1   52 B  w
>>> del fisher.rules.RULES[half_linear]
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
