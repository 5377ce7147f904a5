"""Matrices over params go along: the old block stays, new rows and columns are zero, those of pruned units go."""

import pytest
import torch

import fisher
import growth
from linmaps import trees
from tests.growth.oracle import close
from tests.growth.rows_surgery import SMOOTH, dense, matrices, prunable

BASES = ("ekfac", "eigen", "eigen blocks", "kfac in its basis", "range")


def where_old(params, grown):
    """For each entry of the grown flat order whether it is an old one."""
    mask = growth.grow_like(trees.map(torch.ones_like, params), params, grown)
    return trees.ravel(mask)[0] > 0


@pytest.mark.parametrize("kind", SMOOTH)
def test_matrices_keep_the_old_block(kind):
    net = SMOOTH[kind]()
    grown = growth.widen(net.params, net.pair, 2)
    old = where_old(net.params, grown)
    F = matrices(net)
    for name, G in growth.grow_like(F, net.params, grown).items():
        assert type(G) is type(F[name])
        want = torch.zeros(len(old), len(old), dtype=torch.float64)
        want[torch.outer(old, old)] = F[name].to_torch().flatten()
        close(G.to_torch(), want, 1e-9)
        v = trees.map(torch.ones_like, grown)
        close(trees.ravel(G.mv(v))[0], want.sum(1), 1e-9)
        solved = G.solve(v, regul=1.0)
        close(trees.ravel(solved)[0], torch.linalg.solve(want + torch.eye(len(want)), torch.ones_like(want[0])), 1e-8)


@pytest.mark.parametrize("kind", SMOOTH)
def test_matrices_lose_rows_and_columns_of_pruned_units(kind):
    net = prunable(kind)
    small = growth.prune(net.params, net.pair, [0])
    numbers = trees.unravel(torch.arange(sum(t.numel() for t in trees.leaves(net.params))).double(), net.params)
    kept = trees.ravel(growth.prune(numbers, net.pair, [0]))[0].long()
    for name, F in matrices(net).items():
        if name in BASES:
            with pytest.raises(ValueError, match=r"in its eigenbasis.* prune the matrix it was made of"):
                growth.prune_like(F, net.params, net.pair, [0])
            continue
        G = growth.prune_like(F, net.params, net.pair, [0])
        close(G.to_torch(), F.to_torch()[kept][:, kept], 1e-9)
        trees.check_like(G.get_diag(), small, "G")


@pytest.mark.parametrize("kind", SMOOTH)
def test_bases_stay_orthogonal(kind):
    net = SMOOTH[kind]()
    grown = growth.widen(net.params, net.pair, 3)
    F = growth.grow_like(matrices(net), net.params, grown)
    for U in trees.leaves([F["ekfac"].bases, F["eigen"].vectors, F["eigen blocks"].vectors]):
        if U.ndim == 2:
            close(U.mT @ U, torch.eye(len(U), dtype=U.dtype), 1e-9)
    updated = F["ekfac"].update_diag(net.f, grown, net.x)
    assert updated.trace() > 0


def test_other_matrices_and_params_raise():
    net = dense()
    grown = growth.widen(net.params, net.pair, 1)
    implicit = fisher.PMatImplicit.of(net.f, net.params, net.x)
    with pytest.raises(ValueError, match=r"PMatImplicit: holds params or functions.* anew"):
        growth.grow_like({"F": implicit}, net.params, grown)
    stacked = trees.stack([net.params, net.params])
    F = fisher.fim(net.f, net.params, net.x, fisher.PMatKFAC)
    with pytest.raises(ValueError, match=r"leaf first.bias \(3,\), params have shape \(2, 3\).*vmap"):
        growth.grow_like(F, stacked, trees.stack([grown, grown]))
    with pytest.raises(ValueError, match=r"leaf first.bias .* params have no such leaf"):
        growth.grow_like(F, {"hidden": net.params["hidden"]}, {"hidden": grown["hidden"]})


def test_means_averages_and_multiples_of_the_identity():
    net = dense()
    grown = growth.widen(net.params, net.pair, 2)
    F = fisher.fim(net.f, net.params, net.x, fisher.PMatKFAC)
    mean = fisher.Mean().add(F, 5)
    plain = fisher.Mean().add(net.params, 3)
    eye = fisher.PMatEye(torch.tensor(3.0, dtype=torch.float64), trees.Layout.of(net.params))
    kernel = fisher.gram(net.f, net.params, net.x[:2])
    state = {"mean": mean, "plain": plain, "eye": eye, "kernel": kernel, "sum": F + eye}
    carried = growth.grow_like(state, net.params, grown)
    close(carried["mean"].value().to_torch(), growth.grow_like(F, net.params, grown).to_torch(), 1e-12)
    assert carried["mean"].count == 5
    trees.check_like(carried["plain"].value(), grown, "plain")
    again = carried["mean"].add(fisher.fim(net.f, grown, net.x, fisher.PMatKFAC, layers=carried["mean"].mean.layers), 1)
    assert again.count == 6
    d = sum(t.numel() for t in trees.leaves(grown))
    assert torch.equal(carried["eye"].to_torch(), 3 * torch.eye(d, dtype=torch.float64))
    assert torch.equal(carried["kernel"].kernel, kernel.kernel)
    assert carried["sum"].trace() > carried["eye"].trace()


def test_function_matrices_are_never_taken_for_a_leaf():
    net = dense(p=3)  # a kernel [2, 4, 2, 4] beside a leaf of that shape
    params = {"a": {"weight": torch.ones(2, 4, 2, 4)}}
    kernel = fisher.gram(net.f, net.params, net.x[:2])
    assert kernel.kernel.shape == params["a"]["weight"].shape
    carried = growth.grow_like(kernel, params, {"a": {"weight": torch.ones(3, 4, 2, 4)}})
    assert torch.equal(carried.kernel, kernel.kernel)
