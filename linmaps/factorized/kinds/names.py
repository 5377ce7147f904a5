"""What a factorization is called, and how it is multiplied with: the names that specs take."""

from __future__ import annotations

from typing import Literal, get_args

FactorizationName = Literal["dense", "lowrank", "cp", "tucker", "tt", "blocktt", "ttm"]
Implementation = Literal["auto", "factorized", "reconstructed"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)
