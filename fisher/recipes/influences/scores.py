"""Influence functions: what the weight of a training example does to a test loss, or to a measurement.

B training examples, Q tests, T positions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor

from fisher.checks import doors
from fisher.collector.collection import LayerCollection
from fisher.pmat.contract.damping import Regul
from fisher.pmat.contract.pmat import PMat
from fisher.recipes.influences.contracts import Held, compressed, products, token_products
from fisher.recipes.influences.examples import Named, blocks, finite_result, parts, peeked, pieces, weighed
from fisher.recipes.influences.forms import of_factors, of_whole
from fisher.recipes.influences.gathering import gathered
from fisher.recipes.influences.losses import Loss, loss_function
from fisher.recipes.influences.repeated import Passes
from fisher.recipes.influences.sides import Side, of_loss, of_measurement
from fisher.recipes.influences.spaces import space_of
from linmaps import checks, trees
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision

Aggregate = Literal["test", "data", "both"]
AGGREGATES = get_args(Aggregate)


@overload
def influence(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    F: PMat,
    test: Any,
    *,
    loss: Loss = ...,
    regul: Regul = ...,
    measurement: Callable[..., Tensor] | None = ...,
    per_layer: Literal[True],
    per_token: bool = ...,
    aggregate: Aggregate | None = ...,
    rank: int | None = ...,
    layers: LayerCollection | None = ...,
    chunk_size: int | None = ...,
) -> dict[str, Tensor]: ...
@overload
def influence(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    F: PMat,
    test: Any,
    *,
    loss: Loss = ...,
    regul: Regul = ...,
    measurement: Callable[..., Tensor] | None = ...,
    per_layer: Literal[False] = ...,
    per_token: bool = ...,
    aggregate: Aggregate | None = ...,
    rank: int | None = ...,
    layers: LayerCollection | None = ...,
    chunk_size: int | None = ...,
) -> Tensor: ...
@typed
@full_precision("f", "loss", "measurement")
def influence(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    F: PMat,
    test: Any,
    *,
    loss: Loss = "cross_entropy",
    regul: Regul = 1e-8,
    measurement: Callable[..., Tensor] | None = None,
    per_layer: bool = False,
    per_token: bool = False,
    aggregate: Aggregate | None = None,
    rank: int | None = None,
    layers: LayerCollection | None = None,
    chunk_size: int | None = None,
) -> Tensor | dict[str, Tensor]:
    """-grad l(test)' (F + regul I)^-1 grad l(train) for each pair, `[Q, B]`.

    It is the derivative of the test loss in the weight e of a training example, as the mean training loss
    1/N sum l + regul/2 |params|^2 gets e l(train) on top: leaving the example out changes the test loss by about -1/N times
    it.  Exact where F is the Hessian at a minimum of that loss.  data, test: `(x, target)`, `(x, target, weight)` or batches of
    those; weight `[B]` multiplies the example's loss (of test the measurement too), so that an influence scales by it; loss:
    "cross_entropy" (summed over positions, the class axis found by the shapes; torch's ignore_index), "squared_error" (half the
    sum of squares), a likelihood (minus its log_prob) or `(y, target) -> [B]`.

    measurement: of what the derivative is taken instead of the test loss, `measurement(params, x, y)` of one example of test,
    a number, or of a batch `[B]`; `measurement(params, x)` of tests without targets.
    per_layer: `{layer: [Q, B]}`, of F's layers or of those that f is found to have; their sum is the influence.
    per_token: `[Q, B, T]`, the terms of grad l(train) = sum over positions t of g_t a_t' in each layer; their sum is the
    influence; zeros behind the positions of shorter batches.  It is no derivative in the weight of a token's loss: a position
    acts through all losses behind it.
    aggregate: the sum over the tests `[B]` ("test"), over the training examples `[Q]` ("data") or over both, by one solve.
    rank: the matrix (F + regul I)^-1 grad l(test) `[O, I]` of each layer is kept as the best one of this rank, where its
    r (O + I) numbers are fewer; with singular values s_k an influence is off by at most the sum over layers of
    |grad l(train)| (sum over k > r of s_k^2)^1/2.
    layers: those of F where it does not know them (`F.known_layers`); of an F of some layers params may be all params.
    chunk_size: tests held at once (None: all), with a pass over the data for each such chunk, in which the examples must come
    in one order (no shuffle=True); gradients of tests and of training examples are made a batch at a time.

    Memory d, with a rank r (O + I) of each layer, for each test held; Q solves.  Where layers are known a training example
    costs a share of one forward and backward, and its gradient is formed only where that is fewer products.

    ValueError or TypeError for targets, losses, measurements and layers that do not fit, and for gradients that are not finite.

    Koh and Liang (2017), equation 2; Grosse et al. (2023), section 3.

    >>> import torch, fisher
    >>> f, p, x = lambda p, x: x @ p["w"], {"w": torch.zeros(2, 1)}, torch.eye(2)
    >>> F = fisher.fim(f, p, x, fisher.PMatDense, "gaussian")
    >>> influence(f, p, (x, torch.ones(2, 1)), F, (x[:1], torch.ones(1, 1)), loss="squared_error", regul=0.0)
    tensor([[-2.0000, -0.0000]])
    >>> output = lambda p, x: f(p, x).sum()
    >>> influence(f, p, (x, torch.ones(2, 1)), F, x[:1], loss="squared_error", regul=0.0, measurement=output)
    tensor([[2.0000, -0.0000]])
    """
    f, fn = doors.function(f), loss_function(loss)
    doors.options(chunk_size=chunk_size, layers=layers)
    if aggregate is not None and aggregate not in AGGREGATES:
        raise ValueError(f"aggregate: got {aggregate!r}, expected one of {list(AGGREGATES)}, or None")
    if rank is not None:
        checks.size(rank, "rank", 1, cure="or None for gradients as they are")
        _alone("rank", aggregate, AGGREGATES, "one gradient is held, and needs no compression")
    if per_token:
        _alone("per_token", aggregate, ("data", "both"), "positions of different examples have no sum")
    needed = per_layer or per_token or rank is not None
    tests, first = peeked(parts(test, "test", targets=measurement is None))
    stream, batch = peeked(parts(data, "data"))
    space = space_of(f, params, F, layers, batch[0], needed=needed)  # a measurement's x need not be one of f
    if measurement is None:
        theirs = of_loss(space, fn)
    else:
        theirs = of_measurement(space, doors.function(measurement, "measurement"), first)
    ours = of_loss(space, fn)

    def held(rows: Any) -> Held:
        views = space.views(F.solve(rows, regul))
        return dict(views) if rank is None or space.layers is None else compressed(space.layers, views, rank)

    def against(held: Held, side: Side, stream: Iterator[Named]) -> dict[str, Tensor]:
        layers = space.layers
        one = functools.partial(token_products, layers=layers) if per_token and layers is not None else products
        return gathered((one(held, side.gradients(*part)) for part in stream), 1)

    training = Passes(lambda: parts(data, "data"), stream)
    if aggregate is None:
        chunks = blocks(pieces(tests, chunk_size), chunk_size)
        rows = (_joined([held(theirs.rows(*part)) for part in chunk]) for chunk in chunks)
        found = gathered((against(own, ours, training()) for own in rows), 0)
    elif aggregate == "data" and per_layer:  # the part of a layer is that of the solved gradients of tests
        views = space.views(_one(_total(ours, training())))
        each = (
            products(dict(views), dict(space.views(F.solve(theirs.rows(*part), regul))))
            for part in pieces(tests, chunk_size)
        )
        found = {name: t[0] for name, t in gathered(each, 1).items()}
    elif aggregate == "data":
        total = held(_one(_total(ours, training())))
        found = {name: t[0] for name, t in against(total, theirs, pieces(tests, chunk_size)).items()}
    else:
        total = held(_one(_total(theirs, tests)))
        if aggregate == "test":
            found = {name: t[0] for name, t in against(total, ours, training()).items()}
        else:
            views = space.views(_one(_total(ours, training())))
            found = {name: t[0, 0] for name, t in products(total, dict(views)).items()}
    return _result(found, per_layer, "influence")


@overload
def self_influence(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    F: PMat,
    *,
    loss: Loss = ...,
    regul: Regul = ...,
    measurement: Callable[..., Tensor] | None = ...,
    per_layer: Literal[True],
    per_token: bool = ...,
    layers: LayerCollection | None = ...,
    chunk_size: int | None = ...,
) -> dict[str, Tensor]: ...
@overload
def self_influence(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    F: PMat,
    *,
    loss: Loss = ...,
    regul: Regul = ...,
    measurement: Callable[..., Tensor] | None = ...,
    per_layer: Literal[False] = ...,
    per_token: bool = ...,
    layers: LayerCollection | None = ...,
    chunk_size: int | None = ...,
) -> Tensor: ...
@typed
@full_precision("f", "loss", "measurement")
def self_influence(
    f: Callable[..., Tensor],
    params: Any,
    data: Any,
    F: PMat,
    *,
    loss: Loss = "cross_entropy",
    regul: Regul = 1e-8,
    measurement: Callable[..., Tensor] | None = None,
    per_layer: bool = False,
    per_token: bool = False,
    layers: LayerCollection | None = None,
    chunk_size: int | None = None,
) -> Tensor | dict[str, Tensor]:
    """-w_b grad l_b' (F + regul I)^-1 grad l_b, `[B]`: what an example does to its own loss; the lowest are the odd ones.

    w_b: its weight in data `(x, target, weight)`, else 1.  It stands once: the example acts w_b times as much on l_b itself.

    The diagonal of `influence` of the data on themselves (without weights there), and its arguments: with a measurement
    -w_b grad m_b' (F + regul I)^-1 grad l_b, by layer `{layer: [B]}`, by token `[B, T]`.  Where layers are known and F is
    diagonal in Kronecker bases of theirs (PMatKFAC, PMatEKFAC, PMatDiag), factors of gradients are taken there: a layer used at S
    positions costs S (O^2 + I^2 + O I) products for each example, or less; else B solves, and memory d for each example of a
    batch, or of `chunk_size`.

    >>> import torch, fisher
    >>> f, p, x = lambda p, x: x @ p["w"], {"w": torch.zeros(2, 1)}, torch.eye(2)
    >>> F = fisher.fim(f, p, x, fisher.PMatDense, "gaussian")
    >>> self_influence(f, p, (x, torch.tensor([[1.0], [2.0]])), F, loss="squared_error", regul=0.0)
    tensor([-2.0000, -8.0000])
    """
    f, fn = doors.function(f), loss_function(loss)
    doors.options(chunk_size=chunk_size, layers=layers)
    stream, first = peeked(parts(data, "data"))
    space = space_of(f, params, F, layers, first[0], needed=per_layer or per_token)
    ours = of_loss(space, fn)
    theirs = ours if measurement is None else of_measurement(space, doors.function(measurement, "measurement"), first)
    inverses = space.inverses(F, regul)

    def own(where: str, examples: Any) -> dict[str, Tensor]:
        x, target, *weights = examples
        part = (where, (x, target))
        if inverses is None:
            one = of_whole(lambda rows: F.solve(rows, regul), theirs, ours, part, per_token)
        else:
            one = of_factors(inverses, theirs, ours, part, per_token)
        weights = [w.reshape(-1, *[1] * per_token) for w in weights]
        return {name: weighed(t, tuple(weights)) for name, t in one.items()}

    found = gathered((own(*part) for part in pieces(stream, chunk_size)), 0)
    return _result(found, per_layer, "self_influence")


def _alone(name: str, aggregate: str | None, refused: Sequence[str | None], why: str) -> None:
    if aggregate in refused:
        raise ValueError(f"{name}: got it with aggregate={aggregate!r}, expected one of the two: {why}")


def _joined(held: list[Held]) -> Held:
    if len(held) == 1:
        return held[0]
    joined: Held = trees.map(lambda *ts: torch.cat(ts), *held)
    return joined


def _total(side: Side, stream: Iterator[Named]) -> Any:
    """The sum of the gradients over all examples."""
    total = None
    for part in stream:
        found = side.total(*part)
        total = found if total is None else trees.add(total, found)
    return total


def _one(v: Any) -> Any:
    """A vector as a map of one row."""
    return trees.map(lambda t: t[None], v)


def _result(found: dict[str, Tensor], per_layer: bool, name: str) -> Tensor | dict[str, Tensor]:
    """The influences: minus the inner products, by layer or summed."""
    if per_layer:
        return {layer: finite_result(-t, f"{name}: {layer}") for layer, t in found.items()}
    first, *others = found.values()
    return finite_result(-sum(others, first), name)
