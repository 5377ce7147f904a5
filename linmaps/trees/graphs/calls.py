"""Functions of trees compiled: one graph for each structure and each set of shapes; transforms of torch.func go through."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from linmaps.trees.algebra import flatten, leaves
from linmaps.trees.graphs.backends import Backend, CompiledGraph, named
from linmaps.trees.graphs.closures import called, check_closed
from linmaps.trees.graphs.latest import Latest
from linmaps.trees.graphs.tracing import traced
from linmaps.trees.graphs.transforms import Flat, Form, Source
from linmaps.trees.keys import path_str
from linmaps.trees.nodes import paths

P = ParamSpec("P")
R = TypeVar("R")


class Compiled(Generic[P, R]):
    """A function of trees that runs as a compiled graph, which `compiled` makes: called as the function is.

    >>> import torch
    >>> doubled = compiled(lambda p: 2 * p, torch.ones(2), backend="eager")
    >>> doubled(torch.ones(2)), len(doubled.graphs)
    (tensor([2., 2.]), 1)
    """

    def __init__(self, fn: Callable[P, R], backend: Backend, progress: bool) -> None:
        self._source = Source(fn, called(fn), backend, progress)
        self._made: Latest[Any, Flat] = Latest()
        self.__name__, self.__doc__, self.__wrapped__ = self._source.name, fn.__doc__, fn

    @property
    def graphs(self) -> tuple[CompiledGraph, ...]:
        """The graphs made so far, with the seconds that each took."""
        return tuple(self._source.made)

    @property
    def seconds(self) -> float:
        """What tracing and compiling took in all."""
        return sum(g.trace_seconds + g.compile_seconds for g in self.graphs)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if traced():  # inside of another graph: a part of that one
            return self._source.fn(*args, **kwargs)
        flat, treedef = flatten((args, kwargs))
        at = tuple(i for i, t in enumerate(flat) if isinstance(t, Tensor))
        tensors = [flat[i] for i in at]
        if any(type(t) not in PLAIN or t.layout != torch.strided for t in tensors):
            raise self._other((args, kwargs))
        settings = tuple(exactly(t) for t in flat if not isinstance(t, Tensor))
        try:
            hash((treedef, settings))
        except TypeError as error:
            raise TypeError(
                f"{self.__name__}: got an argument that is neither tensor nor hashable setting ({error}), expected tensors, "
                "numbers, strings and the like; make it a tensor, or close over it"
            ) from error
        form = Form()
        found = self._made.get((treedef, at, settings), lambda: self._flat(treedef, at, flat)).call(form, tensors)
        outdef, rest = form.value
        own = iter(found)
        return outdef.unflatten([next(own) if t is TENSOR else t for t in rest])

    def _flat(self, treedef: Any, at: tuple[int, ...], flat: list[Any]) -> Flat:
        """The function of the tensors alone: `(tensors of the answer, (its structure, its leaves but for tensors))`."""
        rest = [TENSOR if isinstance(t, Tensor) else t for t in flat]

        def run(*tensors: Tensor) -> tuple[list[Tensor], Any]:
            whole = list(rest)
            for i, t in zip(at, tensors):
                whole[i] = t
            args, kwargs = given = treedef.unflatten(whole)
            out, outdef = flatten(self._source.fn(*args, **kwargs))
            self._check_kept(given, treedef.unflatten(whole))
            return [t for t in out if isinstance(t, Tensor)], (
                outdef,
                [TENSOR if isinstance(t, Tensor) else t for t in out],
            )

        return Flat(run, self._source)

    def _check_kept(self, now: Any, before: Any) -> None:
        """Raise a ValueError for containers among the arguments that fn has changed."""
        old, new = (dict(zip(paths(tree), leaves(tree))) for tree in (before, now))
        changed = [p for p in {**old, **new} if p not in new or p not in old or old[p] is not new[p]]
        if changed:
            raise ValueError(
                f"{self.__name__}: {path_str(changed[0][1:])}: changes a container among its arguments in place, which a graph "
                "would do once, expected a pure function; make a new one, as {**p, key: value}, and give it back"
            )

    def _other(self, given: Any) -> TypeError:
        path, t = next(
            (p, t)
            for p, t in zip(paths(given), leaves(given))
            if isinstance(t, Tensor) and (type(t) not in PLAIN or t.layout != torch.strided)
        )
        return TypeError(
            f"{self.__name__}: {path_str(path[1:])}: got a {type(t).__name__} of layout {t.layout}, expected a plain dense "
            "tensor; call the function as it is"
        )

    def __repr__(self) -> str:
        backend = self._source.backend
        count = f"{len(self.graphs)} graph{'s' if len(self.graphs) != 1 else ''}"
        shown = backend if isinstance(backend, str) else called(backend)
        return f"Compiled({self.__name__}, {shown}, {count} in {self.seconds:.2g} s)"


def exactly(setting: Any) -> Any:
    """A key of a setting: numbers by their type and bits, as -0.0 == 0.0 and nan != nan, those in a dataclass too.

    >>> import math
    >>> exactly(0.0) == exactly(-0.0), exactly(math.nan) == exactly(math.nan), exactly(1) == exactly(1.0)
    (False, True, False)
    """
    if isinstance(setting, complex):
        return type(setting), setting.real.hex(), setting.imag.hex()
    if isinstance(setting, (tuple, frozenset)):
        return type(setting), type(setting)(map(exactly, setting)) if type(setting) in (tuple, frozenset) else setting
    if dataclasses.is_dataclass(setting) and not isinstance(setting, type):
        return setting, tuple(exactly(getattr(setting, field.name)) for field in dataclasses.fields(setting))
    return type(setting), setting.hex() if isinstance(setting, float) else setting


PLAIN = (Tensor, torch.nn.Parameter)
TENSOR = object()  # in place of a tensor


def compiled(
    fn: Callable[P, R], *examples: Any, backend: Backend = "inductor", progress: bool = False
) -> Compiled[P, R]:
    """`fn` traced to a graph of tensor operations that torch compiles: the same numbers to rounding, without Python's time.

    fn is a pure function of trees of tensors (records of this library among them) and of settings: `fisher.fim` with `layers=`
    given, solves, statistics and closed forms of growth, transforms of torch.func inside; steps of optimizers by
    `recipes.compiled_step`.  What fn computes twice is computed once (of a gradient checkpoint too, which saves no memory here),
    and matrix products with zeros that it makes are 0, with infinite numbers too.
    examples: arguments that a graph is made for at once; others are made at the first call.
    Arguments of the same structure, settings, shapes, strides, dtypes and devices share a graph; the latest 64 are kept.
    Settings are told apart by type and bits (1, 1.0, True); in static fields of records, and as keys, equal ones are one.
    backend: of torch.compile: "inductor" needs a C++ compiler, "aot_eager" and "eager" do not.
    progress: a line on standard error for each graph, with its seconds; `Compiled.graphs` has them too.  Tracing takes some
    milliseconds for each operation; "inductor" compiles some hundred operations in seconds to minutes, once for each graph.

    `vmap`, `grad`, `vjp`, `jvp` of the result, any order of them, and backward() are graphs of fn's own transforms, made when
    they are first asked for; a backward pass computes fn once more.  Tensors that fn closes over are read at each call; numbers,
    attributes, lists and the like that it closes over are what they were when the graph was made, and what fn does to them, or
    prints, is done then alone.  Checks of values (NaN, classes out of range) are no part of a graph.  Calls from several threads
    are safe.

    Raises ValueError that names the line where fn goes on by the value of a tensor (`if`, `.item()`), makes sizes of values
    (`x[x > 0]`), draws random numbers or changes its arguments in place, or closes over a tensor that is differentiated or
    mapped, whatever the backend; RuntimeError where there is no C++ compiler.

    >>> import torch
    >>> from linmaps import trees
    >>> step = trees.compiled(lambda p, x: {"w": p["w"] - x.mean(0)}, backend="eager")
    >>> step({"w": torch.ones(2)}, torch.ones(3, 2))
    {'w': tensor([0., 0.])}
    >>> step({"w": torch.zeros(2)}, torch.ones(3, 2)), len(step.graphs)
    ({'w': tensor([-1., -1.])}, 1)
    """
    if not callable(fn):
        raise TypeError(f"compiled: got {type(fn).__name__}, expected a function; examples come after it")
    if not isinstance(backend, str) and not callable(backend):
        raise TypeError(
            f"backend: got {type(backend).__name__}, expected a name of torch.compile's backends, or a backend"
        )
    made: Compiled[P, R] = Compiled(fn, backend, progress)
    check_closed(fn, made.__name__)
    if isinstance(backend, str):
        named(backend)
    if examples:
        made(*examples)  # type: ignore[call-arg]
    return made
