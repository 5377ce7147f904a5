"""Rules: which torch call uses a parameter leaf how.  One rule per kind of call.

A rule looks at one call and answers with a `Match`: the leaf in the role of the weight, the leaf in the role of the
bias, the tensor that enters the layer, and the `Form` that makes a product of matrices of the call.

    forms         what makes a product of matrices of a call
    match         what a rule is asked, and answers
    convolutions  convolutions and their transposes
    elementwise   scales, shifts and norms
    contractions  einsum, tensordot, batched and one-sided products
    lookup        embeddings and indices
    products      linear, matmul, sums
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fisher.collector.rules.contractions import bilinear, bmm, einsum, inner, mv, tensordot
from fisher.collector.rules.convolutions import convolution, transposed_convolution
from fisher.collector.rules.elementwise import (
    batch_norm,
    group_norm,
    imul,
    instance_norm,
    layer_norm,
    mul,
    prelu,
    rms_norm,
)
from fisher.collector.rules.forms import Arrangement, Channels, Contraction, Convolution, Elementwise, Form
from fisher.collector.rules.lookup import embedding, getitem, index_select
from fisher.collector.rules.match import Match, Rule, View
from fisher.collector.rules.products import add, addcmul, addmm, iadd, linear, matmul, mm

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


RULES: dict[Any, Rule] = {
    F.linear: linear,
    torch.matmul: matmul,
    torch.Tensor.matmul: matmul,
    torch.Tensor.__matmul__: matmul,
    torch.mm: mm,
    torch.Tensor.mm: mm,
    torch.addmm: addmm,
    torch.Tensor.addmm: addmm,
    torch.einsum: einsum,
    torch.tensordot: tensordot,
    torch.inner: inner,
    torch.Tensor.inner: inner,
    torch.bmm: bmm,
    torch.Tensor.bmm: bmm,
    torch.mv: mv,
    torch.Tensor.mv: mv,
    F.bilinear: bilinear,
    torch.add: add,
    torch.Tensor.add: add,
    torch.Tensor.__add__: add,
    torch.Tensor.__radd__: add,
    torch.Tensor.__iadd__: iadd,
    torch.Tensor.add_: iadd,
    torch.mul: mul,
    torch.multiply: mul,
    torch.Tensor.mul: mul,
    torch.Tensor.multiply: mul,
    torch.Tensor.__mul__: mul,
    torch.Tensor.__rmul__: mul,
    torch.Tensor.__imul__: imul,
    torch.Tensor.mul_: imul,
    torch.addcmul: addcmul,
    torch.Tensor.addcmul: addcmul,
    F.prelu: prelu,
    torch.prelu: prelu,
    torch.Tensor.prelu: prelu,
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    F.group_norm: group_norm,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
    F.embedding: embedding,
    torch.Tensor.__getitem__: getitem,
    torch.index_select: index_select,
    torch.Tensor.index_select: index_select,
    **{getattr(F, f"conv{n}d"): convolution(n) for n in (1, 2, 3)},
    **{getattr(F, f"conv_transpose{n}d"): transposed_convolution(n) for n in (1, 2, 3)},
}


def register(call: Callable[..., Any], rule: Rule) -> None:
    """Teach the collector how a torch call uses a leaf.

    `rule(args, kwargs, view) -> Match | None`, where `view(t)` says which leaf a tensor of the call is (None: no leaf),
    and None as the answer means that the rule does not cover this form of the call.  The call must be one that torch
    dispatches through `__torch_function__`.  A second rule for the same call is refused.

    >>> import torch, fisher
    >>> fisher.rules.register(torch.matmul, fisher.rules.matmul)
    Traceback (most recent call last):
    ValueError: torch.matmul: has a rule already (matmul); expected a call without one
    """
    if call in RULES:
        name = torch.overrides.resolve_name(call) or repr(call)
        raise ValueError(f"{name}: has a rule already ({RULES[call].__name__}); expected a call without one")
    RULES[call] = rule
