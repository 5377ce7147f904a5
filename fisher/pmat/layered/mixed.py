"""PMatMixed: a direct sum of representations, each on some of the layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fisher.collector.collection import LayerCollection
from fisher.likelihoods import Likelihood
from fisher.likelihoods.names import LikelihoodName
from fisher.pmat.contract.cuts import Cut
from fisher.pmat.contract.damping import Amounts, Regul, Scalar
from fisher.pmat.contract.handing import handed
from fisher.pmat.contract.inverses import Inverse
from fisher.pmat.contract.limits import PRODUCTS, check_dense
from fisher.pmat.contract.pmat import PMat
from linmaps import trees
from linmaps.trees import Layout
from linmaps.trees.keys import names
from linmaps.trees.tree import Tree


@trees.record(static=("split", "layers"))
class PMatMixed(PMat):
    """F = F_1 (+) F_2 (+) ..., with `parts[k]` on the layers `split[k]`: every method part by part.

    By default KFAC where the rule is Kronecker, exact blocks up to 4,096 parameters, diagonals above;
    `fim(..., layers_to={kind or name: representation})` says otherwise, for instance {"conv2d": fisher.PMatEKFAC}.
    One pass over the data for all parts (a second one corrects EKFAC's eigenvalues).

    solve: the same `kind` for all parts, or `kind={representation: kind}` with "default" for those not named.

    >>> import torch, fisher
    >>> f = lambda p, x: torch.tanh(x @ p["w"]) @ p["v"] * p["scale"]
    >>> p = {"w": torch.ones(2, 3), "v": torch.ones(3, 2), "scale": torch.ones(2)}
    >>> F = fisher.fim(f, p, torch.eye(2), fisher.PMatMixed, "gaussian", layers_to={"w": fisher.PMatDiag})
    >>> [type(part).__name__ for part in F.parts]
    ['PMatBlockDiag', 'PMatKFAC', 'PMatDiag']
    """

    parts: tuple[Any, ...]
    split: tuple[LayerCollection, ...]
    layers: LayerCollection
    kinds: ClassVar[None] = None

    __repr__ = PMat.__repr__

    def _about(self) -> str:
        return (
            ", ".join(f"{type(p).__name__.removeprefix('PMat')} on {len(s)}" for p, s in zip(self.parts, self.split))
            + ", "
        )

    @property
    def linear(self) -> bool:
        return all(part.linear for part in self.parts)

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        return self.layers.space

    @property
    def corrigible(self) -> bool:
        """Whether a part has Kronecker eigenbases, in which eigenvalues can be corrected."""
        return any(hasattr(part, "bases") for part in self.parts)

    def replaced(self, parts: list[Any]) -> PMatMixed:
        """The same split with other parts."""
        return PMatMixed(tuple(parts), self.split, self.layers)

    def update_diag(
        self,
        f: Callable[..., Tensor],
        params: Any,
        data: Any,
        likelihood: LikelihoodName | Likelihood = "categorical",
        **options: Any,
    ) -> PMatMixed:
        """`PMatEKFAC.update_diag` of the parts that have Kronecker eigenbases; the others are kept."""
        made: PMatMixed = handed("update_diag")(self, f, params, data, likelihood, **options)
        return made

    # --- vectors -----------------------------------------------------------------------------------------------------

    def _cut(self, v: Any) -> list[Any]:
        """A vector's share of each part."""
        flat = dict(zip(names(self.layout.paths), trees.leaves(v)))
        return [
            v if s.space == self.layout else {p[0]: flat[p[0]] for p in s.space.paths}  # flat dicts by path
            for s in self.split
        ]

    def _join(self, shares: list[Any]) -> Any:
        """The vector of these shares."""
        found: dict[str, Tensor] = {}
        for s, share in zip(self.split, shares):
            if s.space == self.layout:
                return share
            found |= share
        return self.layout.unflatten([found[name] for name in names(self.layout.paths)])

    def _each(self, v: Tree, fn: Callable[..., Any], *more: list[Any]) -> Tree:
        made: Tree = self._join([fn(*own) for own in zip(self.parts, self._cut(v), *more)])
        return made

    def _shares(self, regul: Any) -> list[Any]:
        """What of a regul is that of each part."""
        if not isinstance(regul, Amounts):
            return [regul] * len(self.parts)
        flat, found = dict(zip(names(self.layout.paths), regul.leaves)), []
        for s in self.split:
            leaves = regul.leaves if s.space == self.layout else tuple(flat[p[0]] for p in s.space.paths)
            named = None if regul.named is None else {n: regul.named[n] for n in s.names()}
            found.append(Amounts(s.space, leaves, named, s))
        return found

    def mv(self, v: Tree) -> Tree:
        v = self.check_vector(v)
        return self._each(v, lambda part, share: part.mv(share))

    def _solve(self, v: Any, regul: Regul, kind: Any, **options: Any) -> Any:
        def one(part: PMat, share: Any, regul: Any) -> Any:
            own = kind.get(type(part), "default") if isinstance(kind, dict) else kind
            if "cut" in options:
                return part._solve_map(share, 0, regul, own, **options)
            return part._solved(share, regul, own, **options)

        return self._each(v, one, self._shares(regul))

    def _inverses(self, layers: Any, regul: Regul) -> dict[str, Inverse] | None:
        if self.layers != layers:
            return None
        found: dict[str, Inverse] = {}
        for part, own, r in zip(self.parts, self.split, self._shares(regul)):
            more = part._inverses(own, r)
            if more is None:
                return None
            found |= more
        return {name: found[name] for name in layers.names()}

    def _sample(self, noise: Any, regul: Regul) -> Any:
        return self._each(noise, lambda part, share, r: part._sampled(None, r, share), self._shares(regul))

    # --- direct sums -------------------------------------------------------------------------------------------------

    def _inverse(self, regul: Regul) -> PMatMixed:
        return self.replaced([part._inverse(r) for part, r in zip(self.parts, self._shares(regul))])

    def _pinv(self, cut: Cut) -> PMatMixed:
        return self.replaced([part._pinv(cut) for part in self.parts])

    def _pow(self, p: float, regul: Regul) -> PMatMixed:
        return self.replaced([part._pow(p, r) for part, r in zip(self.parts, self._shares(regul))])

    def eigendecomposition(self, *, group: Any = None) -> PMatMixed:
        """Each part in its eigenbasis; group: a process group over whose ranks the layers are split."""
        options = {} if group is None else {"group": group}
        return self.replaced([part.eigendecomposition(**options) for part in self.parts])

    def get_eigenvalues(self) -> Any:
        return [part.get_eigenvalues() for part in self.parts]

    def project_to_diag(self, v: Any) -> Any:
        v = self.check_vector(v)
        return [part.project_to_diag(share) for part, share in zip(self.parts, self._cut(v))]

    def project_from_diag(self, u: Any) -> Any:
        return self._join([part.project_from_diag(share) for part, share in zip(self.parts, u)])

    def get_diag(self) -> Any:
        return self._join([part.get_diag() for part in self.parts])

    def trace(self) -> Tensor:
        return self._sum([part.trace() for part in self.parts])

    def _logdet(self, regul: Regul) -> Tensor:
        return self._sum([part._logdet(r) for part, r in zip(self.parts, self._shares(regul))])

    def frobenius_norm(self) -> Tensor:
        """sqrt of the sum of squared entries."""
        return torch.stack([part.frobenius_norm() for part in self.parts]).norm()

    def _spectral_norm(self, largest: bool) -> Tensor:
        found = torch.stack([part.norm(2 if largest else -2) for part in self.parts])
        return found.max() if largest else found.min()

    def get_block(self, name: str) -> Tensor:
        """The dense block of a layer, from the part that has it."""
        for part, own in zip(self.parts, self.split):
            if name in own.names():
                return part.get_block(name)
        raise ValueError(f"get_block: got {name!r}, expected one of {list(self.layers.names())}")

    def to_torch(self) -> Tensor:
        check_dense(self.layout.numel, "PMatMixed.to_torch", PRODUCTS, dtype=self.dtype)
        eye = torch.eye(self.layout.numel, dtype=self.dtype, device=self.device)
        columns = torch.func.vmap(lambda e: trees.ravel(self.mv(self.layout.unravel(e)))[0])(eye)
        return columns.mT

    def scaled(self, alpha: Scalar) -> PMatMixed:
        return self.replaced([part.scaled(alpha) for part in self.parts])

    def _compact(self) -> PMatMixed:
        return self.replaced([part._compact() for part in self.parts])

    def _plus(self, other: PMat) -> PMat | None:
        return self._by_parts(other, lambda F, G: F + G)

    def _times(self, other: PMat) -> PMat | None:
        return self._by_parts(other, lambda F, G: F.mm(G))

    def _by_parts(self, other: PMat, fn: Callable[[Any, Any], Any]) -> PMat | None:
        if not isinstance(other, PMatMixed) or other.split != self.split:
            return None
        return self.replaced([fn(F, G) for F, G in zip(self.parts, other.parts)])

    def _sum(self, terms: list[Tensor]) -> Tensor:
        return sum(terms[1:], terms[0])
