"""Which entry of a list, or of an optimizer, belongs to which leaf of params: by names, by a given order, by shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from growth.carry.factors import belongs
from growth.surgery.moves import Move, Moves
from linmaps.trees import path_str
from linmaps.trees.keys import Path

OrderName = Literal["insertion", "leaves"]
Order = OrderName | Sequence[str | Path] | None
Shapes = Sequence[set[tuple[int, ...]]]
GIVE = 'give order="insertion", order="leaves" (that of trees.leaves(params)), or the paths of the parameters in order'


class Orders:
    """The moves of the leaves in the order of insertion and in that of optree, and in the one that was given."""

    def __init__(self, moves: Moves, order: Order) -> None:
        self.by_name = {path_str(p): m for p, m in moves.leaves.items()}
        self.usual = {
            "insertion": [moves.leaves[p] for p in moves.inserted],
            "leaves": list(moves.leaves.values()),
        }
        if isinstance(order, str):
            if order not in self.usual:
                raise ValueError(f"order: got {order!r}, expected one of {list(self.usual)}, or paths of parameters")
            self.usual = {order: self.usual[order]}
        self.given = (
            None if order is None or isinstance(order, str) else self.named([path_str(p) for p in order], "order")
        )

    def named(self, names: Sequence[str], what: str) -> list[Move]:
        """The moves of leaves with these dotted paths."""
        unknown = [n for n in names if n not in self.by_name]
        if unknown:
            raise ValueError(
                f"{what}: got {unknown[:5]}, expected leaves of params: {sorted(self.by_name)[:12]}; {GIVE}"
            )
        return [self.by_name[n] for n in names]

    def fit(self, shapes: Shapes) -> bool:
        """Whether some order has these shapes."""
        return any(_fits(shapes, o) for o in ([self.given] if self.given else self.usual.values()))

    def found(self, shapes: Shapes, names: Sequence[str] | None) -> list[Move]:
        """The move of each entry; shapes: of the tensors in it, of which it may have none.

        Raises ValueError where no order has these shapes, or several have that differ.
        """
        if self.given is not None or (names is not None and set(names) <= self.by_name.keys()):
            order = self.given if self.given is not None else self.named(names or (), "state: param_names")
            if not _fits(shapes, order):
                raise self._none(shapes, {"given": order})
            return order
        if not any(shapes):
            return [Move((), ())] * len(shapes)
        fitting = [o for o in self.usual.values() if _fits(shapes, o)]
        if fitting and all(_alike(shapes, fitting[0], o) for o in fitting):
            return fitting[0]
        own = [self._by_shape(s) for s in shapes]
        if all(m is not None for m in own):
            return [m for m in own if m is not None]
        known = all(any(belongs(s, m.old) for m in self.by_name.values()) for s in shapes)
        if fitting or (known and len(shapes) != len(self.by_name)):
            sizes = sorted({s for some, m in zip(shapes, own) if m is None for s in some})
            raise ValueError(
                f"state: {len(shapes)} entries of params with {len(self.by_name)} leaves, among them of shape {sizes}, which "
                f"fits several leaves that were resized differently, expected one way to tell them apart; {GIVE}, or make "
                "the optimizer of named parameters"
            )
        raise self._none(shapes, self.usual)

    def whole(self, names: Sequence[str] | None) -> list[Move]:
        """The moves of all parameters of a flat vector (L-BFGS)."""
        if self.given is not None:
            return self.given
        if names is not None and set(names) <= self.by_name.keys():
            return self.named(names, "state: param_names")
        first, *others = self.usual.values()
        if any(not a.same(b) or a.old != b.old for other in others for a, b in zip(first, other)):
            raise ValueError(
                "state: L-BFGS keeps all parameters as one vector of unknown order: that of insertion and the leaf order "
                f"of optree differ, expected params in which they agree (a list); {GIVE}"
            )
        return first

    def _by_shape(self, shapes: set[tuple[int, ...]]) -> Move | None:
        """The one way in which all leaves of this shape move."""
        if not shapes:
            return Move((), ())
        moves = [m for m in self.by_name.values() if belongs(shapes, m.old)]
        return moves[0] if moves and all(m.same(moves[0]) for m in moves) else None

    def _none(self, shapes: Shapes, orders: dict[str, list[Move]]) -> ValueError:
        got = [sorted(s) for s in shapes]
        want = " or ".join(f"{[m.old for m in o]} ({name})" for name, o in orders.items())
        return ValueError(
            f"state: the entries of this torch.optim state dict have shapes {got}, expected those of params in some order: "
            f"{want}; give the params that the optimizer was made for, and start anew what is neither of a parameter's shape, "
            "nor Adafactor's factors, nor a matrix of an axis"
        )


def _fits(shapes: Shapes, order: Sequence[Move]) -> bool:
    return len(shapes) == len(order) and all(belongs(s, m.old) for s, m in zip(shapes, order))


def _alike(shapes: Shapes, a: Sequence[Move], b: Sequence[Move]) -> bool:
    return all(not s or m.same(n) for s, m, n in zip(shapes, a, b))
