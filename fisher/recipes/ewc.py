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


@typed
@full_precision()
def ewc_online(old: PMat | None, new: PMat, decay: float | Tensor = 1.0) -> PMat:
    """decay F_old + F_new, one matrix for all tasks so far, for `ewc_penalty` around the params of the last one.

        F = ewc_online(F, fim(f, params, task), decay)           # after each task; None before the first
        penalty = ewc_penalty(F, params, candidate, strength)    # while the next one is learned

    decay: in [0, 1], how much of the earlier tasks is kept; 1 forgets none.  Memory of one matrix where its numbers add up
    (diagonals, dense, blocks), else of one for each task until the dense blocks of layers are smaller.

    Schwarz et al. (2018), equations 8 and 9.

    >>> import torch, fisher
    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.zeros(2, 1)}
    >>> F = None
    >>> for x in (torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])):
    ...     F = ewc_online(F, fisher.fim(f, p, x, fisher.PMatDiag, "gaussian"), 0.5)
    >>> F.get_diag()["w"].T
    tensor([[2., 1.]])
    """
    checks.number(decay, "decay", low=0, high=1)
    return new if old is None else (old * decay + new)._compact()
