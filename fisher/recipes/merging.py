"""Merging: one model of several that were trained apart, each parameter taken from those that are sure of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from fisher.checks import doors
from fisher.checks.finiteness import finite
from fisher.pmat.contract.damping import Regul
from fisher.pmat.contract.pmat import PMat
from linmaps import checks, trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision
from linmaps.trees.tree import Tree


@typed
@full_precision()
def merge(
    models: Sequence[Tree],
    Fs: Sequence[PMat],
    weights: Sequence[float | Tensor] | None = None,
    *,
    regul: Regul = 1e-8,
) -> Tree:
    """(sum w_i F_i)^-1 sum w_i F_i theta_i, a tree like params: the minimizer of sum w_i / 2 (p - theta_i)' F_i (p - theta_i).

    With regul / 2 |p - m|^2 on top, m = sum w_i theta_i / sum w_i: m + (sum w_i F_i + regul I)^-1 sum w_i F_i (theta_i - m), so
    that params of which no F says anything are those of the mean, not zero.  weights: of the models, 1 each; as F_i are means
    over examples, numbers of examples make it the mode of the product of the posteriors.

    Of diagonals as many divisions; of other representations as exact, by the solve of their sum (of several PMatKFAC by blocks
    of a layer up to 2,048 rows, beyond by conjugate gradients).  The models must be of one basin: merged are numbers, not
    permuted units.  ValueError for other numbers of models, matrices and weights, for a sum of weights that is not > 0, and
    for a result that is not finite.

    Matena and Raffel (2022), equation 3, with any representation in place of the diagonal.

    >>> import torch, fisher
    >>> f, models = lambda p, x: x * p["w"], [{"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([4.0, 4.0])}]
    >>> data = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> Fs = [fisher.fim(f, p, x, fisher.PMatDiag, "gaussian") for p, x in zip(models, data)]
    >>> merge(models, Fs, regul=0.0)
    {'w': tensor([2., 0.])}
    """
    for name, given in (("models", models), ("Fs", Fs)):
        doors.of_type(given, Sequence, name, "a list, as it is gone through more than once; make one: list(...)")
    weights = [1.0] * len(models) if weights is None else weights
    if not len(models) == len(Fs) == len(weights) or not len(models):
        raise ValueError(
            f"merge: got {len(models)} models, {len(Fs)} matrices and {len(weights)} weights, expected one of each for each "
            "model, at least one"
        )
    for number, F in enumerate(Fs):
        doors.of_type(F, PMat, f"Fs: {number}", "a PMat, as fim gives it")
        if F.layout != Fs[0].layout:
            raise ValueError(f"Fs: {number}: is a matrix of other params, expected those of Fs[0]: of one network")
    for number, w in enumerate(weights):
        checks.number(w, f"weights: {number}", low=0)
    total = sum(weights)
    checks.number(total, "weights: their sum", low=0, above=True)
    params = [F.check_vector(p, f"models: {number}") for number, (p, F) in enumerate(zip(models, Fs))]
    scaled = [F * w for F, w in zip(Fs, weights)]
    mean = _sum([trees.scale(w / total, p) for w, p in zip(weights, params)])
    pulls = _sum([F.mv(trees.sub(p, mean)) for F, p in zip(scaled, params)])
    merged = trees.add(mean, _sum(scaled).solve(pulls, regul))
    finite(merged, "merge", "no F says anything of such params, or models or Fs are not finite: give a regul > 0")
    return cast(Tree, merged)


def _sum(parts: list[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = total + part if isinstance(part, PMat) else trees.add(total, part)
    return total
