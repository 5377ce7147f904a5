"""Where in f the two layers of a pair are: their uses in a LayerCollection, and the activation between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from fisher import LayerCollection
from fisher.collector.blocks.uses import UNUSED, Use
from fisher.collector.calls.chains import Chain, Step
from fisher.collector.rules.forms import Convolution, Form, Lookup
from fisher.collector.rules.match import spoken
from growth.reading.activations import Activation, Composed
from growth.reading.layers import Layer, layers_of
from growth.reading.maps import Passage
from growth.reading.pairs import LayoutName, Pair
from linmaps.trees import path_str


@dataclasses.dataclass(frozen=True)
class Place:
    """The numbers of the uses of `before` and `after` (several of a Sum), the activation between, and the layer after.

    chain: all that stands between, where some of it joins positions, None where it is the activation alone.  gate: of a gated
    pair the number of the use of the gate, whose activation it then is.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    activation: Activation
    layer: Layer
    gate: int | None = None
    chain: Chain | None = None

    def passage(self, shape: tuple[int, ...]) -> Passage | None:
        """What stands between, for a hidden map of this shape."""
        return None if self.chain is None else Passage(self.chain, shape)


def located(layers: LayerCollection, params: object, pair: Pair, words: Callable[[str], str] | None = None) -> Place:
    """The uses of the two layers in a LayerCollection, and the activation between them.

    words: what to say of an activation that cannot be read, from why it cannot (`calls.refusal`).

    Raises ValueError where a layer is used twice, in another layout than the pair says, or in groups, where its bias is not
    added to its output, and where the activation can neither be read from f nor is given.
    """
    before, after = layers_of(params, pair)
    first, second = (tuple(_use(layers, layer) for layer in side.all) for side in (before, after))
    gate = None if before.gate is None else _use(layers, before.gate)
    _stored(layers, pair, first if gate is None else (gate, *first), second)
    if gate is not None:
        return Place(first, second, pair.activation or torch.positive, after, gate)
    if pair.activation is not None:
        return Place(first, second, pair.activation, after)
    i = first[0]
    source: tuple[int, Activation] | None = layers.uses[second[0]].source if len(first) == 1 else None
    while source is not None and source[0] != i and (further := _through(layers.uses, pair, source)) is not None:
        source = further
    if source is None or source[0] != i:
        why = "cannot be read" if source is None else f"comes from {layers.uses[source[0]].describe()}"
        plain = f"{pair}: the input of {after.name} {why}, expected an elementwise function of the output of {before.name} alone"
        raise ValueError(plain if words is None else words(why))
    chain = source[1]
    if isinstance(chain, Chain) and chain.spatial:
        return Place(first, second, chain.pointwise, after, chain=chain)
    return Place(first, second, chain, after)


def _through(uses: tuple[Use, ...], pair: Pair, source: tuple[int, Activation]) -> tuple[int, Activation] | None:
    """What leads to a use whose input comes from a norm of the pair, or from its depthwise convolution: to a new unit a norm is
    the identity, and the convolution takes what is under the centre of its kernel.  None: it comes from elsewhere."""
    k, outer = source
    named = {path_str(p) for p in uses[k].paths}
    of = lambda path: any(name.startswith(f"{path_str(path)}.") or name == path_str(path) for name in named)
    form = uses[k].form
    deep = pair.depthwise is not None and of(pair.depthwise) and isinstance(form, Convolution)
    if uses[k].source is None or not (deep or any(map(of, pair.norms))):
        return None
    first, inner = uses[k].source  # type: ignore[misc]
    if isinstance(outer, Chain) and isinstance(inner, Chain):
        return first, Chain((*inner.steps, *(_centre(form) if deep else ()), *outer.steps))  # type: ignore[arg-type]
    return None if deep else (first, Composed(outer, inner))


def _centre(form: Convolution) -> tuple[Step, ...]:
    """What a kernel that is 1 at its centre does to a map: it is shifted, cut at both ends, and thinned by the stride."""
    n = len(form.kernel)
    reach = [((size - 1) // 2 * d, (size - 1 - (size - 1) // 2) * d) for size, d in zip(form.kernel, form.dilation)]
    ends = [(left - a, right - b) for (left, right), (a, b) in zip(form.padding, reach)]
    flat = tuple(end for both in reversed(ends) for end in both)
    steps: tuple[Step, ...] = (("torch.nn.functional.pad", (flat,), ()),) if any(flat) else ()
    if any(s > 1 for s in form.stride):
        steps += ((f"torch.nn.functional.avg_pool{n}d", (1, form.stride), ()),)
    return steps


def layout_of(use: Use) -> LayoutName:
    """How the weight leaf of a dense layer, a lookup or a convolution without groups is stored."""
    return "in_out" if use.form.arrangement.out == (1,) else "out_in"


def _stored(layers: LayerCollection, pair: Pair, first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """Raise a ValueError unless all weights are used in the layout that the pair says."""
    sides = [{layout_of(layers.uses[k]) for k in side} for side in (first, second)]
    if all(found == {own} for found, own in zip(sides, pair.layouts)):
        return
    used = ", ".join(
        f"{layers.uses[k].describe()} as [{layout_of(layers.uses[k]).replace('_', ', ')}]" for k in (*first, *second)
    )
    both = [sorted(found)[0] for found in sides]
    one = all(len(found) == 1 for found in sides)
    cure = (
        f"layout={(both[0] if len(set(both)) == 1 else tuple(both))!r}"
        if one
        else "layers of a Sum that are stored alike"
    )
    raise ValueError(
        f"{pair}: f uses its weights otherwise than by layout={pair.layout!r}: {used}; give {cure}.  [in, out] is what x @ W, "
        "lookups and transposed convolutions have, [out, in] what F.linear, x @ W.T and convolutions have"
    )


def _use(layers: LayerCollection, layer: Layer) -> int:
    uses = [k for k, u in enumerate(layers.uses) if u.weight == layer.weight_path]
    if len(uses) != 1:
        raise ValueError(
            f"{layer.name}: used by {len(uses)} calls, expected one; growth enlarges a layer that is applied "
            "once (F.linear, x @ W.T, F.conv1d to F.conv3d)"
        )
    use = layers.uses[uses[0]]
    known = type(use.form) in (Form, Lookup, Convolution)
    if not known or use.form.groups > 1:
        raise ValueError(
            f"{layer.name}: used by {use.kind}{' in groups' if known else ''}, expected a dense layer or a convolution "
            "without groups; other layers are enlarged by growth.add_parameters"
        )
    if use.bias != layer.bias_path:
        got = spoken(use.bias) if isinstance(use.bias, tuple) else "no leaf"
        raise ValueError(
            f"{layer.name}: the bias added to its output is {got}, expected "
            f"{'none' if layer.bias_path is None else path_str(layer.bias_path)}; keep weight and bias of a layer "
            "together as `weight` and `bias`, and add the bias right after the product"
        )
    for owner in layers:
        paths = [layers.layout.paths[n] for n in owner.leaves]
        if owner.note and owner.kind != UNUSED and {layer.weight_path, layer.bias_path} & set(paths):
            raise ValueError(
                f"{owner.name}: {owner.note}, expected a layer whose leaves are used by itself alone; growth sees no slope of "
                "another use"
            )
    return uses[0]
