"""Several optimizers, each for some of the leaves of params."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fisher.collector.collection import LayerCollection
from fisher.recipes.optimizers.memory import KFACState
from fisher.recipes.optimizers.protocol import Optimizer, as_optimizer, asked_for
from linmaps import trees
from linmaps.checks.annotations import typed
from linmaps.trees import path_str
from linmaps.trees.keys import names

Selector = LayerCollection | str | Sequence[str] | Callable[[str], Any]
REST = "rest"


@typed
def partitioned(parts: Mapping[str, tuple[Any, Optimizer]], rest: Any = None) -> Optimizer:
    """One optimizer of several: `{name: (which leaves, optimizer)}`, and one for the rest.

    which: a LayerCollection (the leaves of its layers), a path or several ("encoder" names all leaves under it), or a predicate
    on the dotted path.  optimizer: any two pure functions init and update, those of TorchOpt too.  One that asks for the batch,
    as `kfac` and `soap`, looks at f, so that it gets the whole of params and gradients and must be told the same leaves:
    `(layers, kfac(f, layers=layers))`.  Others get `{path: leaf}`.  Running averages of batch norm, `kfac(statistics=)`, are
    moved by the first part that takes them from the batch, whatever leaves it has, and by no other.
    state: `{name: state}`.  It passes through vmap and `growth.grow_like` as the states in it do.

    Raises ValueError for a leaf in two parts or in none (to leave leaves as they are give them an optimizer of rate 0), and for
    one that moves other leaves than it should.

    >>> import torch, fisher
    >>> from linmaps import trees
    >>> plain = Optimizer(lambda params: (), lambda g, state, params: (trees.scale(-0.1, g), state))
    >>> f, p = lambda p, x: x @ p["w"] + p["b"], {"w": torch.zeros(2, 1), "b": torch.zeros(1)}
    >>> batch = (torch.eye(2), torch.ones(2, 1))
    >>> layers = fisher.LayerCollection.from_function(f, p, batch[0], exact=["b"]).select(["w"])
    >>> two = partitioned(
    ...     {"kfac": (layers, fisher.recipes.kfac(f, "gaussian", layers=layers, estimator="exact"))}, rest=plain
    ... )
    >>> g = {"w": torch.full((2, 1), -0.5), "b": -torch.ones(1)}
    >>> updates, state = two.update(g, two.init(p, batch), p, batch=batch)
    >>> updates["b"], state
    (tensor([0.1000]), {'kfac': KFACState(step 1, 1 layers, 2 parameters, damping 0.1), 'rest': ()})
    """
    parts = dict(parts)
    if REST in parts:
        raise ValueError(f"parts: got the name {REST!r}, expected another; it is that of `rest`")
    if not parts:
        raise ValueError("parts: got none, expected {name: (which leaves, optimizer)}")
    for name, pair in parts.items():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"parts: {name}: got {type(pair).__name__}, expected (which leaves, optimizer)")
    rules = {name: as_optimizer(rule, f"parts: {name}") for name, (_, rule) in parts.items()}
    rules |= {} if rest is None else {REST: as_optimizer(rest, REST)}

    def init(
        params: Any, batch: Any = None, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Any]:
        shares = _shares(parts, rest, params)
        made: dict[str, Any] = {}
        asked = {
            name: asked_for(rule.init, batch=batch, noise=noise, generator=generator) for name, rule in rules.items()
        }
        for name in sorted(
            rules, key=lambda name: "batch" not in asked[name]
        ):  # which others have statistics is known then
            own = params if "batch" in asked[name] else _taken(params, _by_state(shares, made)[name])
            made[name] = rules[name].init(own, **asked[name])
        for name, own in _by_state(shares, made).items():
            _same_leaves(name, made[name], own)
        return {name: made[name] for name in rules}

    def update(
        grads: Any,
        state: dict[str, Any],
        params: Any,
        batch: Any = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        turn: Mapping[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        found = _shares(parts, rest, params)
        got = list(state) if isinstance(state, Mapping) else type(state).__name__
        if not isinstance(state, Mapping) or set(got) != set(rules):
            raise ValueError(f"state: got {got}, expected those of the parts {list(rules)}; make it anew by init")
        found = _by_state(found, state)
        for name in rules:
            _same_leaves(name, state[name], found[name])
        flat: dict[str, Any] = {}
        after: dict[str, Any] = {}
        grads = trees.check_like(grads, params, "grads")
        for name, rule in rules.items():
            own, prepared = found[name], dict(turn or {}).get(name)
            drawn = {"noise": noise, "generator": generator} if prepared is None else {}
            asked = asked_for(rule.update, batch=batch, **drawn) | (prepared or {})
            if "batch" in asked:
                updates, after[name] = rule.update(grads, state[name], params, **asked)
                updates = _taken(updates, own)
            else:
                updates, after[name] = rule.update(_taken(grads, own), state[name], _taken(params, own), **asked)
            flat |= {path: updates[path] for path in own}
        _, treedef = trees.flatten(params)
        return treedef.unflatten([flat[path] for path in _named(params)]), after

    def prepare(
        state: dict[str, Any], params: Any, batch: Any, noise: Any = None, generator: Any = None
    ) -> dict[str, Any]:
        turns = {
            name: rule.prepare(state[name], params, batch, noise, generator)
            for name, rule in rules.items()
            if rule.prepare is not None and name in state
        }
        others = [
            rule.update for name, rule in rules.items() if name not in turns
        ]  # what they ask for is theirs to use
        left = [asked_for(update, noise=noise, generator=generator) for update in others]
        return {"turn": turns} | {key: value for asked in left for key, value in asked.items() if value is not None}

    return Optimizer(init, update, prepare)


def _named(params: Any) -> dict[str, Any]:
    """The leaves by their dotted paths, in order."""
    return dict(zip(names(tuple(trees.paths(params))), trees.leaves(params)))


def _taken(tree: Any, own: Sequence[str]) -> dict[str, Any]:
    flat = _named(tree)
    return {path: flat[path] for path in own}


def _shares(parts: Mapping[str, tuple[Any, Any]], rest: Any, params: Any) -> dict[str, list[str]]:
    """Which leaves each optimizer has."""
    paths = list(_named(params))
    found = {name: _selected(which, paths, name) for name, (which, _) in parts.items()}
    for path in paths:
        twice = [name for name, own in found.items() if path in own]
        if len(twice) > 1:
            raise ValueError(f"{path}: is in the parts {twice}, expected one")
    left = [path for path in paths if not any(path in own for own in found.values())]
    if left and rest is None:
        raise ValueError(
            f"{left[0]}: is in no part, expected each leaf in one; give rest=<an optimizer>, of rate 0 to keep leaves as they are"
        )
    return found if rest is None else found | {REST: left}


def _by_state(shares: Mapping[str, list[str]], states: Mapping[str, Any]) -> dict[str, list[str]]:
    """The shares, with the statistics of the batch in that of the first state that has them."""
    held = {name: s.statistics if isinstance(s, KFACState) else () for name, s in states.items()}
    first = {path: name for name in reversed([n for n in shares if n in held]) for path in held[name]}
    added = {name: [path for path in first if first[path] == name and path not in own] for name, own in shares.items()}
    return {name: [path for path in own if first.get(path, name) == name] + added[name] for name, own in shares.items()}


def _selected(which: Any, paths: list[str], name: str) -> list[str]:
    if isinstance(which, LayerCollection):
        every = names(which.layout.paths)
        which = [every[n] for n in {n for layer in which for n in layer.leaves}]
    if callable(which):
        return [path for path in paths if which(path)]
    wanted = [which] if isinstance(which, str) else which
    if not isinstance(wanted, Sequence) or not all(isinstance(w, (str, tuple)) for w in wanted):
        raise TypeError(
            f"parts: {name}: got {type(which).__name__}, expected a LayerCollection, paths, or a predicate on paths"
        )
    wanted = [path_str(w) for w in wanted]
    under = lambda path, w: path == w or path.startswith(w + ".")
    for w in wanted:
        if not any(under(path, w) for path in paths):
            raise ValueError(f"parts: {name}: {w}: no such leaf, expected some of {paths}")
    return [path for path in paths if any(under(path, w) for w in wanted)]


def _same_leaves(name: str, state: Any, own: list[str]) -> None:
    """ValueError unless an optimizer on factors moves the leaves that it should."""
    if not isinstance(state, KFACState):
        return
    layers = state.factors.layers
    every = names(layers.layout.paths)
    moved = {every[n] for layer in layers for n in layer.leaves} | (set(state.statistics) & set(own))
    if moved != set(own):
        raise ValueError(
            f"{name}: the optimizer moves {sorted(moved)}, expected {sorted(own)}; give the layers to both: (layers, "
            "kfac(f, layers=layers)) with layers.select([...])"
        )
