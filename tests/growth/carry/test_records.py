"""Records: what is absent is no leaf, for optree and for torch."""

import copy
import io
import pickle

import optree
import pytest
import torch
import torch.utils._pytree as torch_pytree
from torch.func import jacrev, vmap

import growth

W, B, D = torch.ones(2, 3), torch.ones(2), torch.ones(())


@pytest.mark.parametrize("bias", [B, None])
def test_leaves(bias):
    delta = growth.Delta(W, bias, D)
    count = 2 if bias is None else 3
    assert len(optree.tree_leaves(delta)) == len(torch_pytree.tree_leaves(delta)) == count
    mapped = vmap(lambda d: d)(optree.tree_map(lambda t: torch.stack([t, t]), delta))
    assert (mapped.bias is None) is (bias is None)
    assert mapped.weight.shape == (2, 2, 3)
    assert jacrev(lambda d: d.weight.sum())(delta).weight.shape == W.shape
    file = io.BytesIO()
    torch.save(delta, file)
    file.seek(0)
    for again in (torch.load(file), pickle.loads(pickle.dumps(delta)), copy.deepcopy(delta)):
        assert (again.bias is None) is (bias is None)
        assert torch.equal(again.weight, W)


def test_records_with_and_without_a_part_differ_in_structure():
    assert optree.tree_structure(growth.Delta(W, None, D)) != optree.tree_structure(growth.Delta(W, B, D))
    with pytest.raises(ValueError):
        optree.tree_map(torch.add, growth.Delta(W, None, D), growth.Delta(W, B, D))
