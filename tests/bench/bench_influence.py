"""Influences beside kronfluence's: all pairs, by layer, by token, compressed, aggregated; EKFAC factors made beforehand.

`python -m tests.bench.bench_influence`.  Its own times contain the files that it writes and reads.  The peer is optional
(tests/fisher/kronfluence.py); without it ours alone is timed.
"""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import torch

import fisher
from fisher.recipes import influence
from tests.bench.harness import race
from tests.fisher import kronfluence

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pairs": ({}, {}),
    "by layer": ({"per_layer": True}, {"compute_per_module_scores": True}),
    "by token": ({"per_token": True}, {"compute_per_token_scores": True}),
    "of rank 8": ({"rank": 8}, {"query_gradient_low_rank": 8}),
    "sum of tests": ({"aggregate": "test"}, {"aggregate_query_gradients": True}),
}


def main(examples: int = 512, tests: int = 64, width: int = 128, rounds: int = 3) -> None:
    """Race both at each kind."""
    g = torch.Generator().manual_seed(0)
    module = kronfluence.Tokens(width, 10)
    x, y = torch.randn(examples, 16, width, generator=g), torch.randint(10, (examples, 16), generator=g)
    test, batch = (x[:tests] + 0.1, y[:tests]), 128
    f, params = fisher.functional(module)
    data, kind = list(zip(x.split(batch), y.split(batch))), fisher.Categorical(-1)
    F = fisher.fim(f, params, data, fisher.PMatEKFAC, kind, estimator="empirical")
    run = lambda **options: influence(f, params, data, F, test, loss=kind, regul=F.relative(0.1), **options)
    with tempfile.TemporaryDirectory() as folder:
        there = kronfluence.installed()
        peer: Any = kronfluence.Scores(module, kronfluence.summed, (x, y), test, folder, batch) if there else None
        for name, (ours, theirs) in KINDS.items():
            ways = {"ours": functools.partial(run, **ours)}
            if peer is not None:
                ways["kronfluence"] = functools.partial(peer.pairwise, **theirs)
            race(
                f"influences, {name}, {tests} tests, {examples} examples of 16 positions",
                ways,
                base="ours",
                rounds=rounds,
            )


if __name__ == "__main__":
    main()
