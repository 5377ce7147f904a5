"""Laws of recurrent layers: step by step they are torch's own, and their weights are linear ones used at every step."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

import fisher
from fisher.collector.calls.batching import soundly
from fisher.collector.calls.recurrent import RECURRENT
from fisher.derivatives.forward import jvp
from linmaps import trees
from tests.fisher.collector.test_rules import randn
from tests.laws import close
from tests.oracles import fisher_matrix

LAYERS = {
    f"{kind.__name__}, {layers} layers, {'both ways' if both else 'one way'}{', ' + extra if extra else ''}": (
        kind,
        {"num_layers": layers, "bidirectional": both, **options},
    )
    for kind, layers, both in itertools.product((nn.LSTM, nn.GRU, nn.RNN), (1, 2), (False, True))
    for extra, options in (
        ("", {}),
        ("no bias", {"bias": False}),
        *((("projected", {"proj_size": 2}),) if kind is nn.LSTM else ()),
        *((("relu", {"nonlinearity": "relu"}),) if kind is nn.RNN else ()),
    )
}
CELLS = {"LSTMCell": nn.LSTMCell, "GRUCell": nn.GRUCell, "RNNCell": nn.RNNCell}


def network(kind, options, batch_first=True):
    """(f, params): the outputs of a layer, from random weights of its own."""
    net = kind(3, 4, batch_first=batch_first, **options).double()
    params = {k: randn(*t.shape, seed=i) / 2 for i, (k, t) in enumerate(net.named_parameters())}
    return (lambda p, x: functional_call(net, p, (x,))), params


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_step_by_step_they_are_torchs_own(name, batch_first):
    f, params = network(*LAYERS[name], batch_first)
    x = randn(2, 5, 3, seed=9)
    close(trees.leaves(soundly(f)(params, x)), trees.leaves(f(params, x)), 1e-12, name)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_cells_are_torchs_own(name, bias):
    net = CELLS[name](3, 4, bias=bias).double()
    x, h = randn(2, 3, seed=1), randn(2, 4, seed=2)
    state = (h, h.cos()) if name == "LSTMCell" else h
    close(trees.leaves(soundly(net)(x, state)), trees.leaves(net(x, state)), 1e-12, name)


@pytest.mark.parametrize("name", [n for n in LAYERS if n.split(", ")[1] == "1 layers"])
def test_each_weight_is_a_layer_used_at_every_step(name):
    whole, params = network(*LAYERS[name])
    f = lambda p, x: whole(p, x)[0].flatten(1)
    x = randn(3, 2, 3, seed=9)
    layers = fisher.LayerCollection.from_function(f, params, x)
    assert not layers.exact
    assert {l.kind for l in layers} == {"linear"}
    assert {len(l.uses) for l in layers if "weight_hh" in l.name} == {2}
    want = fisher_matrix(f, params, x, "gaussian")
    close(fisher.fim(f, params, x, fisher.PMatDense, "gaussian", layers=layers).matrix, want, 1e-10, "dense")
    diagonal = fisher.fim(f, params, x, fisher.PMatDiag, "gaussian", layers=layers).get_diag()
    close(trees.ravel(diagonal)[0], want.diagonal(), 1e-10, "diagonal")


def test_function_space_forward_mode_and_ensembles():
    whole, params = network(nn.LSTM, {})
    f = lambda p, x: whole(p, x)[0][:, -1]
    x = randn(3, 2, 3, seed=9)
    J = fisher.jacobian(f, params, x)
    v = trees.map(torch.cos, params)
    close(J.jvp(v), jvp(lambda p: f(p, x), (params,), (v,))[1], 1e-10, "forward mode")
    close(fisher.jacobian(f, params, x, fisher.PFMapImplicit).jvp(v), J.jvp(v), 1e-10, "matrix-free")
    layers = fisher.LayerCollection.from_function(f, params, x)
    kfac = lambda p: fisher.fim(f, p, x, likelihood="gaussian", layers=layers, check_finite=False).factors
    stacked = trees.stack([params, trees.map(lambda t: 0.5 * t, params)])
    close(vmap(kfac)(stacked), trees.stack([kfac(p) for p in trees.unstack(stacked)]), 1e-10, "ensemble")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_packed_sequences_are_refused_by_name(kind):
    net = kind(3, 4, batch_first=True).double()
    params = {k: t.detach() for k, t in net.named_parameters()}

    def f(p, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 2, 1]), batch_first=True)
        out, _ = functional_call(net, p, (packed,))
        return nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0][:, 0]

    with pytest.raises(
        ValueError, match="PackedSequence, whose steps hold other examples each, expected a padded batch"
    ):
        fisher.fim(f, params, randn(3, 2, 3), likelihood="gaussian")


def test_dropout_between_layers_is_random_in_train_mode():
    net = nn.GRU(3, 4, 2, batch_first=True, dropout=0.5).double()
    params = {k: t.detach() for k, t in net.named_parameters()}
    f = lambda p, x: functional_call(net, p, (x,))[0].mean(1)
    with pytest.raises(ValueError, match="is random"):
        fisher.fim(f, params, randn(3, 2, 3), likelihood="gaussian")
    net.eval()
    assert not fisher.LayerCollection.from_function(f, params, randn(3, 2, 3)).exact


def test_every_fused_call_of_torch_is_here():
    """Quantized ones aside."""
    names = {n for n in dir(torch) if n.endswith("_cell") or n in ("lstm", "gru", "rnn_tanh", "rnn_relu")}
    assert {getattr(torch, n) for n in names if not n.startswith("quantized")} == set(RECURRENT)
