"""A run held against the uses that were seen before: f takes the way that its LayerCollection was made from, or raises."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from fisher.collector.blocks.uses import Use
from fisher.collector.rules.match import Derived, Match, View, leaves_of, spoken
from linmaps.trees import path_str

ANOTHER_WAY = (
    "f took another way than the one its LayerCollection was made from: make a new one with "
    "LayerCollection.from_function(f, params, x)"
)


class Replay:
    """Compare the uses met with the uses foreseen, at every call: a dictionary comparison, no tensor is read."""

    def __init__(self, uses: tuple[Use, ...]) -> None:
        self.uses, self.met = uses, 0
        self.outputs: dict[int, int] = {}
        self.alive: list[Tensor] = []
        self.holding = {u.constant for u in uses}
        self.free = any(u.free for u in uses)
        self.nodes: dict[int, int] = {}  # of derived weights, by the numbers that the uses give them

    def holds(self, number: int, match: Match, z: Tensor) -> bool:
        return number in self.holding

    def index(self, match: Match) -> int | None:
        if match.added_to is not None and match.bias is not None:
            k = self.outputs.get(id(match.added_to))
            if k is not None and self.uses[k].joined and self._like(self.uses[k].bias, match.bias) == self.uses[k].bias:
                return None
        if match.in_place and match.weight is None:  # joins no layer: an exact block's affair
            return None
        k = self.met
        if k >= len(self.uses) or not self._explained(self.uses[k], match):
            if any(v is not None and isinstance(v.path, Derived) for v in (match.weight, match.bias)):
                self._check_made(match)
                return None  # at another number of examples what leaves make may be met in one call more
            got = spoken((match.weight or match.bias or View(())).path)
            want = self.uses[k].describe() if k < len(self.uses) else "no further use"
            raise ValueError(f"{got}: use {k} is {match.kind} of {got}, expected {want}; {ANOTHER_WAY}")
        self.met += 1
        return k

    def _check_made(self, match: Match) -> None:
        """Raise for what is made of a leaf that the uses foreseen take as it is alone: its block is made of those."""
        paths = [path for use in self.uses for path in (use.weight, use.bias) if path is not None]
        made = {leaf for path in paths if isinstance(path, Derived) for leaf in path.leaves}
        for view in (match.weight, match.bias):
            for leaf in leaves_of(view.path) if view is not None else ():
                if leaf in paths and leaf not in made:
                    raise ValueError(
                        f"{path_str(leaf)}: met as {match.kind} of {spoken(view.path)}, expected the leaf as it is alone; "  # type: ignore[union-attr]
                        f"{ANOTHER_WAY}"
                    )

    def _explained(self, use: Use, match: Match) -> bool:
        return use.explains(match, self._like(use.weight, match.weight), self._like(use.bias, match.bias))

    def _like(self, want: Any, seen: View | None) -> Any:
        """What was met, a derived weight with the number that it has if it is the one that is wanted."""
        got = seen.path if seen is not None else None
        if not isinstance(want, Derived) or not isinstance(got, Derived):
            return got
        node = got.number
        known = {n: number for number, n in self.nodes.items()}
        if known.get(node, want.number) != want.number or self.nodes.get(want.number, node) != node:
            return got
        if (found := dataclasses.replace(got, number=want.number)) == want:
            self.nodes[want.number] = node
        return found

    def finish(self) -> None:
        if self.met != len(self.uses):
            missing = self.uses[self.met].describe()
            raise ValueError(
                f"{missing}: met {self.met} uses, expected {len(self.uses)}; f took another way than the one its "
                "LayerCollection was made from (a fused or compiled path hides calls): make a new one with "
                "LayerCollection.from_function(f, params, x)"
            )
