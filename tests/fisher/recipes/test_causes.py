"""What is refused is refused for its cause, by the name of the argument, with the cure that works."""

import pytest
import torch
from torch.func import grad, jacrev, vmap

import fisher
from fisher.recipes import (
    Damping,
    best_step,
    functional_laplace,
    influence,
    laplace,
    merge,
    natural_gradient_step,
    surgeon_step,
    task_distance,
)
from linmaps import trees
from tests.laws import close

D = torch.float64
X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=D)
Y = torch.randn(12, 2, generator=torch.Generator().manual_seed(2), dtype=D)
P = {"w": torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=D)}


def f(p, x):
    return x @ p["w"]


F = fisher.fim(f, P, X, fisher.PMatDense, "gaussian")
V = {"w": torch.ones(3, 2, dtype=D)}


# --- one example for a batch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["kfac", "dense", "diag", "implicit"])
def test_an_example_without_the_batch_axis(kind):
    square = {"w": torch.eye(3, dtype=D) + 1}
    with pytest.raises(ValueError, match=r"x of shape \(3,\) is 3 examples of a number each, .* is x\[None\]"):
        fisher.fim(f, square, X[0], kind, "gaussian")
    with pytest.raises(ValueError, match=r"a single one is x\[None\]"):
        fisher.fim(f, P, X[0], kind, "gaussian")
    fisher.fim(f, square, X[0][None], kind, "gaussian")
    mixed = lambda p, x: f(p, x - x.mean(0))
    with pytest.raises(ValueError, match=r"the batch axis in front; batch norm in train mode"):
        fisher.fim(mixed, P, X, kind, "gaussian")


# --- soft targets of tokens ---------------------------------------------------------------------------------------------


def test_soft_targets_over_the_last_axis_are_told_by_their_sums():
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(4), dtype=D)
    soft = torch.softmax(torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(5), dtype=D), -1)
    last = fisher.Categorical(class_axis=-1)
    G = fisher.fim(f, P, x, fisher.PMatDense, last)
    with pytest.raises(ValueError, match=r"over axis -1 they do: .*Categorical\(class_axis=-1\)"):
        influence(f, P, (x, soft), G, (x, soft), regul=0.1)
    assert influence(f, P, (x, soft), G, (x, soft), regul=0.1, loss=last).shape == (4, 4)
    with pytest.raises(ValueError, match=r"apply torch.softmax"):
        fisher.Categorical().log_prob(x, x)


# --- distances of tasks -------------------------------------------------------------------------------------------------


def test_a_distance_is_from_0_to_1():
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        a, b = torch.rand(2, 7, generator=g, dtype=D) * (torch.rand(2, 7, generator=g) > 0.5)
        d = task_distance(a, b)
        assert 0 <= d <= 1 + 1e-12
        close(d, task_distance(b, a), 1e-12, "both ways")
        close(task_distance(a, a), torch.zeros((), dtype=D), 1e-12, "of itself")
    zero, some = torch.zeros(7, dtype=D), torch.ones(7, dtype=D)
    assert task_distance(zero, zero) == 0
    assert task_distance(zero, some) == task_distance(some, zero) == 1
    for t in (zero, some):
        assert bool(grad(lambda a: task_distance(a, some))(t).isfinite().all())


def test_what_is_no_embedding():
    with pytest.raises(ValueError, match=r"one: got shape \(1, 7\), expected \[U\].*vmap"):
        task_distance(torch.ones(1, 7), torch.ones(1, 7))
    with pytest.raises(ValueError, match=r"other: got -1.0, expected numbers >= 0"):
        task_distance(torch.ones(2), torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"other: got shape \(3,\), expected \(2,\) as one"):
        task_distance(torch.ones(2), torch.ones(3))
    assert vmap(task_distance)(torch.ones(4, 7), torch.ones(4, 7)).shape == (4,)


# --- steps --------------------------------------------------------------------------------------------------------------


def test_at_zero_gradient_the_damping_stays():
    loss = lambda p: ((f(p, X) - f(P, X)) ** 2).mean()
    zero = trees.zeros_like(P)
    damping = Damping(torch.tensor(0.1, dtype=D))
    for _ in range(3):
        step = natural_gradient_step(loss, P, F, zero, damping)
        close(step.damping.value, damping.value, 1e-15, "damping")
        close(step.params, P, 1e-15, "params")
        assert step.ratio == 1
        damping = step.damping
    both = vmap(lambda s: natural_gradient_step(loss, P, F, trees.scale(s, V), Damping(s * 0 + 0.1)).damping.value)
    close(both(torch.tensor([0.0, 1.0], dtype=D))[0], torch.tensor(0.1, dtype=D), 1e-15, "a member")


def test_losses_and_directions_of_another_shape():
    with pytest.raises(ValueError, match=r"loss\(params\): got a result of shape \(12,\), expected a scalar"):
        natural_gradient_step(lambda p: (f(p, X) ** 2).sum(-1), P, F, V, Damping(torch.tensor(0.1, dtype=D)))
    with pytest.raises(
        ValueError, match=r"directions: got a vector, expected .* \[K, \*leaf\]; stack them with trees.stack"
    ):
        best_step(F, V, V)
    with pytest.raises(ValueError, match=r"directions: got leading axes \(2, 2\)"):
        best_step(F, V, trees.stack([trees.stack([V, V])] * 2))
    assert best_step(F, V, trees.stack([V]))["w"].shape == (3, 2)


# --- inputs and models --------------------------------------------------------------------------------------------------


def test_a_tuple_is_several_inputs():
    posteriors = [laplace(f, P, F, 12), functional_laplace(f, P, X, likelihood="gaussian")]
    for posterior in posteriors:
        with pytest.raises(ValueError, match=r"x: got a tuple of 2, the several inputs of f, .*\[\(x, target\)\]"):
            posterior.predict((X, Y))
        close(posterior.predict([(X, Y)])[0], f(P, X), 1e-12, "targets are left aside")
    two = lambda p, x: f(p, x[0] + x[1])
    singular = laplace(two, P, 0.0 * F, 12, prior_precision=1.0)
    close(singular.predict((X, X))[0], 2 * f(P, X), 1e-12, "two inputs")


def test_models_are_a_list():
    with pytest.raises(TypeError, match=r"models: got generator, expected a list"):
        merge((p for p in (P, V)), [F, F])
    with pytest.raises(TypeError, match=r"Fs: got generator, expected a list"):
        merge([P, V], (G for G in (F, F)))


@pytest.mark.parametrize("dtype", [torch.bool, D])
def test_a_mask_may_be_bool(dtype):
    mask = {"w": torch.tensor([[1, 0], [1, 1], [0, 1]])}
    want = surgeon_step(F, P, {"w": mask["w"].to(D)}, regul=0.1)
    close(surgeon_step(F, P, {"w": mask["w"].to(dtype)}, regul=0.1), want, 0.0, "mask")
    slopes = jacrev(lambda p: surgeon_step(F, p, {"w": mask["w"].to(dtype)}, regul=0.1)["w"])(P)
    assert slopes["w"].shape == (3, 2, 3, 2)
