"""What is done twice in a graph is done once; outputs stay apart, and memory that is written to is left alone."""

import torch
from torch.func import grad, jvp
from torch.fx.experimental.proxy_tensor import make_fx

from linmaps import trees
from linmaps.trees.graphs.merging import merge
from linmaps.trees.graphs.recording import traced_graph

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
W = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def count(run, inputs, *names):
    nodes = traced_graph(run, inputs, "run").module.graph.nodes
    return [sum(str(node.target) == f"aten.{name}" for node in nodes) for name in names]


def same(run, *inputs):
    made = trees.compiled(run, backend="eager")(*inputs)
    for got, want in zip(trees.leaves(made), trees.leaves(run(*inputs)), strict=True):
        assert torch.equal(got, want)
    return made


def test_a_forward_that_two_share_is_computed_once():
    loss = lambda w, x: torch.tanh(x @ w).square().sum()
    run = lambda w, x: [loss(w, x), grad(loss)(w, x), jvp(lambda w: torch.tanh(x @ w), (w.clone(),), (2 * w,))[1]]
    assert count(run, [W, X], "tanh.default", "mm.default") == [1, 3]  # x w, x' g, x dw
    same(run, W, X)


def test_outputs_are_apart():
    one, two = same(lambda x: (x + 1, x + 1), X)
    one.zero_()
    assert torch.equal(two, X + 1)
    (copy,) = same(lambda x: (x.clone(),), X)
    assert copy.data_ptr() != X.data_ptr()


def test_memory_that_is_written_to_is_left():
    def run(x):
        a, b = x + 1, x + 1
        view = a[0]
        before = a.sum()
        view.mul_(2)
        return before, a.sum(), b.sum(), a.clone().add_(1).sum()

    same(run, X)


def test_numbers_that_are_equal_and_not_the_same_are_told_apart():
    same(lambda x: (x * 0.0, x * -0.0, x + 1, x + True, (x > 0).to(torch.int64) * 2, (x > 0).to(torch.int64) * 2.0), X)


def test_a_sum_with_zeros_of_another_form_is_made():
    same(
        lambda x: (x.float() + torch.zeros(4, 3, dtype=torch.float64), x[0] + torch.zeros(4, 3), torch.zeros(2) + 0), X
    )
    same(lambda x: (torch.zeros(4, 4) + torch.zeros(4, 4), x + torch.zeros(4, 4, dtype=torch.float64) @ x), X)


def test_a_sum_with_zeros_and_a_multiple_of_the_other_is_made():
    same(lambda x: [torch.tanh(torch.add(torch.zeros(4, 3, dtype=x.dtype), x, alpha=a)) for a in (2, -1, 0)], X)
    same(lambda x: [torch.tanh(x.new_zeros(4, 3).sub(x, alpha=a) + x.new_zeros(4, 3)) for a in (2, -1, 0)], X)


def test_an_operation_with_several_answers():
    run = lambda x: torch.linalg.eigh(x.T @ x)[0] + torch.linalg.eigh(x.T @ x)[0]
    made = make_fx(run, tracing_mode="fake")(X)
    merge(made.graph)
    made.recompile()
    assert torch.equal(made(X), run(X))
    assert sum("eigh" in str(node.target) for node in made.graph.nodes) == 1
