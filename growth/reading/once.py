"""What f does at its pairs of layers, read and verified once: a record that later passes take as it is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fisher import LayerCollection
from fisher.checks.arguments import detached
from fisher.checks.purity import repeatable
from fisher.collector.calls.chains import Chain
from fisher.collector.rules.forms import Convolution
from growth.checks.buffers import buffers_fixed, counters_fixed
from growth.checks.data import few
from growth.checks.doors import door
from growth.reading.calls import norm_eps, refusal
from growth.reading.locate import Place, located
from growth.reading.pairs import Pair, check_pairs
from growth.reading.products import verify_all, with_activations
from linmaps import trees
from linmaps.trees.printed import on_a_line

Sizes = tuple[tuple[tuple[int, ...], torch.dtype], ...]


@trees.static
@dataclasses.dataclass(frozen=True, repr=False)
class Reading:
    """What f does at these pairs of layers, read from one call and verified.  Made by `from_function`; it holds no f, no data.

    asked: the pairs as they were given; pairs: with what was found, the activations of gated ones and the leaves that grow along.
    sizes: shapes and dtypes of params and of an example, for which it holds; eps: that of norms.  It can be saved.

    Given as `layers=` it says, as a LayerCollection does, that f is the function that was read: `statistics` and `choose_sign` do
    not look anew at what stands between the layers, which of a small network takes most of their time.  What it was not
    made from (another pair, other shapes, as after growth, or dtypes) is read anew; another function is met where its layers'
    calls or their order differ (ValueError), or the values between two of them on the first examples (it is read anew): where
    both functions give the same there, as at zeros, it is not met, nor behind pools, norms and gates.

    >>> import torch, growth
    >>> f = lambda p, x: torch.tanh(x @ p["a"].T) @ p["b"].T
    >>> p = {"a": torch.eye(2), "b": torch.eye(2)}
    >>> pair, x = growth.Pair("a", "b"), torch.eye(2)
    >>> reading = growth.Reading.from_function(f, p, x, pair)
    >>> reading
    Reading(Pair('a', 'b'), 2 leaves)
    >>> growth.statistics(f, p, (x, torch.tensor([0, 1])), pair, layers=reading).count
    tensor(2.)
    """

    layers: LayerCollection
    asked: tuple[Pair, ...]
    pairs: tuple[Pair, ...]
    eps: tuple[float | None, ...]
    sizes: tuple[Sizes, Sizes]

    @classmethod
    def from_function(
        cls,
        f: Callable[..., Tensor],
        params: Any,
        x: Any,
        pair: Pair | Sequence[Pair],
        *,
        layers: LayerCollection | None = None,
    ) -> Reading:
        """Read what `f(params, x)` does at a pair, or at several; x: a batch of inputs, of which some examples are looked at.

        layers: the LayerCollection of f; None makes it.  Cost: a few forwards and backwards on at most 32 examples.

        Raises ValueError where `statistics` does: layers that are not there, other calls between them, an f that is random.
        """
        return _read(f, params, x, pair, layers)

    def known(self, params: Any, pairs: Sequence[Pair], x: Any) -> Reading | None:
        """This for some of its pairs, if it was made from such params and data; else None."""
        leaves, structure = trees.flatten(params)
        if structure != self.layers.layout.treedef or self.sizes != (sizes_of(leaves), sizes_of(x, 1)):
            return None
        if tuple(pairs) == self.asked:
            return self
        both = (*self.asked, *self.pairs)
        if any(p not in both for p in pairs):
            return None
        at = [both.index(p) % len(self.asked) for p in pairs]
        chosen: dict[str, Any] = {n: tuple(getattr(self, n)[k] for k in at) for n in ("asked", "pairs", "eps")}
        return dataclasses.replace(self, **chosen)

    def at(self, params: Any) -> list[Place]:
        """Where the layers are used, with the numbers of these params."""
        kept = self.places
        if not kept:
            kept.extend(light(located(self.layers, params, pair)) for pair in self.pairs)
        return [place or located(self.layers, params, pair) for place, pair in zip(kept, self.pairs)]

    @functools.cached_property
    def places(self) -> list[Place | None]:
        """What `at` has found, None where it has numbers of the params in it; no result depends on it."""
        return []

    def __getstate__(self) -> dict[str, Any]:  # the fields alone
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __repr__(self) -> str:
        return on_a_line(self, [*self.pairs, f"{len(self.sizes[0])} leaves"])


def has_maps(layers: LayerCollection, place: Place) -> bool:
    """Whether the sizes of the data are in the shapes of these uses."""
    return isinstance(layers.uses[place.before[0]].form, Convolution)


def sizes_of(tree: Any, start: int = 0) -> Sizes:
    """Shapes, from this axis on, and dtypes of the leaves.

    >>> import torch
    >>> sizes_of({"x": torch.ones(4, 2)}, 1)
    (((2,), torch.float32),)
    """
    return tuple((tuple(t.shape[start:]), t.dtype) for t in trees.leaves(tree))


@door("f")
def _read(
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    pair: Pair | Sequence[Pair],
    layers: LayerCollection | None,
) -> Reading:
    f, params = counters_fixed(buffers_fixed(f), detached(params))
    return reading_of(f, params, x, check_pairs(pair)[0], layers)


def reading_of(
    f: Callable[..., Tensor], params: Any, x: Any, pairs: Sequence[Pair], layers: LayerCollection | None
) -> Reading:
    """`Reading.from_function` of a function whose running statistics are fixed."""
    some = few(x)
    known = LayerCollection.from_function(f, params, some) if layers is None else layers
    named = with_activations(f, params, pairs, known, some)
    places = [located(known, params, p, partial(refusal, f, params, p, some)) for p in named]
    if layers is not None:  # else it was asked when the layers were found
        repeatable(f, params, some)
    found = [place.pair for place in places]
    verify_all(f, params, found, known, places, some)
    eps = tuple(norm_eps(f, params, p, some) if place.normed else None for p, place in zip(found, places))
    made = Reading(known, tuple(pairs), tuple(found), eps, (sizes_of(params), sizes_of(x, 1)))
    made.places.extend(map(light, places))
    return made


def resized(reading: Reading, f: Callable[..., Tensor], params: Any, x: Any) -> Reading:
    """The reading at data of another size, where that is in the shapes of the layers' uses."""
    layers = LayerCollection.from_function(f, params, few(x))
    return dataclasses.replace(reading, layers=layers, sizes=(reading.sizes[0], sizes_of(x, 1)))


def light(place: Place) -> Place | None:
    """The place without the tensors of params; None where what stands between has tensors."""
    chains = [c for c in (place.chain, place.own, place.activation) if isinstance(c, Chain)]
    if any(chain.holds_tensors for chain in chains):
        return None
    shape = torch.empty(place.layer.weight.shape, device="meta")
    return dataclasses.replace(place, layer=dataclasses.replace(place.layer, weight=shape, bias=None, others=()))
