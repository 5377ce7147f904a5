"""What a plan says of a factorized convolution beside what is counted while it runs: parameters, bytes at peak, the choice."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from linmaps import FactorizedConv
from linmaps.factorized.convolutions.conv import FACTORIZATIONS

WITHIN = 1.5  # bytes at peak, measured by planned, either way: copies inside a step come on top, views save some


class Held(TorchDispatchMode):
    """The most bytes that results of operations hold at once, those that were there before left out."""

    def __init__(self, before):
        super().__init__()
        self.peak, self.live = 0, {}
        self.known = {t.untyped_storage()._cdata for t in before}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in self.known:
                storage = t.untyped_storage()
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: (ref, size) for key, (ref, size) in self.live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("kind", FACTORIZATIONS)
@pytest.mark.parametrize("way", ["factorized", "reconstructed"])
@pytest.mark.parametrize(("c", "o", "rank", "B"), [(16, 32, 0.2, 4), (64, 48, 0.1, 1), (32, 8, "same", 8)])
def test_bytes_at_peak_are_as_planned(n, kind, way, c, o, rank, B):
    spec = FactorizedConv(c, o, (3, 3, 2)[:n], factorization=kind, rank=rank, implementation=way)
    params = spec.init(torch.Generator().manual_seed(0))
    x = torch.ones(B, c, *(20, 12, 6)[:n])
    plan = spec.plan(tuple(x.shape), padding=1)
    with torch.no_grad(), Held([x, *params.values()]) as held:
        spec.apply_conv(params, x, padding=1)
    planned = plan.itemsize * plan.ways[way].peak
    assert planned / WITHIN <= held.peak <= WITHIN * planned
    assert plan.ways[way].parameters == spec.n_params - o
    assert plan.chosen == way


def test_the_choice_depends_on_sizes_alone_and_prints():
    spec = FactorizedConv(64, 64, (3, 3), factorization="tucker", rank=0.1)
    plan = spec.plan((8, 64, 32, 32), padding="same")
    assert plan.chosen == "factorized"
    lines = repr(plan).split("\n")
    assert [line.split("  ")[0].strip() for line in lines] == [
        "x [8, 64, 32, 32]",
        "factorized *",
        "reconstructed",
        "dense",
    ]
    assert len({len(line) for line in lines}) == 1
    assert plan.ways["dense"].parameters == 64 * 64 * 9
    assert 8 * plan.itemsize == 32
    assert spec.plan((64, 32, 32), dtype=torch.float16).itemsize == 4
    assert spec.plan((64, 32, 32), dtype=torch.float64).itemsize == 8
    joint = FactorizedConv(64, 64, (3, 3), factorization="tucker", rank=(2, 9, 2, 2, 9), n_layers=3)
    one = joint.select(joint.init(torch.Generator()), 1)[0]
    assert joint.plan((8, 64, 32, 32)).ways == one.plan((8, 64, 32, 32)).ways
