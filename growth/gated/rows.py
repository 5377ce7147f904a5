"""Candidates for the rows of a gate: those there are, directions of the data, random ones.

r inputs of the gate, p hidden units, n candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growth.closed_form.sides import input_size
from growth.moments.first_order import Statistics
from growth.reading.layers import Layer
from linmaps.numerics.draws import normal
from linmaps.numerics.dtypes import working
from linmaps.numerics.eigen import eigh


def candidate_rows(stats: Statistics, gate: Layer, n: int, generator: torch.Generator | None) -> Tensor:
    """Rows `[n', r]` (with a bias of the gate `[n', r+1]`), n' <= n: of units there are, at most n/4; both signs of the
    eigenvectors of E[x x'], the largest first, at most n/4 of them; random ones for the rest, if there is a generator.

    Directions of data and random rows have pre-activations of mean square 1, and biases 0 and normal.
    """
    own = working(gate.weight)
    biased = gate.bias is not None
    own = torch.cat([own, working(gate.bias)[:, None]], 1) if gate.bias is not None else own
    p, r = gate.weight.shape
    few = min(p, n // 4)
    at = torch.arange(few, device=own.device) * p // max(1, few)
    inputs = working(stats.S_prev)[:r, :r]
    values, vectors = (t.flip(-1) for t in eigh((inputs + inputs.mT) / 2))
    main = min(r, n // 4)
    rows = stats.positions / stats.count
    sizes = torch.where(values[:main] > 1e-6 * values[:1].sum(), values[:main] / rows, 1.0).sqrt()
    directions = vectors.mT[:main] / sizes[:, None]
    directions = torch.nn.functional.pad(torch.cat([directions, -directions]), (0, int(biased)))
    parts = [own.index_select(0, at), directions.to(own)]
    rest = n - few - 2 * main
    if generator is not None and rest > 0:
        drawn = normal(generator, (rest, own.shape[1]), own.dtype).to(own)
        scale = torch.ones_like(drawn[0])
        scale = torch.cat([scale[:r] / input_size(stats).to(own), scale[r:]])
        parts.append(drawn * scale)
    return torch.cat(parts)
