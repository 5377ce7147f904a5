"""The quadratic model of a loss in the span of a few directions: exact products with F by one batched forward mode.

K directions D, B examples; q(c) = b'c + c'(M + shift E)c / 2 with b = D'g, M = D'F D, E = D'D, all of size K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fisher.checks.axes import batch_size
from fisher.collector.collection import LayerCollection
from fisher.collector.exact_rows import mapped
from fisher.derivatives.forward import jvp
from fisher.distributed.marks import marked
from fisher.distributed.stages import Reduce, over_all
from fisher.likelihoods import Likelihood, counts
from fisher.likelihoods.columns import counted
from fisher.likelihoods.weights import weighed
from fisher.pmat.matrix_free.curvature import fisher_vector
from linmaps import trees
from linmaps.numerics.dtypes import working
from linmaps.numerics.eigen import pinv
from linmaps.trees.printed import cell, on_a_line


@trees.record()
class Model:
    """y = f(params, x), slopes b `[K]`, curved M `[K, K]`, gram E `[K, K]`."""

    y: Tensor
    slopes: Tensor
    curved: Tensor
    gram: Tensor

    def __repr__(self) -> str:
        return on_a_line(self, [f"{len(self.slopes)} directions", f"slopes {cell(self.slopes)}"])

    def lengths(self, shift: float | Tensor) -> Tensor:
        """c `[K]`, the minimum of the model with shift I added to F, or with a matrix of which shift is the products `[K, K]`; of
        parallel directions, or none, the shortest."""
        P = self.curved + (shift if isinstance(shift, Tensor) and shift.ndim else shift * self.gram)
        some = P.diagonal() > 0
        scale = torch.where(some, torch.where(some, P.diagonal(), 1.0).rsqrt(), 0.0)
        return -scale * (pinv(scale[:, None] * P * scale) @ (scale * self.slopes))

    def change(self, lengths: Tensor, shift: float | Tensor = 0.0) -> Tensor:
        """q(c), a scalar."""
        return self.slopes @ lengths + lengths @ (self.curved + shift * self.gram) @ lengths / 2


def model_of(
    f: Callable[..., Tensor],
    likelihood: Likelihood,
    params: Any,
    x: Any,
    target: Any,
    gradient: Any,
    directions: list[Any],
    weight: Tensor | None = None,
    reduce: Reduce | None = None,
) -> Model:
    """The model of the mean loss on a batch along these directions, trees like params in float32 at least.

    One forward and K tangents of it, no backward.  weight: of examples or positions, as in `fim`.  reduce: adds M over ranks; the
    gradient is that of all ranks.

    >>> import torch, fisher
    >>> f, p, x = lambda p, x: x @ p["w"], {"w": torch.zeros(2, 1)}, torch.eye(2)
    >>> d = {"w": torch.tensor([[1.0], [0.0]])}
    >>> model_of(f, fisher.Gaussian(), p, x, None, {"w": torch.tensor([[-1.0], [0.0]])}, [d]).lengths(0.5)
    tensor([1.])
    """
    K = trees.stack(directions)
    wide = trees.map(working, gradient)
    slopes = torch.stack([trees.dot(d, wide) for d in directions])
    examples = batch_size(x)
    if reduce is not None and not examples:
        curved, count = over_all(reduce, None, 0)
        return Model(slopes.new_zeros(0), slopes, (curved / count).to(slopes), _gram(K))
    own = trees.map(lambda d, p: d.to(p.dtype), K, params)
    along = lambda d: jvp(lambda p: f(p, x), (params,), (d,))
    together = lambda: vmap(along)(own)
    apart = lambda: tuple(torch.stack(t) for t in zip(*(along(d) for d in trees.unstack(own))))
    ys, U = mapped(together, apart) if len(directions) > 1 else apart()
    y = ys[0]
    z, U = working(y), working(U)
    kept = counts(likelihood, z, target)
    HU = vmap(lambda u: counted(fisher_vector(likelihood, z, u), kept))(U)
    HU = weighed(HU, likelihood, z, weight, squared=False)
    curved = U.flatten(1) @ HU.flatten(1).mT
    curved, count = over_all(reduce, marked((curved + curved.mT) / 2), examples)
    return Model(y, slopes, (curved / count).to(slopes.dtype), _gram(K))


def gram_of_layers(layers: LayerCollection, directions: list[Any], numbers: Mapping[str, float | Tensor]) -> Tensor:
    """D' diag(numbers) D `[K, K]`, a number for each layer.

    >>> import torch, fisher
    >>> f, p = lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)}
    >>> gram_of_layers(fisher.LayerCollection.from_function(f, p, torch.eye(2)), [p], {"w": 0.5})
    tensor([[1.]])
    """
    views = vmap(layers.views)(trees.stack(directions))
    return sum((numbers[name] * t.flatten(1) @ t.flatten(1).mT for name, t in views.items()), torch.zeros(()))


def _gram(K: Any) -> Tensor:
    parts = [t.flatten(1) @ t.flatten(1).mT for t in trees.leaves(K)]
    return sum(parts[1:], parts[0])
