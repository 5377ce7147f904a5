"""Embeddings of tasks: what a task asks of a network, as the Fisher information of its units.

U units: the outputs of each layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fisher.checks.finiteness import finite
from fisher.collector.collection import LayerCollection
from fisher.pmat.contract.pmat import PMat
from linmaps.checks import values
from linmaps.checks.annotations import typed
from linmaps.checks.arguments import alike
from linmaps.checks.precision import full_precision


@typed
@full_precision()
def task_embedding(F: PMat, layers: LayerCollection | None = None) -> Tensor:
    """The diagonal of F, its mean over the weights (and the bias) of each output unit, `[U]`.

    F: of one network on the inputs of a task, most often with a head trained for it and left out of F:
    `fim(f, params, data, PMatDiag, layers=layers.remove("head"))`.  layers: those that F was made with, or those given.  Entries
    of scales, shifts and leaves without a rule are units by themselves.  ValueError where no layers are known.

    Achille et al. (2019), section 3.

    >>> import torch, fisher
    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.zeros(2, 3)}
    >>> F = fisher.fim(f, p, torch.tensor([[1.0, 3.0]]), fisher.PMatKFAC, "gaussian")
    >>> task_embedding(F)
    tensor([5., 5., 5.])
    """
    known = F.known_layers if layers is None else layers
    if known is None:
        raise ValueError(
            f"layers: got none, and {type(F).__name__} knows none; give layers=LayerCollection.from_function(f, params, x)"
        )
    views = known.views(F.get_diag())
    return torch.cat([t.mean(-1).flatten() if t.ndim > 1 else t for t in views.values()])


@typed
@full_precision()
def task_distance(one: Tensor, other: Tensor) -> Tensor:
    """1 - cos(a / (a + b), b / (a + b)) of two embeddings a, b `[U]`, a scalar from 0 (equal) to 1 (no unit in common).

    Each unit counts alike, whatever the scale of its information; one that neither task uses does not count: two tasks that use
    none are equal, one that does and one that does not have none in common.  ValueError for embeddings of different lengths, and
    for numbers < 0 or not finite, which no diagonal of a Fisher matrix has.

    Achille et al. (2019), section 4.

    >>> import torch
    >>> task_distance(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor(1.)
    """
    alike(other, "other", one, "one", strict=True)
    for name, t in (("one", one), ("other", other)):
        if t.ndim != 1:
            raise ValueError(
                f"{name}: got shape {tuple(t.shape)}, expected [U], one embedding; of several use torch.func.vmap(task_distance)"
            )
        finite(t, name, "make it of finite params and data")
        seen = values(t)
        if seen is not None and bool((seen < 0).any()):
            raise ValueError(
                f"{name}: got {seen[seen < 0][0].item()}, expected numbers >= 0, the diagonal of a Fisher matrix; of a Hessian "
                "take the Gauss-Newton matrix"
            )
    if one.shape != other.shape:
        raise ValueError(
            f"other: got shape {tuple(other.shape)}, expected {tuple(one.shape)} as one, [U]: of one network"
        )
    total = one + other
    known = torch.where(total > 0, total, 1.0)
    a, b = one / known, other / known
    squared = (a @ a) * (b @ b)
    some, used = squared > 0, (total > 0).any()
    cosine = (a @ b) / torch.where(some, squared, 1.0).sqrt()
    return torch.where(used | total.isnan().any(), 1 - cosine, 0.0)
