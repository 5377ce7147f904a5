"""Laplace posteriors against laplace-torch, float32: the fit, predictions, the prior tuned.

MLP 784-128-64-10 of N = 1,000 examples, Kronecker factors, all layers and the last alone.  The peer is optional
(tests/fisher/recipes/peer.py); without it ours alone is timed.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fisher
from fisher.recipes import laplace, tune_prior_precision
from tests.bench.harness import race
from tests.fisher.recipes import peer

N, MANY, SOME = 1000, 1000, 20


def main() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 10)).eval()
    x, y = torch.randn(N, 784), torch.arange(N) % 10
    f, params = fisher.functional(module)
    layers = fisher.LayerCollection.from_function(f, params, x)
    for name, own, weights in (("all layers", layers, "all"), ("last layer", layers.select(["4"]), "last_layer")):
        fit = lambda own=own: laplace(f, params, fisher.fim(f, params, x, fisher.PMatKFAC, layers=own), N)
        posterior = fit()
        found = {
            "fit": {"ours": fit},
            "decompose": {"ours": lambda p=posterior: laplace(f, params, p.F, N)},
            f"predict {SOME}": {"ours": lambda p=posterior: p.probabilities(x[:SOME])},
            "tune the prior": {"ours": lambda p=posterior: tune_prior_precision(p)},
        }
        if weights == "last_layer":
            found[f"predict {MANY}"] = {"ours": lambda p=posterior: p.probabilities(x[:MANY])}
        if peer.laplace_torch() is not None:
            their_fit = lambda weights=weights: _theirs(module, weights, x, y)
            la = their_fit()
            found["fit"]["laplace-torch"] = their_fit
            found[f"predict {SOME}"]["laplace-torch"] = lambda la=la: la(
                x[:SOME], pred_type="glm", link_approx="probit"
            )
            if weights == "last_layer":
                found[f"predict {MANY}"]["laplace-torch"] = lambda la=la: la(x, pred_type="glm", link_approx="probit")
            found["tune the prior"]["laplace-torch"] = lambda la=la: la.optimize_prior_precision(method="marglik")
        for cell, ways in found.items():
            race(f"{cell}, {name}", ways, base=list(ways)[-1], rounds=3)


def _theirs(module: nn.Module, weights: str, x: Any, y: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peer.laplace_torch().Laplace(
            module, "classification", subset_of_weights=weights, hessian_structure="kron"
        )
        made.fit(DataLoader(TensorDataset(x, y), batch_size=N))
    return made


if __name__ == "__main__":
    main()
