"""One limit for what is made dense: asked before anything is allocated."""

from __future__ import annotations

import torch

LARGEST = 2**15  # rows: 4 GiB in float32
PRODUCTS = "use F.mv(v), F.solve(v, regul), which need no dense matrix"


def check_dense(rows: int, what: str, cure: str, *, count: int = 1, dtype: torch.dtype = torch.float32) -> None:
    """Raise a ValueError that names its size unless `count` matrices of so many rows store at most 2^30 numbers in all.

    >>> check_dense(2**16, "F.to_torch", "use F.mv(v)")
    Traceback (most recent call last):
    ValueError: F.to_torch: a dense matrix of 65,536 x 65,536 is 17.2 GB, expected at most 32,768 rows (4.3 GB); use F.mv(v)
    """
    if count * rows**2 <= LARGEST**2:
        return
    size = lambda numbers: f"{numbers * dtype.itemsize / 1e9:.1f} GB"
    made = f"a dense matrix of {rows:,} x {rows:,} is" if count == 1 else f"{count:,} of {rows:,} x {rows:,} are"
    most = f"{LARGEST:,} rows" if count == 1 else f"{LARGEST**2:,} numbers"
    raise ValueError(f"{what}: {made} {size(count * rows**2)}, expected at most {most} ({size(LARGEST**2)}); {cure}")
