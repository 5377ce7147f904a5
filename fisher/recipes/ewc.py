"""Elastic weight consolidation: stay close to the params of earlier tasks, in the metric of their Fisher matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from fisher.pmat.contract.pmat import PMat
from linmaps import checks, trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision


@typed
@full_precision()
def ewc_penalty(F: PMat, anchor: Any, params: Any, strength: float | Tensor = 1.0) -> Tensor:
    """strength / 2 (params - anchor)' F (params - anchor), a scalar to add to the loss of a new task.

    params: of a module dict(model.named_parameters()), through which the gradient reaches it.  anchor: the params at which F
    was made, the end of the earlier task.  To the second order the penalty is strength times
    the Kullback-Leibler divergence of the outputs from those at the anchor, a mean over the earlier task's examples.

    Kirkpatrick et al. (2017), equation 3, with any representation in place of the diagonal.

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> anchor = {"w": torch.zeros(2, 1)}
    >>> F = fisher.fim(f, anchor, torch.eye(2), fisher.PMatDiag, "gaussian")
    >>> ewc_penalty(F, anchor, {"w": torch.ones(2, 1)}, strength=3.0)
    tensor(1.5000)
    """
    checks.number(strength, "strength", low=0)
    params, anchor = F.check_vector(params, "params"), F.check_vector(anchor, "anchor")
    return strength * F.vTMv(trees.sub(params, anchor)) / 2


@typed
@full_precision()
def ewc_total(tasks: Iterable[tuple[PMat, Any]], params: Any, strength: float | Tensor = 1.0) -> Tensor:
    """The sum of the penalties of several earlier tasks, each a pair (F, anchor).

    A sum has the minimizer (sum F)^-1 sum F anchor: neither the last anchor nor the mean of all.  ValueError for no task.

    >>> import torch, fisher
    >>> f = lambda p, x: x @ p["w"]
    >>> anchors = [{"w": torch.zeros(2, 1)}, {"w": torch.ones(2, 1)}]
    >>> tasks = [(fisher.fim(f, a, torch.eye(2), fisher.PMatDiag, "gaussian"), a) for a in anchors]
    >>> ewc_total(tasks, {"w": torch.ones(2, 1)})
    tensor(0.5000)
    """
    terms = [ewc_penalty(F, anchor, params, strength) for F, anchor in tasks]
    if not terms:
        raise ValueError(
            "tasks: got none, expected at least one pair (F, anchor); leave the penalty out for a first task"
        )
    return sum(terms[1:], terms[0])
