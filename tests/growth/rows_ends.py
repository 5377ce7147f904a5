"""Rows of the transform table: weights stored [in, out], transposed convolutions, tables."""

import growth
from tests.growth.ends import ENDS
from tests.laws import Case, Exempt


def step(name):
    n = ENDS[name]()

    def run(params, target, x=n.x):
        s = growth.statistics(n.f, params, (x, target), n.pair, "squared_error")
        new = growth.optimal_neurons(s, 1, ridge=0.3)
        grown = growth.grow(params, n.pair, delta=growth.optimal_delta(s, 0.3), scale=0.1)
        return {"move": new.fan_out @ new.joined, "grown": grown, "P": s.P}

    return Case(run, (n.params, n.target, *([n.x] if n.x.is_floating_point() else [])))


CASES: dict[str, Case | Exempt] = {
    f"growth.statistics/{name}": step(name)
    for name in ("x @ W into linear", "into a transposed one", "table and a mean", "1 x 1")
}
