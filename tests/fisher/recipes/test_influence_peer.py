"""Our influences are those of kronfluence, where it is installed: the same factors, damping, scores of every kind."""

import pytest
import torch

import fisher
from fisher.recipes import influence, self_influence
from tests.fisher import kronfluence

pytestmark = pytest.mark.skipif(not kronfluence.installed(), reason=kronfluence.ABSENT)


def test_scores_are_those_of_kronfluence(tmp_path):
    g = torch.Generator().manual_seed(0)
    module = kronfluence.Tokens(6, 3)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / p[0].numel() ** 0.5)
    x, y = torch.randn(30, 4, 6, generator=g), torch.randint(3, (30, 4), generator=g)
    test = (x[:5] + 0.1, y[:5])
    peer = kronfluence.Scores(module, kronfluence.summed, (x, y), test, str(tmp_path), 10)
    f, params = fisher.functional(module)
    data, kind = list(zip(x.split(10), y.split(10))), fisher.Categorical(-1)
    F = fisher.fim(f, params, data, fisher.PMatEKFAC, kind, estimator="empirical")
    run = lambda **options: influence(f, params, data, F, test, loss=kind, regul=F.relative(0.1), **options)
    near = lambda ours, theirs: (-ours - theirs.reshape(ours.shape)).norm() < 2e-5 * theirs.norm()
    assert near(run(), peer.pairwise()["all_modules"])
    theirs = peer.pairwise(compute_per_module_scores=True)
    ours = run(per_layer=True)
    assert set(ours) == set(theirs)
    assert all(near(ours[name], theirs[name]) for name in ours)
    assert near(run(per_token=True), peer.pairwise(compute_per_token_scores=True)["all_modules"])
    assert near(run(rank=2), peer.pairwise(query_gradient_low_rank=2)["all_modules"])
    assert near(run(aggregate="test"), peer.pairwise(aggregate_query_gradients=True)["all_modules"])
    assert near(run(aggregate="data"), peer.pairwise(aggregate_train_gradients=True)["all_modules"])
    assert near(self_influence(f, params, data, F, loss=kind, regul=F.relative(0.1)), peer.own()["all_modules"])
