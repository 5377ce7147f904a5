"""Rows of the transform table: convolutional pairs, sums of layers."""

import growth
from tests.growth.test_convolution import net as convolution
from tests.growth.test_sums import PAIR as SUMS
from tests.growth.test_sums import net as sums
from tests.laws import Case, Exempt

CONV = convolution("stride")
SUM, PARAMS, DATA = sums()


def step(net, taps="all"):
    def run(params, x):
        s = growth.statistics(net.f, params, (x, net.t), net.pair, taps=taps)
        return {"M_prev": s.M_prev, "P": s.P, "S_prev": s.S_prev, "delta": growth.optimal_delta(s, 0.3)}

    return run


def summed(params, x):
    s = growth.statistics(SUM, params, (x, DATA[1]), SUMS)
    new = growth.optimal_neurons(s, 2, ridge=0.1)
    return {"S": s.S, "delta": growth.optimal_delta(s, 0.1), "move": new.fan_out @ new.joined}


CASES: dict[str, Case | Exempt] = {
    "growth.statistics/convolution": Case(step(CONV), (CONV.params, CONV.x)),
    "growth.statistics/centre": Case(step(CONV, "centre"), (CONV.params, CONV.x)),
    "growth.statistics/sum": Case(summed, (PARAMS, DATA[0])),
    "growth.Sum": Exempt("a spec: paths of layers, no tensor"),
    "growth.Reading": Exempt(
        "static description of a function at its pairs; vmap of statistics with it: reading/test_once"
    ),
}
