"""What the blocks of layers take in memory, before any is made: limits, and bytes as K-FAC keeps them."""

from __future__ import annotations

from fisher.collector.blocks.uses import UNUSED, Layer

LARGEST_BLOCK = 4096  # parameters of a block without factors that is kept whole
LARGEST_FACTOR = 8192  # rows of a factor that is kept whole


def numbers_of(layer: Layer) -> int:
    """How many numbers PMatKFAC keeps of a layer under these limits."""
    if layer.family == UNUSED:
        return 0
    if not layer.kronecker:
        return _square(layer.numel, LARGEST_BLOCK)
    out, into = layer.shape
    inputs = into + (layer.bias is not None)
    if layer.diagonal or (layer.weight is not None and into > LARGEST_FACTOR):
        left = inputs
    else:
        left = inputs**2
    return layer.form.groups * (left + _square(out, LARGEST_FACTOR))


def _square(n: int, limit: int) -> int:
    return n**2 if n <= limit else n


def spoken_size(size: int) -> str:
    """Bytes for people.

    >>> spoken_size(512), spoken_size(1_230_000)
    ('512 B', '1.2 MB')
    """
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size} B" if unit == "B" else f"{size:.1f} {unit}"
        size = size / 1000  # type: ignore[assignment]
    return f"{size:.1f} GB"
