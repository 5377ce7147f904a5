"""What torch says of a wrong argument, said by its name: looked for only where a call has failed already.

An explanation needs two witnesses: torch's words (of a dtype, a device, a layout, an attribute that a tensor has) and an
argument that they are true of.  Without both the error stays as it is.
"""

from __future__ import annotations

import dataclasses
import dis
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from linmaps import trees
from linmaps.checks.wrapping import at_home

F = TypeVar("F", bound=Callable[..., Any])
RAISE = dis.opmap["RAISE_VARARGS"]
DTYPES = re.compile(
    r"dtype|scalar type|data type|Input type|same type|not implemented for|not supported|bool tensor|Long|floating|complex"
)
DEVICES = re.compile(r"device|meta tensor|no data")
FLOATS = {torch.uint8: "; of images x.float() / 255", torch.int64: "; convert it with .float()"}
NAMED = {  # by torch's words for them
    **{"Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64},
    **{"Bool": torch.bool, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Float": torch.float32, "Double": torch.float64},
    **{"ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128},
}
LAYOUTS = re.compile(r"[Ss]parse|strided|layout|Could not run")


def explain(error: Exception, named: Iterable[tuple[str, Any]]) -> TypeError | None:
    """The TypeError that names the argument of which torch's error is true; None where none is.

    >>> explain(
    ...     RuntimeError("both inputs should have same dtype"), [("a", torch.ones(1)), ("b", torch.ones(1).double())]
    ... )
    TypeError('b: got torch.float64, expected torch.float32 as a; convert one with .to(...)')
    """
    if said(error):
        return None
    text = str(error)
    found = [(where, leaf) for name, value in named for where, leaf in _leaves(name, value)]
    for where, leaf in found:
        if (
            not isinstance(leaf, (Tensor, type))
            and not callable(leaf)
            and not dataclasses.is_dataclass(leaf)
            and re.search(rf"\b{type(leaf).__name__}\b", text)
        ):
            return TypeError(f"{where}: got {type(leaf).__name__}, expected a tensor")
    dense = [(where, leaf) for where, leaf in found if isinstance(leaf, Tensor)]
    if LAYOUTS.search(text):
        for where, t in dense:
            if t.layout != torch.strided:
                return TypeError(
                    f"{where}: got a tensor of layout {t.layout}, expected a dense one; convert it with .to_dense()"
                )
    if DEVICES.search(text):
        for where, t in dense[1:]:
            if t.device != dense[0][1].device:
                return TypeError(
                    f"{where}: got {t.device}, expected {dense[0][1].device} as {dense[0][0]}; move one with .to(...)"
                )
    if named_dtype := re.search(r"not implemented for '(\w+)'", text):
        dense = [(where, t) for where, t in dense if t.dtype == NAMED.get(named_dtype[1])]
    if DTYPES.search(text):
        first = next(((where, t) for where, t in dense if t.is_floating_point()), None)
        for where, t in dense:
            if first and t.dtype != first[1].dtype and (t.is_floating_point() or t.is_complex()):
                return TypeError(
                    f"{where}: got {t.dtype}, expected {first[1].dtype} as {first[0]}; convert one with .to(...)"
                )
        for where, t in dense:
            if not t.is_floating_point():
                return TypeError(f"{where}: got {t.dtype}, expected a real floating dtype{FLOATS.get(t.dtype, '')}")
    return None


def said(error: Exception) -> bool:
    """Whether a raise statement outside of torch says it, ours or the user's: it is no accident then.

    >>> try:
    ...     len(3)
    ... except TypeError as error:
    ...     said(error)
    False
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, (TypeError, ValueError)):
        return False
    module = trace.tb_frame.f_globals.get("__name__", "")
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == RAISE and module.split(".")[0] not in ("torch", "optree")


def _leaves(name: str, value: Any) -> list[tuple[str, Any]]:
    """(where, leaf) of the tensors of an argument, of a record whose tensor is missing, and of what is no tensor."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        lost = [
            (f"{name}.{f.name}", getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.type == "Tensor" and not isinstance(getattr(value, f.name), Tensor)
        ]
        if lost:
            return lost
    paths, leaves = trees.paths(value), trees.leaves(value)
    return [(f"{name}: {trees.path_str(p)}" if p else name, leaf) for p, leaf in zip(paths, leaves)]


def explained(fn: F) -> F:
    """The function (a method), whose errors from torch are raised as `explain` says them."""

    compiling, explanation = torch.compiler.is_compiling, explanation_of(fn)

    def run(*args: Any, **kwargs: Any) -> Any:
        if compiling():
            return fn(*args, **kwargs)
        try:
            return fn(*args, **kwargs)
        except Exception as error:
            if found := explanation(error, args, kwargs):
                raise found from error
            raise

    return at_home(run, fn)


def explanation_of(fn: Callable[..., Any]) -> Callable[[Exception, tuple[Any, ...], dict[str, Any]], TypeError | None]:
    """`explain` of an error in a call of fn, by its arguments: what is a setting, and no tensor, is no witness."""
    names = inspect.unwrap(fn).__code__.co_varnames
    written = getattr(fn, "__annotations__", {})
    settings = {n for n, hint in written.items() if not re.search(r"Tensor|Any|Tree|Params|Regul", str(hint))}

    def found(error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TypeError | None:
        named = (*zip(names, args), *kwargs.items())
        return explain(error, [(n, v) for n, v in named if not (n in settings and isinstance(v, (str, type)))])

    return found
