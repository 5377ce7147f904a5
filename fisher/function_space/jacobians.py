"""The Jacobian of `f(params, x)` with respect to params, example by example.

B examples, C outputs (all output axes of an example, flattened), d parameters; J_b = d f(x_b) / d params.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from fisher.checks import doors
from fisher.checks.arguments import parameters
from fisher.checks.axes import batch_size, together
from fisher.collector import restriction
from fisher.collector.collection import LayerCollection
from fisher.function_space.implicit import PFMapImplicit
from fisher.function_space.pfmap import PFMap, PFMapDense
from fisher.function_space.rows import dense
from fisher.trials import functions, modes
from fisher.trials.data import inputs, several
from linmaps.checks.annotations import typed
from linmaps.checks.precision import full_precision

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Map = TypeVar("Map", bound=PFMap, default=PFMapDense)
else:
    from typing import TypeVar

    Map = TypeVar("Map", bound=PFMap)


@full_precision("f")
@typed
def jacobian(
    f: Callable[..., Tensor],
    params: Any,
    x: Any,
    representation: type[Map] = PFMapDense,  # type: ignore[assignment]  # the TypeVar's own default
    *,
    chunk_size: int | None = None,
    layers: LayerCollection | None = None,
    check: bool = True,
    check_finite: bool = True,
) -> Map:
    """The Jacobian of `f(params, x)` `[B, *out]` with respect to params, example by example.

    J_b = d f(x_b) / d params, with all output axes flattened into C.  x: one batch of inputs, or an iterable of batches, in
    the order of the result.  PFMapDense: one vjp per example under vmap; chunk_size: rows (b, c) differentiated at once.
    layers: from `LayerCollection.from_function`; rows are then products g a' of one forward and one backward over C
    columns (chunk_size: columns at once); a sub-collection gives the Jacobian with respect to `{path: leaf}` of its leaves.
    PFMapImplicit: nothing is computed until `jvp` or `vjp`.
    check: try f on the largest batch, and compare J'u with autograd's (about ten forwards).  check_finite: report NaN in
    inputs, params and result.

    Raises ValueError where f is random or examples mix (dropout, batch norm in train mode), and for a pair (x, target);
    TypeError for leaves that are not floating.

    >>> import torch
    >>> f = lambda p, x: torch.tanh(x @ p["w"] + p["b"])
    >>> jacobian(f, {"w": torch.ones(2, 3), "b": torch.zeros(3)}, torch.ones(5, 2))
    PFMapDense(B = 5, C = 3, d = 9)
    """
    named = {"dense": PFMapDense, "implicit": PFMapImplicit}
    representation = named.get(representation, representation) if isinstance(representation, str) else representation
    if not any(representation is kind for kind in (PFMapDense, PFMapImplicit)):
        raise ValueError(f"representation: got {representation!r}, expected PFMapDense or PFMapImplicit")
    f = doors.function(f)
    doors.options(chunk_size=chunk_size, layers=layers)
    params = parameters(params, check_finite)
    parts = inputs(x, "x", "jacobian", check_finite)
    if representation is PFMapDense:
        made = dense(f, params, parts, chunk_size=chunk_size, layers=layers, check=check, check_finite=check_finite)
        return cast(Map, made)
    tried = check and any(batch_size(part) for part in parts)
    if tried:
        functions.function(f, params, several(parts), finite=check_finite)
    f, params = restriction.restricted(f, params, layers)
    J = PFMapImplicit(f, params, together(parts))
    if tried:
        modes.forward(f, params, max(parts, key=batch_size), "jacobian")
    return cast(Map, J)
