"""Two and three processes against one: the same numbers, the same bits at all ranks, an end where a rank does not come."""

import pytest
import torch.distributed as dist

from tests.fisher.distributed import processes

pytest.importorskip("sklearn", reason="the example reads the digits of scikit-learn")
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no torch.distributed")


@pytest.mark.parametrize("world", [2, 3])
def test_many_processes_are_one(world, tmp_path):
    found = processes.run(world, tmp_path)
    wrong = []
    for name in [n for n in found[0] if n not in ("seconds", "bar", "example", "away")]:
        ranks = [rank[name] for rank in found]
        wrong += [f"{name}, rank {k}: {r[2]}" for k, r in enumerate(ranks) if r[2]]
        if len({r[0] for r in ranks}) > 1:
            wrong.append(f"{name}: other bits at other ranks")
        if not ranks[0][1] <= 1e-12:
            wrong.append(f"{name}: differs from one process by {ranks[0][1]:.3g}")
    assert not wrong, "\n".join(wrong)
    first, *others = [rank["bar"] for rank in found]
    assert "fim" in first
    assert not any(others), "bars are for the first rank"
    if world == 2:
        assert "all results equal those of one process" in found[0]["example"]
        assert not found[1]["example"]
    for seconds, message in (rank["away"] for rank in found[:-1] if rank["away"] is not None):
        assert message, "a rank that stays away is no result"
        assert seconds < 10 * processes.DIES, f"{seconds:.1f} s: {message}"
