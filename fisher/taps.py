"""The collector: layer inputs `a` and output-gradients `g` of a pure function, by zero taps and one vjp.

B batch, S shared (positions, repeated uses), I inputs, O outputs, C columns (cotangents at f's output).
A function mode sees each torch call; where a parameter leaf is an argument, a rule turns the call into a use.  In the
second pass every use's output gets a zero tensor (a tap) added; the vjp with respect to the taps is the output-gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.overrides import TorchFunctionMode

from fisher.chains import Chain, call_name, step
from fisher.rules import RULES, Match, View, carries_no_gradient, is_transpose
from linmaps import trees

if TYPE_CHECKING:
    from fisher.layers import LayerCollection, Use

__all__ = ["Chain", "Watcher", "batch_size", "layer_io", "pull", "rows"]


class TapShape(Exception):
    """A use's output has another shape than the one foreseen: look again by a real forward."""


class Watcher(TorchFunctionMode):
    """Watch a function run: `on_match(match, run)` makes the output of a call that a rule explains.

    on_opaque(path, name): a leaf enters a call without a rule.  on_plain(func, args, kwargs, out): a call without leaves.
    """

    def __init__(
        self,
        params: Any,
        on_match: Callable[[Match, Callable[[], Tensor]], Tensor],
        on_opaque: Callable[[Any, str], object],
        on_plain: Callable[..., None] | None = None,
    ) -> None:
        super().__init__()
        self.alive: list[Any] = list(trees.leaves(params))  # an id is a name only while its object lives
        self.views = {id(leaf): View(path) for path, leaf in zip(trees.paths(params), self.alive)}
        self.on_match, self.on_opaque, self.on_plain = on_match, on_opaque, on_plain

    def view(self, t: Any) -> View | None:
        return self.views.get(id(t))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        hits = [self.views[id(t)] for t in _tensors(args, kwargs) if id(t) in self.views]
        if not hits:
            out = func(*args, **kwargs)
            if self.on_plain is not None:
                self.on_plain(func, args, kwargs, out)
            return out
        match = RULES[func](args, kwargs, self.view) if func in RULES else None
        if match is not None:
            covered = {v.path for v in (match.weight, match.bias) if v is not None}
            for v in hits:
                if v.path not in covered:
                    self.on_opaque(v.path, call_name(func))
            return self.on_match(match, lambda: func(*args, **kwargs))
        if isinstance(func, FunctionType) and func.__module__ in ("torch.nn.functional", "torch.functional"):
            with self:
                return opened(func)(*args, **kwargs)
        out = func(*args, **kwargs)
        if call_name(func) and not carries_no_gradient(func):  # a call without a name is closed: the check finds it
            self._follow(func, args, kwargs, hits, out)
        return out

    def _follow(self, func: Any, args: Any, kwargs: Any, hits: list[View], out: Any) -> None:
        results = [t for t in trees.leaves(out) if isinstance(t, Tensor)]
        if not results or all(id(t) in self.views for t in results):
            return  # a getter (.shape, .dtype), or the leaf itself
        if is_transpose(func, args, kwargs):
            v = hits[0]
            self.views[id(out)] = View(v.path, not v.transposed)
            self.alive.append(out)
            return
        for v in hits:
            self.on_opaque(v.path, call_name(func))


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    found = []
    for a in (*args, *kwargs.values()):
        if isinstance(a, Tensor):
            found.append(a)
        elif isinstance(a, (tuple, list)):
            found.extend(t for t in trees.leaves(a) if isinstance(t, Tensor))
    return found


@cache
def opened(func: FunctionType) -> FunctionType:
    """A composite of torch.nn.functional that runs its body under the mode: the same code, with private globals in
    which the question for an override is answered "no".  Without it an attention layer is one opaque call."""
    no = dict.fromkeys(("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), _never)
    copy = FunctionType(func.__code__, {**func.__globals__, **no}, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _never(*_: Any, **__: Any) -> bool:
    return False


# --- the tapped pass ---------------------------------------------------------------------------------------------


def batch_size(x: Any) -> int:
    """Number of examples: the common leading size of x's tensors.

    >>> import torch
    >>> batch_size(torch.zeros(5, 3))
    5
    """
    sizes = {tuple(t.shape[:1]) for t in trees.leaves(x) if isinstance(t, Tensor)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"x: leading sizes {sorted(sizes)}, expected one common batch axis in front; stack the examples"
        )
    return sizes.pop()[0]


def distinct(params: Any) -> Any:
    """params with an object of its own for each leaf: the same tensor at two places is two leaves."""
    flat, treedef = trees.flatten(params)
    seen: set[int] = set()
    apart = [t.view_as(t) if id(t) in seen or seen.add(id(t)) else t for t in flat]  # type: ignore[func-returns-value]
    return treedef.unflatten(apart) if len(seen) < len(flat) else params


INNER = -1  # the leading axis is [S B]: positions outside, examples inside


def batch_axes(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """Where the examples may be in a tensor `[..., F]`: an axis, or `INNER`; the most usual first."""
    if batch == 0:
        return (0,)
    outer = (0,) if shape[0] % batch == 0 and shape[0] else ()
    axes = tuple(k for k in range(1, len(shape) - 1) if shape[k] == batch)
    return outer + axes + ((INNER,) if outer and shape[0] > batch else ())


def rows(t: Tensor, batch: int, axis: int = 0) -> Tensor:
    """`[B, ..., F]`, `[B S, F]`, `[T, B, F]` (axis 1) or `[T B, F]` (INNER) as `[B, S, F]`."""
    if batch == 0 or t.shape[-1] == 0:  # S cannot be inferred from nothing
        shared = math.prod(t.shape[1:-1]) if batch == 0 else math.prod(t.shape[:-1]) // batch
        return t.reshape(batch, max(1, shared), t.shape[-1])
    if axis == INNER:
        t = t.reshape(-1, batch, *t.shape[1:]).transpose(0, 1)
    elif axis:
        t = t.transpose(0, axis)
    return t.reshape(batch, -1, t.shape[-1])


def pull(
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    layers: LayerCollection,
    uses: tuple[int, ...],
    keep: Callable[[int, Tensor], Any],
) -> tuple[Tensor, dict[int, Any], Callable[[Tensor], dict[int, Tensor]]]:
    """One forward: `(y, inputs, back)`.

    inputs[k] = keep(k, a) with a [B, S, I], evaluated at the call; back(columns [C, B, ...]) = {k: gradient [C, *z]} in
    the shape of the use's output z: `column_rows` brings it to [C, B, S, O].
    """
    batch = batch_size(x)
    params = distinct(params)

    def attempt(shapes: dict[int, tuple[int, ...]]) -> Any:
        reference = trees.leaves(params)
        taps = {k: reference[layers.leaf_of(k)].new_zeros(shapes[k]) for k in uses}
        return vjp(lambda taps: _tapped(f, params, x, layers, taps, keep, batch), taps, has_aux=True)

    try:
        y, back, inputs = attempt({k: layers.uses[k].tap_shape(batch) for k in uses})
    except TapShape:
        y, back, inputs = attempt(dict(enumerate(_shapes(f, params, x, layers))))

    def gradients(columns: Tensor) -> dict[int, Tensor]:
        return vmap(back)(columns)[0] if uses else {}

    return y, inputs, gradients


def column_rows(layers: LayerCollection, g: dict[int, Tensor], batch: int) -> dict[int, Tensor]:
    """Output-gradients `[C, *z]` as `[C, B, S, O]`."""

    def one(axis: int) -> Callable[[Tensor], Tensor]:
        return vmap(lambda z: rows(z, batch, axis))

    return {k: one(layers.uses[k].axis)(t) if t.shape[0] else t for k, t in g.items()}


def layer_io(
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    layers: LayerCollection,
    cotangent: Callable[[Tensor], Tensor],
    *,
    uses: tuple[int, ...] | None = None,
) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
    """`(y, {use: (a, g)})`: what enters each use, a [B, S, I] (ones for a bias alone), and the gradient at its output,
    g [C, B, S, O] = d <cotangent(y)_c, y> / d output.

    One forward and one backward over C columns; memory C B S O per use.  Pure; composes with vmap, grad, jacrev, jacfwd.
    Raises ValueError where the uses met differ from `layers`.

    >>> import torch, fisher
    >>> f = lambda p, x: torch.tanh(x @ p["w"])
    >>> p, x = {"w": torch.ones(2, 3)}, torch.ones(4, 2)
    >>> layers = fisher.LayerCollection.from_function(f, p, x)
    >>> y, io = fisher.layer_io(f, p, x, layers, lambda y: torch.ones_like(y)[None])
    >>> [tuple(t.shape) for t in io[0]]
    [(4, 1, 2), (1, 4, 1, 3)]
    """
    wanted = layers.tapped if uses is None else uses
    y, inputs, back = pull(f, params, x, layers, wanted, lambda k, a: a)
    g = column_rows(layers, back(cotangent(y)), batch_size(x))
    return y, {k: (inputs[k], g[k]) for k in wanted}


def _tapped(f: Any, params: Any, x: Any, layers: LayerCollection, taps: Any, keep: Any, batch: int) -> Any:
    inputs: dict[int, Any] = {}
    player = _Replay(layers.uses)

    def on_match(match: Match, run: Callable[[], Tensor]) -> Tensor:
        k = player.index(match)
        if k is None:
            return run()
        if k in taps and match.inputs is not None:
            a = rows(match.inputs, batch, layers.uses[k].axis)
            inputs[k] = keep(k, a.clone() if layers.uses[k].mutated else a)
        z = run()
        if k in taps and match.inputs is None:
            inputs[k] = keep(k, torch.ones_like(rows(z, batch, layers.uses[k].axis)[..., :1]))
        if k in taps:
            if taps[k].shape != z.shape:
                raise TapShape
            z = z + taps[k].to(z.dtype)
        player.outputs[id(z)] = k
        player.alive.append(z)
        return z

    with Watcher(params, on_match, lambda *_: None):
        y = f(params, x)
    player.finish()
    return y, inputs


def _shapes(f: Any, params: Any, x: Any, layers: LayerCollection) -> list[tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    player = _Replay(layers.uses)

    def on_match(match: Match, run: Callable[[], Tensor]) -> Tensor:
        k, z = player.index(match), run()
        if k is not None:
            found[k] = tuple(z.shape)
            player.outputs[id(z)] = k
            player.alive.append(z)
        return z

    with Watcher(params, on_match, lambda *_: None):
        f(params, x)
    player.finish()
    return [found[k] for k in range(len(layers.uses))]


class _Replay:
    """Compare the uses met with the uses foreseen, at every call: a dictionary comparison, no tensor is read."""

    def __init__(self, uses: tuple[Use, ...]) -> None:
        self.uses, self.met = uses, 0
        self.outputs: dict[int, int] = {}
        self.alive: list[Tensor] = []

    def index(self, match: Match) -> int | None:
        if match.added_to is not None and match.bias is not None:
            k = self.outputs.get(id(match.added_to))
            if k is not None and self.uses[k].joined and self.uses[k].bias == match.bias.path:
                return None
        k = self.met
        if k >= len(self.uses) or not self.uses[k].explains(match):
            got = trees.path_str((match.weight or match.bias or View(())).path)
            want = self.uses[k].describe() if k < len(self.uses) else "no further use"
            raise ValueError(
                f"{got}: use {k} is {match.kind} of {got}, expected {want}; f took another way than the one its "
                "LayerCollection was made from: make a new one with LayerCollection.from_function(f, params, x)"
            )
        self.met += 1
        return k

    def finish(self) -> None:
        if self.met != len(self.uses):
            missing = self.uses[self.met].describe()
            raise ValueError(
                f"{missing}: met {self.met} uses, expected {len(self.uses)}; f took another way than the one its "
                "LayerCollection was made from (a fused or compiled path hides calls): make a new one with "
                "LayerCollection.from_function(f, params, x)"
            )


class Tracer:
    """One plain forward under a Watcher: the uses, the calls without a rule, and what leads from layer to layer."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.uses: list[dict[str, Any]] = []
        self.opaque: dict[Any, str] = {}
        self.origin: dict[int, tuple[int, tuple[Any, ...], tuple[int, ...]]] = {}
        self.consumers: dict[int, int] = {}
        self.inputs: list[tuple[int, Tensor, int]] = []
        self.alive: list[Any] = []

    def run(self, f: Any, params: Any, x: Any) -> Tensor:
        with Watcher(params, self._match, lambda path, name: self.opaque.setdefault(path, name), self._plain):
            y = f(params, x)
        if not isinstance(y, Tensor):
            raise TypeError(
                f"f(params, x): got {type(y).__name__}, expected one tensor, batch first; return the output alone"
            )
        if y.ndim == 0 or y.shape[0] != self.batch:
            raise ValueError(
                f"f(params, x): output has shape {tuple(y.shape)}, expected [{self.batch}, ...] as x; "
                "return one row per example, not a mean loss"
            )
        self._consume(y)
        for k, t, version in self.inputs:
            self.uses[k]["mutated"] = _version(t) != version
        return y

    def _match(self, match: Match, run: Callable[[], Tensor]) -> Tensor:
        touched = match.inputs if match.inputs is not None else match.added_to
        origin = self.origin.get(id(touched))
        version = _version(match.inputs) if match.inputs is not None else 0
        z = run()
        if touched is not None:
            self._consume(touched)
        k = len(self.uses)
        paths = [v.path if v is not None else None for v in (match.weight, match.bias)]
        joins = origin[0] if match.added_to is not None and origin is not None and not origin[1] else None
        if match.in_place:
            alone = self.consumers.pop(id(z), 0) == 1
            if joins is None or not alone or self.uses[joins]["bias"] is not None:
                self.opaque.setdefault(paths[1], "an in-place addition")
                return z
        if not batch_axes(tuple(z.shape), self.batch):
            for path in (p for p in paths if p is not None):
                self.opaque.setdefault(path, f"{match.kind} without a batch axis: output {tuple(z.shape)}")
        self.uses.append(
            {
                "kind": match.kind,
                "weight": paths[0],
                "bias": paths[1],
                "transposed": match.stored_in_out,
                "shape": tuple(z.shape),
                "joins": joins,
                "touched": id(touched),
                "in_place": match.in_place,
                "source": origin,
                "mutated": False,
            }
        )
        if match.inputs is not None:
            self.inputs.append((k, match.inputs, version))
        self._remember(z, (k, (), ()))
        return z

    def _plain(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        known = [t for t in _tensors(args, kwargs) if id(t) in self.origin]
        if not known or not any(isinstance(t, Tensor) for t in trees.leaves(out)):
            return
        here = step(func, args, kwargs) if len(known) == 1 and known[0] is args[0] else None
        k, steps, ids = self.origin[id(known[0])]
        if out is not known[0]:
            for t in known:
                self._consume(t)
        if here is not None and isinstance(out, Tensor):
            self._remember(out, (k, (*steps, here), (*ids, id(known[0]))))

    def _consume(self, t: Tensor) -> None:
        self.consumers[id(t)] = self.consumers.get(id(t), 0) + 1

    def _remember(self, t: Tensor, origin: tuple[int, tuple[Any, ...], tuple[int, ...]]) -> None:
        self.origin[id(t)] = origin
        self.alive.append(t)


def _version(t: Tensor) -> int:
    return torch.func.debug_unwrap(t, recurse=True)._version
