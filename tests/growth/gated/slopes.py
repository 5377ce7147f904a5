"""What the tests of gated pairs share: kinds, biases, slopes by finite differences."""

import pytest
from torch.nn import functional as F

import growth
from linmaps import trees
from tests.growth.oracle import slope
from tests.growth.rows_gated import BIASES, GATES

KINDS = [k for k in GATES if k != "geglu by hand"]
both = pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
every = pytest.mark.parametrize("kind", KINDS)


def sizes(tree):
    return [tuple(t.shape) for t in trees.leaves(tree)]


def mean_loss(net, params):
    return F.cross_entropy(net.f(params, net.x).flatten(0, -2), net.target.flatten(), reduction="sum") / len(net.x)


def along(net, new=None, delta=None, h=1e-3):
    scale = (lambda t: (t, 0.0)) if new is None else (lambda t: (0.0, t))
    return slope(lambda t: mean_loss(net, growth.grow(net.params, net.pair, new, delta=delta, scale=scale(t))), h)
