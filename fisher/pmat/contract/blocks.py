"""Blockwise matrices: a direct sum of blocks, each the linear algebra of one layer (exact, factored, arrowhead).

A vector is split into views by name, K of them `[K, *view]` at once; each block acts on its own; the views are joined.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor
from torch.func import vmap

from fisher.collector.blocks.uses import Layer
from fisher.collector.collection import LayerCollection
from fisher.pmat.contract.cuts import LSTSQ
from fisher.pmat.contract.damping import Amounts, Regul, Scalar, uniform
from fisher.pmat.contract.inverses import Inverse, of_blocks
from fisher.pmat.contract.limits import PRODUCTS, check_dense
from fisher.pmat.contract.pmat import PMat
from linmaps import trees
from linmaps.numerics.numeric import positive_root
from linmaps.trees import Layout
from linmaps.trees.tree import Tree


class Blockwise(PMat):
    """A PMat made of blocks: a representation says which (`_blocks`), and how vectors `split` and `join`."""

    kinds: ClassVar[dict[str, tuple[str, ...]] | None] = {"default": (), "eigendecomposition": (), "lstsq": LSTSQ}
    symmetric: bool = True  # False for the product of two
    general: ClassVar[bool] = False  # whether solve and inverse do without symmetry

    def _blocks(self) -> dict[str, Any]:
        """The block of each name."""
        raise AttributeError("a representation defines blocks")

    def split(self, v: Any) -> dict[str, Tensor]:
        """The views of a vector, by the names of the blocks."""
        raise AttributeError("a representation defines split")

    def join(self, views: dict[str, Tensor]) -> Any:
        """The vector with these views."""
        raise AttributeError("a representation defines join")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the views."""
        empty = self.layout.unflatten([torch.empty(s, device="meta") for s in self.layout.shapes])
        return {name: tuple(t.shape) for name, t in self.split(empty).items()}

    def spectral(self, method: str) -> dict[str, Any]:
        """The blocks, where they are symmetric."""
        if not self.symmetric:
            raise self._unsupported(method, "a product of two matrices is not symmetric: use to_torch()")
        return self._blocks()

    def _cut(self, v: Any) -> dict[str, Tensor]:
        """`split` of a vector that was checked."""
        return self.split(v)

    def _joined(self, views: dict[str, Tensor]) -> Any:
        """`join` of the views of all blocks."""
        return self.join(views)

    # --- damping ---------------------------------------------------------------------------------------------------

    def _shares(self, regul: Scalar | Amounts, blocks: dict[str, Any]) -> dict[str, Scalar]:
        """What of a regul is that of each block: a number, or a tensor in the shape of its view where it holds any diagonal.

        ValueError for a block that holds one number, where the diagonal has several.
        """
        if not isinstance(regul, Amounts):
            return dict.fromkeys(blocks, regul)
        if regul.named is not None and set(regul.named) == set(blocks):
            return {name: regul.named[name] for name in blocks}
        views, found = self.split(regul.tree(self._like())), {}
        for name, block in blocks.items():
            one = uniform(views[name])
            if one is None and not getattr(block, "diagonals", False):
                raise ValueError(
                    f"regul: {f'layer {name}' if name else 'the whole matrix'} has several numbers, expected one: a block of "
                    f"{type(self).__name__} is a function of its eigenvalues; give one number for each block, or solve with "
                    "the sum F + fisher.PMatDiag(regul, F.layout)"
                )
            found[name] = views[name] if one is None else one
        return found

    # --- vectors ---------------------------------------------------------------------------------------------------

    def _rows(self, v: Tree, n: int, fn: Callable[[str, Tensor], Tensor]) -> Tree:
        """fn(name, views `[K, *view]`) for the K vectors of a tree with n leading axes; n = 0: fn(name, view)."""
        if not n:
            return cast(Tree, self._joined({name: fn(name, V) for name, V in self._cut(v).items()}))
        flat, treedef = trees.flatten(v)
        lead = tuple(flat[0].shape[:n]) if flat else ()
        rows = treedef.unflatten([t.reshape(math.prod(lead), *s) for t, s in zip(flat, self.layout.shapes)])
        found = {name: fn(name, V) for name, V in vmap(self._cut)(rows).items()}
        return cast(Tree, trees.map(lambda t: t.reshape(*lead, *t.shape[1:]), vmap(self._joined)(found)))

    def mv(self, v: Tree) -> Tree:
        """F v, a tree like v."""
        v = self.check_vector(v)
        return self._mv_map(v, 0)

    def _mv_map(self, J: Tree, n: int) -> Tree:
        blocks = self._blocks()
        return self._rows(J, n, lambda name, V: _acted(blocks[name], n, V, blocks[name].mv))

    def _solve_map(self, J: Any, n: int, regul: Regul, kind: str, **options: Any) -> Any:
        blocks = self._blocks() if kind == "default" and self.general else self.spectral("solve")
        own = self._shares(regul, blocks) if kind != "lstsq" else dict.fromkeys(blocks, 0.0)
        act = lambda name: lambda V: blocks[name].solve(V, own[name], kind, **options)
        return self._rows(J, n, lambda name, V: _acted(blocks[name], n, V, act(name)))

    def _sample_map(self, noise: Any, n: int, regul: Regul) -> Any:
        blocks = self.spectral("sample")
        own = self._shares(regul, blocks)
        act = lambda name: lambda Z: blocks[name].sample(Z, own[name])
        return self._rows(noise, n, lambda name, Z: _acted(blocks[name], n, Z, act(name)))

    # --- numbers ---------------------------------------------------------------------------------------------------

    def get_diag(self) -> Any:
        blocks = self._blocks()
        return self.join({n: blocks[n].diag().reshape(s) for n, s in self.shapes().items()})

    def frobenius_norm(self) -> Tensor:
        return positive_root(_total([b.squares() for b in self._blocks().values()], self._like()))

    def _logdet(self, regul: Regul) -> Tensor:
        blocks = self.spectral("logdet")
        own = self._shares(regul, blocks)
        return _total([b.logdet(own[name]) for name, b in blocks.items()], self._like())

    def _spectral_norm(self, largest: bool) -> Tensor:
        found = [b.extreme(largest) for n, b in self.spectral("norm").items()]
        stacked = torch.stack(found) if found else self._like().new_zeros(1)
        return stacked.amax() if largest else stacked.amin()

    # --- dense -----------------------------------------------------------------------------------------------------

    def get_block(self, name: str) -> Tensor:
        """The dense block of a layer, over its flattened view (row-major `[W | b]` where factored)."""
        blocks = self._blocks()
        if name not in blocks:
            raise ValueError(f"get_block: got {name!r}, expected one of {sorted(blocks)}")
        return blocks[name].dense()

    def to_torch(self) -> Tensor:
        check_dense(self.layout.numel, f"{type(self).__name__}.to_torch", PRODUCTS, dtype=self.dtype)
        blocks, index = self._blocks(), self.index()
        return assemble([(index[n], blocks[n].dense()) for n in index], self.layout.numel, self._like())

    def index(self) -> dict[str, Tensor]:
        """Where the entries of each view are in the flat order, in the shape of the view."""
        device = self._like().device
        parts = zip(self.layout.shapes, self.layout.sizes, self.layout.offsets)
        whole = [torch.arange(n, device=device).reshape(shape) + start for shape, n, start in parts]
        return self.split(self.layout.unflatten(whole))


class Layerwise(Blockwise):
    """One block per layer."""

    layers: LayerCollection

    def _check_factor(self, m: Tensor, layer: Layer, thin: bool = False) -> None:
        """Raise unless m is one factor of a layer, a matrix or the diagonal of one (thin: that alone); of several in a stack."""
        if m.ndim == 2 and not thin and m.shape[0] == m.shape[1]:
            return  # as nearly always: a matrix, or the diagonals of groups
        square, diagonal = m.shape[-1:] == m.shape[-2:-1], m.ndim == 1 + layer.grouped
        self.check_single((1 if thin or diagonal or not square else 2) + layer.grouped, m)

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return self.layers.space

    def shapes(self) -> dict[str, tuple[int, ...]]:
        known = getattr(self.layers, "view_shapes", None)  # a LayerCollection keeps them
        return super().shapes() if known is None else dict(known)

    def split(self, v: Any) -> dict[str, Tensor]:
        return self.layers.views(v)

    def join(self, views: dict[str, Tensor]) -> Any:
        return self.layers.tree(views)

    def _cut(self, v: Any) -> dict[str, Tensor]:
        known = getattr(self.layers, "_cut", None)
        return self.layers.views(v) if known is None else cast(dict[str, Tensor], known(trees.leaves(v)))

    def _joined(self, views: dict[str, Tensor]) -> Any:
        known = getattr(self.layers, "_joined", None)
        return self.layers.tree(views) if known is None else known(views)

    def _inverses(self, layers: Any, regul: Regul) -> dict[str, Inverse] | None:
        if self.layers != layers:
            return None
        blocks = self._blocks() if self.general else self.spectral("solve")
        return of_blocks(blocks, self._shares(regul, blocks))

    def matrices(self) -> dict[str, Tensor]:
        """The dense blocks `[n, n]`, or scalars c that stand for c I."""
        return {name: block.dense() for name, block in self._blocks().items()}


class InEigenbasis(Layerwise):
    """Layerwise matrices whose blocks are all diagonal in a known basis."""

    def eigenblocks(self) -> dict[str, Any]:
        """The blocks, all `Diagonalized`."""
        return self._blocks()

    def coordinates(self, parts: dict[str, Tensor]) -> Any:
        """How users see coordinates in the eigenbasis: by layer."""
        return parts

    def parts(self, coordinates: Any) -> dict[str, Tensor]:
        """The way back from `coordinates`."""
        return coordinates

    def eigendecomposition(self, *, group: Any = None) -> Self:
        """Itself."""
        return self

    def get_eigenvalues(self) -> Any:
        return self.coordinates({name: block.D for name, block in self._eigen().items()})

    def project_to_diag(self, v: Any) -> Any:
        blocks = self._eigen()
        v = self.check_vector(v)
        return self.coordinates({name: blocks[name].to_diag(V[None])[0] for name, V in self.split(v).items()})

    def project_from_diag(self, u: Any) -> Any:
        blocks = self._eigen()
        Layout.of(self.coordinates({name: block.D for name, block in blocks.items()})).check(u, "u")
        parts, shapes = self.parts(u), self.shapes()
        return self.join({name: blocks[name].from_diag(parts[name][None])[0].reshape(s) for name, s in shapes.items()})

    def _eigen(self) -> dict[str, Any]:
        self.spectral("eigendecomposition")
        return self.eigenblocks()


def assemble(blocks: list[tuple[Tensor, Tensor]], d: int, like: Tensor) -> Tensor:
    """The `[d, d]` matrix with these blocks at these places: a block-diagonal matrix, reordered."""
    if d == 0:
        return like.new_zeros(0, 0)
    order = torch.cat([index.flatten() for index, _ in blocks])
    place = torch.argsort(order)
    return torch.block_diag(*(block for _, block in blocks)).index_select(0, place).index_select(1, place)


def _acted(block: Any, n: int, V: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    """act(V) of views `[K, *view]` (n leading axes at first), or of one view, by a block that may ask for K = 1."""
    return act(V) if n or getattr(block, "one", False) else act(V[None])[0]


def _total(parts: list[Tensor], like: Tensor) -> Tensor:
    return sum(parts[1:], parts[0]) if parts else like.new_zeros(())
