"""What is refused at every rank, with its cause and cure: a check gives nothing, or raises."""

import pytest
import torch
import torch.distributed as dist
from torch.func import vmap

import fisher
from linmaps import trees
from tests.fisher.distributed.nets import LAYERS, P, X, f

CHECKS = {}
NOTHING = ((), ((), tuple))


def refused(name, words, kind=ValueError):
    def decorate(fn):
        def check(place):
            with pytest.raises(kind, match=words):
                fn(place)
            return NOTHING

        CHECKS[f"refused: {name}"] = check
        return fn

    return decorate


@refused("an implicit matrix", "PMatImplicit keeps the data of this rank")
def _(place):
    fisher.fim(f, P, place.own(X), fisher.PMatImplicit, layers=LAYERS[f], reduce=place.reduce)


@refused("a split of an implicit matrix", "has no layers to be split")
def _(place):
    fisher.fim(f, P, X, fisher.PMatImplicit).eigendecomposition(2, group=dist.group.WORLD)


@refused("a collective under vmap", "inside of torch.func.vmap")
def _(place):
    vmap(lambda p: fisher.fim(f, p, X, fisher.PMatKFAC, layers=LAYERS[f], reduce=place.reduce))(trees.stack([P, P]))


@refused("a split under vmap", "leave group out under vmap")
def _(place):
    F = fisher.fim(f, P, X, fisher.PMatKFAC, layers=LAYERS[f])
    vmap(lambda F: F.eigendecomposition(group=dist.group.WORLD).get_diag())(trees.stack([F, F]))


@refused("a graph", "require a gradient")
def _(place):
    params = trees.map(lambda t: t.clone().requires_grad_(), P)
    fisher.fim(f, params, X, layers=LAYERS[f], reduce=place.reduce)


@refused("no example anywhere", "got no example")
def _(place):
    fisher.fim(f, P, [], layers=LAYERS[f], reduce=place.reduce)


@refused("other sums at other ranks", "have other tensors than rank 0")
def _(place):
    place.reduce({"a": torch.ones(2 + place.rank)}, 1)


@refused("a negative count at one rank", r"count: got \[-1.0\] of ranks \[0\], expected numbers of examples")
def _(place):
    place.reduce({"a": torch.ones(2)}, -1 if place.rank == 0 else 1)


@refused("other rows at other ranks", "have other tensors than rank 0")
def _(place):
    fisher.distributed.all_gather(torch.ones(1, 2 + place.rank))


@refused("a group of others", "expected a process group", TypeError)
def _(place):
    fisher.distributed.all_reduce("gloo")
