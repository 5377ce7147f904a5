"""Recurrent networks: the scan against a loop of steps, transforms, batch axes, masks, stacks, errors."""

import pickle

import numpy as np
import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

import linmaps
from linmaps import L0, SVD, Identity, Linear, Orthogonal, RNNCell, Spectral, Symmetric, rnn, trees
from tests.linmaps.zoo import generator, random_params

D = torch.float64
CELL = RNNCell(Spectral(4), Linear(3, 4, bias=True))
PARAMS = random_params(CELL, 0)
XS = torch.randn(6, 5, 3, generator=generator(1), dtype=D)


def loop(cell, params, xs, h):
    hs = []
    for x in xs:
        h = cell.step(params, x, h)
        hs.append(h)
    return torch.stack(hs), h


@pytest.mark.parametrize(
    "cell",
    [
        CELL,
        RNNCell(Orthogonal(4), Linear(3, 4), torch.nn.functional.gelu),
        RNNCell(Linear(4, bias=True), Linear(3, 4, bias=True), torch.sin),
        RNNCell(Identity(4), Linear(3, 4)),
        RNNCell(Identity(3, bias=True), Identity(3)),
        RNNCell(Identity(3), Identity(3)),
        RNNCell(linmaps.Product(Linear(4), Symmetric(4)), linmaps.Affine(linmaps.Sum(Linear(3, 4), Linear(3, 4)))),
    ],
    ids=repr,
)
def test_the_scan_is_the_loop_of_steps(cell):
    params = random_params(cell, 0)
    zeros = torch.zeros(5, cell.out_features, dtype=D)
    got, want = rnn(cell, params, XS), loop(cell, params, XS, zeros)
    assert torch.allclose(got[0], want[0], rtol=0, atol=1e-13)
    assert torch.equal(got[0][-1], got[1])
    assert got[0].dtype == D


def test_one_step_by_hand():
    cell = RNNCell(Linear(2), Linear(1, 2, bias=True))
    W, V, b = np.array([[0.5, 0.1], [-0.3, 0.2]]), np.array([[1.0, -1.0]]), np.array([0.1, 0.2])
    params = {
        "hidden": {"W": torch.tensor(W)},
        "input": {"W": torch.tensor(V), "bias": torch.tensor(b)},
    }
    h0, x = np.array([0.3, -0.4]), np.array([0.7])
    hs, last = rnn(cell, params, torch.tensor(x[None]), torch.tensor(h0))
    assert np.allclose(last.numpy(), np.tanh(h0 @ W + x @ V + b))
    assert hs.shape == (1, 2)


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_any_batch_axes_and_any_number_of_steps(batch, steps):
    xs = torch.randn(steps, *batch, 3, generator=generator(2), dtype=D)
    h0 = torch.randn(4, generator=generator(3), dtype=D)
    hs, last = rnn(CELL, PARAMS, xs, h0)
    assert hs.shape == (steps, *batch, 4)
    assert last.shape == (*batch, 4)
    if steps == 0:
        assert torch.equal(last, h0.expand(*batch, 4))
    else:
        assert torch.allclose(hs, loop(CELL, PARAMS, xs, h0.expand(*batch, 4))[0], rtol=0, atol=1e-13)
        assert torch.equal(rnn(CELL, PARAMS, xs)[0], rnn(CELL, PARAMS, xs, torch.zeros(*batch, 4, dtype=D))[0])


def test_h0_broadcasts():
    xs = torch.randn(3, 2, 5, 3, generator=generator(2), dtype=D)
    for shape in [(4,), (5, 4), (1, 4), (2, 1, 4), (2, 5, 4)]:
        h0 = torch.randn(shape, generator=generator(3), dtype=D)
        want = rnn(CELL, PARAMS, xs, h0.expand(2, 5, 4))
        assert all(torch.equal(a, b) for a, b in zip(rnn(CELL, PARAMS, xs, h0), want))


def test_a_rollout_in_two_pieces_is_one():
    hs, last = rnn(CELL, PARAMS, XS)
    first, middle = rnn(CELL, PARAMS, XS[:2])
    second, end = rnn(CELL, PARAMS, XS[2:], middle)
    assert torch.allclose(torch.cat([first, second]), hs)
    assert torch.allclose(end, last)


def test_the_matrix_is_computed_once(monkeypatch):
    calls = []
    weight = Spectral._weight
    monkeypatch.setattr(Spectral, "_weight", lambda self, params: calls.append(1) or weight(self, params))
    rnn(CELL, PARAMS, XS)
    assert len(calls) == 1


def test_ensembles_and_batches_by_vmap():
    stacked = trees.stack([random_params(CELL, seed) for seed in range(3)])
    hs, last = vmap(lambda p: rnn(CELL, p, XS))(stacked)
    for i, p in enumerate(trees.unstack(stacked)):
        assert torch.allclose(hs[i], rnn(CELL, p, XS)[0])
        assert torch.allclose(last[i], rnn(CELL, p, XS)[1])
    over_batch = vmap(lambda xs: rnn(CELL, PARAMS, xs)[0], in_dims=1, out_dims=1)(XS)
    assert torch.allclose(over_batch, rnn(CELL, PARAMS, XS)[0])
    both = vmap(lambda p: vmap(lambda xs: rnn(CELL, p, xs)[1], in_dims=1)(XS))(stacked)
    assert torch.allclose(both, last)


def test_derivatives_agree():
    loss = lambda p: rnn(CELL, p, XS)[0].square().sum()
    slope = grad(loss)(PARAMS)
    assert trees.paths(slope) == trees.paths(PARAMS)
    assert all((t != 0).any() for t in trees.leaves(slope))
    last = lambda h0: rnn(CELL, PARAMS, XS[:, 0], h0)[1]
    h0 = torch.randn(4, generator=generator(3), dtype=D)
    assert torch.allclose(jacrev(last)(h0), jacfwd(last)(h0))
    twice = [outer(inner(last))(h0) for outer in (jacrev, jacfwd) for inner in (jacrev, jacfwd)]
    assert all(torch.allclose(twice[0], other) for other in twice[1:])


def test_an_orthogonal_linear_network_keeps_the_length_of_its_state():
    cell = RNNCell(Orthogonal(8), Linear(1, 8), torch.clone)
    params = random_params(cell, 0)
    h0 = torch.randn(8, generator=generator(0), dtype=D)
    hs, _ = rnn(cell, params, torch.zeros(200, 1, dtype=D), h0)
    assert torch.allclose(hs.norm(dim=-1), h0.norm().expand(200), rtol=1e-12)


def test_masks_are_the_callers_and_the_same_at_every_step():
    cell = RNNCell(L0(4), L0(3, 4, gate="input", bias=True))
    params = random_params(cell, 0)
    noise = {"hidden": torch.rand(4, 4, generator=generator(0)), "input": torch.rand(3, generator=generator(1))}
    W = cell.hidden_map.effective_W(params["hidden"], noise["hidden"])
    V = cell.input_map.effective_W(params["input"], noise["input"])
    fixed = RNNCell(Linear(4), Linear(3, 4, bias=True))
    want = rnn(fixed, {"hidden": {"W": W}, "input": {"W": V, "bias": params["input"]["bias"]}}, XS)[0]
    assert torch.allclose(rnn(cell, params, XS, noise=noise)[0], want)
    assert not torch.allclose(rnn(cell, params, XS)[0], want)
    masks = torch.rand(3, 4, 4, generator=generator(2))
    ensemble = vmap(lambda m: rnn(cell, params, XS, noise={"hidden": m})[1])(masks)
    assert torch.allclose(ensemble[1], rnn(cell, params, XS, noise={"hidden": masks[1]})[1])


def test_a_stack_feeds_each_layer_with_the_states_of_the_one_before():
    cells = (CELL, RNNCell(Orthogonal(2), Linear(4, 2)), RNNCell(L0(5), Linear(2, 5)))
    params = [random_params(cell, seed) for seed, cell in enumerate(cells)]
    start, mask = torch.ones(5, 2, dtype=D), {"hidden": torch.rand(5, 5, generator=generator(0))}
    hs, last = rnn(cells, params, XS, [None, start, None], noise=[None, None, mask])
    a, end_a = rnn(cells[0], params[0], XS)
    b, end_b = rnn(cells[1], params[1], a, start)
    c, end_c = rnn(cells[2], params[2], b, noise=mask)
    assert torch.equal(hs, c)
    assert all(torch.equal(got, want) for got, want in zip(last, [end_a, end_b, end_c], strict=True))
    assert torch.equal(rnn([CELL], (PARAMS,), XS)[0], rnn(CELL, PARAMS, XS)[0])


def test_cells_are_specs():
    assert CELL == RNNCell(Spectral(4), Linear(3, 4, bias=True)) == pickle.loads(pickle.dumps(CELL))
    assert {CELL: 1}[RNNCell(Spectral(4), Linear(3, 4, bias=True), torch.tanh)] == 1
    assert RNNCell(Spectral(4), Linear(3, 4, bias=True), torch.sin) != CELL
    assert repr(CELL).endswith("activation=tanh)")
    assert (CELL.in_features, CELL.out_features) == (3, 4)
    assert CELL.n_params == sum(t.numel() for t in trees.leaves(PARAMS))
    assert CELL.shapes() == trees.map(lambda t: tuple(t.shape), PARAMS)
    assert {t.dtype for t in trees.leaves(CELL.init(generator(0), dtype=torch.bfloat16))} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_follows_params(dtype):
    params = trees.map(lambda t: t.to(dtype), PARAMS)
    hs, last = rnn(CELL, params, XS.to(dtype))
    assert hs.dtype == last.dtype == dtype
    assert (hs.double() - rnn(CELL, PARAMS, XS)[0]).abs().max() < 30 * torch.finfo(dtype).eps


def test_penalty_is_the_sum():
    cell = RNNCell(SVD(4), SVD(3, 4))
    params = trees.map(lambda t: t + 0.3, random_params(cell, 0))
    want = cell.hidden_map.reg_error(params["hidden"]) + cell.input_map.reg_error(params["input"])
    assert want > 0.1
    assert torch.equal(cell.reg_error(params), want)
    for other in (RNNCell(Identity(4), SVD(3, 4)), RNNCell(SVD(4), Identity(4))):
        assert other.reg_error(random_params(other, 0)).dtype == D


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((Linear(4, 5), Linear(3, 5)), ValueError, r"hidden_map: got Linear\(4, 5\), expected a square map"),
        (
            (Linear(4), Linear(3, 5)),
            ValueError,
            r"input_map: got Linear\(3, 5\), expected 4 outputs, the size of hidden",
        ),
        ((4, Linear(3, 4)), TypeError, r"RNNCell.hidden_map: got int, expected a map such as linmaps.Linear"),
        ((Linear(4), None), TypeError, r"RNNCell.input_map: got NoneType, expected a map"),
        (
            (Linear(4), Linear(3, 4), "tanh"),
            TypeError,
            r"activation: got 'tanh', expected a function such as torch.tanh",
        ),
    ],
)
def test_parts_that_do_not_fit(arguments, error, text):
    with pytest.raises(error, match=text):
        RNNCell(*arguments)


def test_params_of_another_cell():
    for call in (lambda p: rnn(CELL, p, XS), lambda p: CELL.step(p, XS[0], torch.zeros(4)), CELL.reg_error):
        with pytest.raises(
            TypeError, match=r"RNNCell: params is Tensor, expected a dict with keys \['hidden', 'input'\]"
        ):
            call(XS)
        with pytest.raises(
            ValueError, match=r"params of another cell: got keys \['hidden'\], expected \['hidden', 'in"
        ):
            call({"hidden": PARAMS["hidden"]})
        with pytest.raises(ValueError, match=r"RNNCell, input: Linear\(3, 4\): leaf W has shape \(4, 3\), expected"):
            call(trees.replace(PARAMS, "input.W", torch.ones(4, 3)))
        with pytest.raises(ValueError, match=r"RNNCell, hidden: Spectral\(4, 4\): .* missing leaves \['U', 'V', 'p'\]"):
            call({**PARAMS, "hidden": {"W": torch.ones(4, 4)}})


@pytest.mark.parametrize(
    ("xs", "h0", "noise", "error", "text"),
    [
        (XS[..., :2], None, None, ValueError, r"rnn: xs has shape \(6, 5, 2\), expected \[T, ..., 3\]: time first"),
        (XS[0, 0], None, None, ValueError, r"rnn: xs has shape \(3,\), expected \[T, ..., 3\]"),
        (None, None, None, TypeError, r"rnn: xs is NoneType, expected a tensor \[T, ..., 3\]"),
        (XS, torch.zeros(5, 3), None, ValueError, r"h0 has shape \(5, 3\), expected \(5, 4\) or what broadcasts to it"),
        (XS, torch.zeros(3, 4), None, ValueError, r"h0 has shape \(3, 4\), expected \(5, 4\)"),
        (XS, torch.zeros(1, 5, 4), None, ValueError, r"h0 has shape \(1, 5, 4\), expected \(5, 4\)"),
        (XS, torch.zeros(1), None, ValueError, r"h0 has shape \(1,\), expected \(5, 4\)"),
        (XS, torch.zeros(()), None, ValueError, r"h0 has shape \(\), expected \(5, 4\)"),
        (XS, 0.0, None, TypeError, r"h0 is float, expected a tensor of shape \(5, 4\)"),
        (
            XS,
            None,
            torch.ones(4, 4),
            ValueError,
            r"noise is Tensor, expected a dict with keys of \['hidden', 'input'\]",
        ),
        (XS, None, {"h": XS}, ValueError, r"noise is \['h'\], expected a dict"),
        (
            XS,
            None,
            {"hidden": XS},
            ValueError,
            r"noise\['hidden'\] is for Spectral\(4, 4\), which takes none; leave it",
        ),
    ],
)
def test_inputs_that_do_not_fit(xs, h0, noise, error, text):
    with pytest.raises(error, match=text):
        rnn(CELL, PARAMS, xs, h0, noise=noise)
    with pytest.raises(error, match=f"layer 0: .*{text}"):
        rnn([CELL], [PARAMS], xs, None if h0 is None else [h0], noise=None if noise is None else [noise])


def test_layers_that_do_not_fit():
    with pytest.raises(ValueError, match=r"rnn: got no cells, expected at least one"):
        rnn([], [], XS)
    with pytest.raises(ValueError, match=r"rnn: params is dict, expected a list of 2, one for each layer"):
        rnn([CELL, CELL], PARAMS, XS)
    with pytest.raises(ValueError, match=r"rnn: h0 is 1 of them, expected a list of 2"):
        rnn([CELL, CELL], [PARAMS, PARAMS], XS, [None])
    with pytest.raises(ValueError, match=r"layer 1 takes 3 inputs, but layer 0 gives 4; each layer takes the states"):
        rnn([CELL, CELL], [PARAMS, PARAMS], XS)
    with pytest.raises(TypeError, match=r"rnn: layer 0 is Linear, expected a linmaps.RNNCell"):
        rnn([Linear(3)], [PARAMS], XS)
