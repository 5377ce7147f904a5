"""What an optimizer is handed: gradients, state and params, and by name the batch, noise, the generator if it asks for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from fisher.recipes.optimizers.protocol import as_optimizer
from growth.carry.state import carried
from growth.reading.pairs import Pair

NAMES = ("batch", "noise", "generator")


class Rule:
    """init, update and carry of an optimizer, each called with what its signature names.

    batch: the (x, target) of a step; noise: its own; generator: the one of the fit; state over growth by the optimizer's own
    `carry(state, params, grown)` where it has one, else by `grow_like`.  An optimizer whose init asks for the batch gets its
    state with the first batch; until then this is None.

    >>> class Counting:
    ...     init = staticmethod(lambda params: 0)
    ...     update = staticmethod(lambda gradient, state, params, *, batch: (gradient, state + len(batch[0])))
    >>> rule = Rule(Counting)
    >>> rule.update(None, rule.start(None, None), None, batch=([1, 2], None), generator=None)
    (None, 2)
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.pair = optimizer, as_optimizer(optimizer)
        self.init_asks, self.update_asks = asked(self.pair.init), asked(self.pair.update)

    def start(self, params: Any, generator: Any) -> Any:
        """The state before any batch; None where init asks for one."""
        return None if "batch" in self.init_asks else self._init(params, {"generator": generator, "noise": None})

    def update(
        self, gradient: Any, state: Any, params: Any, *, batch: Any, generator: Any, noise: Any = None
    ) -> tuple[Any, Any]:
        offer = {"batch": batch, "noise": noise, "generator": generator}
        if state is None and "batch" in self.init_asks:
            state = self._init(params, offer)
        own = {n: offer[n] for n in NAMES if n in self.update_asks}
        return self.pair.update(gradient, state, params, **own)

    def carry(self, state: Any, params: Any, grown: Any, pairs: Sequence[Pair]) -> Any:
        own = getattr(self.optimizer, "carry", None)
        if state is None:
            return None
        return carried(state, params, grown, pairs) if own is None else own(state, params, grown)

    def _init(self, params: Any, offer: dict[str, Any]) -> Any:
        return self.pair.init(params, **{n: offer[n] for n in NAMES if n in self.init_asks})


def asked(fn: Callable[..., Any]) -> set[str]:
    """What a function takes by name: parameters that need not come by position, and all of `NAMES` with **options.

    >>> sorted(asked(lambda g, s, p, batch, noise=None: None)), sorted(asked(lambda g, s, p, **options: None))
    (['batch', 'noise'], ['batch', 'generator', 'noise'])
    """
    try:
        found = inspect.signature(fn).parameters
    except ValueError:  # of a builtin
        return set()
    named = [p for p in found.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    first = [n for n, p in found.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:3]
    options = any(p.kind is p.VAR_KEYWORD for p in found.values())
    return {p.name for p in named if p.name not in first or p.name in NAMES} | (set(NAMES) if options else set())
