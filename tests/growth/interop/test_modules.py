"""Laws of params put back into modules: the new module is f at these params, and shares nothing."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import vmap

import fisher
import growth
import linmaps
from linmaps import trees
from tests.laws import close
from tests.zoo.keeping import KEPT, Keeping

G = torch.Generator().manual_seed(0)
X = torch.randn(5, 4, generator=G, dtype=torch.float64)
IMAGES = torch.randn(3, 2, 8, 8, generator=G, dtype=torch.float64)
STEPS = torch.randn(3, 6, 4, generator=G, dtype=torch.float64)
TOKENS = torch.randint(7, (3, 6), generator=G)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.again = self.embedding
        self.register_buffer("scale", torch.tensor(2.0))
        self.kept = {"twice": [self.embedding.weight]}

    def forward(self, x):
        return self.head(self.scale * self.embedding(x))


class Last(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.layer = nn.MultiheadAttention(4, 2, batch_first=True, **options)

    def forward(self, x):
        return self.layer(x, x, x)[0]


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Bilinear(4, 4, 3)

    def forward(self, x):
        return self.layer(x, x)


def seeded(make):
    torch.manual_seed(0)
    return make().double().eval()


MODULES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.PReLU(6), nn.Linear(6, 3, bias=False)), X),
    "convolutional": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, groups=4), nn.GroupNorm(2, 4),
            nn.ConvTranspose2d(4, 2, 3), nn.Flatten(), nn.LazyLinear(3),
        ),
        IMAGES,
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.LayerNorm(4), nn.RMSNorm(4), nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False),
            nn.LayerNorm(4, bias=False),
        ),
        X,
    ),
    "lstm": (lambda: Last(nn.LSTM(4, 5, num_layers=2, bidirectional=True, proj_size=3, batch_first=True)), STEPS),
    "gru": (lambda: Last(nn.GRU(4, 5, batch_first=True)), STEPS),
    "rnn": (lambda: Last(nn.RNN(4, 5, batch_first=True)), STEPS),
    "cell": (lambda: nn.GRUCell(4, 5), X),
    "attention": (Attention, STEPS),
    "attention of sizes": (lambda: Attention(kdim=4, vdim=4), STEPS),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), STEPS),
    "tied": (Tied, TOKENS),
    "bilinear": (Bilinear, X),
    "weight norm": (lambda: nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh()), X),
    "map": (lambda: nn.Sequential(linmaps.Module(linmaps.Orthogonal(4), torch.Generator().manual_seed(0)), nn.Tanh()), X),
    "parametrized": (lambda: linmaps.parametrize(nn.Linear(4, 4), "weight", linmaps.Orthogonal(4)), X),
}  # fmt: skip


def made(name):
    make, x = MODULES[name]
    torch.manual_seed(0)
    module = make().double()
    module(x)  # lazy layers, running statistics
    return module.eval(), x


def storages(tensors):
    return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_the_new_module_is_f_at_the_params_and_shares_nothing(name, training):
    module, x = made(name)
    module.train(training)
    before = copy.deepcopy(module.state_dict())
    f, params = fisher.functional(module, buffers=True)
    moved = trees.map(lambda t: 1.5 * t + 0.01, params)
    new = growth.into_module(module, moved)
    assert type(new) is type(module)
    assert new.training is training
    assert [p.training for p in new.modules()] == [p.training for p in module.modules()]
    assert [n for n, _ in new.named_parameters()] == [n for n, _ in module.named_parameters()]
    assert [n for n, _ in new.named_buffers()] == [n for n, _ in module.named_buffers()]
    assert list(new.state_dict()) == list(before)
    shared = storages([*new.parameters(), *new.buffers()])
    assert not shared & storages([*module.parameters(), *module.buffers(), *moved.values()])
    if name != "transformer":  # dropout
        close(new(x).detach(), f(moved, x), 1e-12, "values")
    for key, t in module.state_dict().items():
        assert torch.equal(t, before[key]), key
    for key, t in moved.items():
        close(dict(new.named_parameters()).get(key, dict(new.named_buffers()).get(key)).detach(), t, 0.0, key)
    new(x).sum().backward()
    assert all(p.grad is None for p in module.parameters())
    again = growth.into_module(new, fisher.functional(new, buffers=True)[1])
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in new.state_dict().items()}


def test_sizes_of_a_grown_convolutional_net_follow():
    torch.manual_seed(0)
    m = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(48, 2)
    ).double()  # fmt: skip
    m(IMAGES)
    m.eval()
    params = fisher.functional(m, buffers=True)[1]
    pair = growth.Pair("0", "3", norm="1")
    wide = growth.widen(params, pair, 3, generator=torch.Generator().manual_seed(1))
    new = growth.into_module(m, wide)
    close(new(IMAGES).detach(), m(IMAGES).detach(), 1e-12, "the function is kept")
    assert (new[0].out_channels, new[1].num_features, new[3].in_channels) == (7, 7, 7)
    assert str(new[3]) == "Conv2d(7, 3, kernel_size=(3, 3), stride=(1, 1))"
    assert growth.into_module(new, wide)[1].running_mean.shape == (7,)
    small = growth.into_module(new, growth.prune(wide, pair, [0, 1]))
    assert small[0].out_channels == 5
    fresh = nn.Sequential(
        nn.Conv2d(2, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 3, 3), nn.Flatten(), nn.Linear(48, 2)
    ).double()  # fmt: skip
    fresh.load_state_dict(new.state_dict())
    close(fresh.eval()(IMAGES), new(IMAGES), 0.0, "a state dict like any other")
    close(pickle.loads(pickle.dumps(new))(IMAGES), new(IMAGES), 0.0, "pickled")


WIDER = {  # what the layer is with all axes longer: to what its own constructor would make
    nn.Linear(4, 3): nn.Linear(5, 6),
    nn.Bilinear(4, 3, 2): nn.Bilinear(5, 4, 3),
    nn.Conv1d(4, 6, 3): nn.Conv1d(5, 7, 3),
    nn.Conv2d(4, 8, 3, groups=4): nn.Conv2d(6, 12, 3, groups=6),
    nn.Conv3d(4, 6, 1, groups=2): nn.Conv3d(8, 10, 1, groups=2),
    nn.ConvTranspose2d(4, 6, 3): nn.ConvTranspose2d(5, 9, 3),
    nn.ConvTranspose1d(4, 8, 3, groups=4): nn.ConvTranspose1d(5, 10, 3, groups=5),
    nn.BatchNorm1d(4): nn.BatchNorm1d(6),
    nn.InstanceNorm2d(4, affine=True): nn.InstanceNorm2d(6, affine=True),
    nn.LayerNorm((3, 4)): nn.LayerNorm((3, 6)),
    nn.RMSNorm(4): nn.RMSNorm(5),
    nn.GroupNorm(2, 4): nn.GroupNorm(2, 8),
    nn.GroupNorm(4, 4): nn.GroupNorm(5, 5),
    nn.Embedding(7, 4): nn.Embedding(9, 6),
    nn.EmbeddingBag(7, 4): nn.EmbeddingBag(9, 6),
    nn.LSTM(4, 5, num_layers=2, proj_size=3): nn.LSTM(6, 7, num_layers=2, proj_size=4),
    nn.GRU(4, 5, bidirectional=True): nn.GRU(5, 6, bidirectional=True),
    nn.RNN(4, 5): nn.RNN(4, 6),
    nn.LSTMCell(4, 5): nn.LSTMCell(3, 6),
    nn.GRUCell(4, 5): nn.GRUCell(3, 6),
    nn.MultiheadAttention(4, 2): nn.MultiheadAttention(6, 2),
    nn.MultiheadAttention(4, 2, kdim=3, vdim=5): nn.MultiheadAttention(6, 2, kdim=4, vdim=7),
    nn.PReLU(4): nn.PReLU(6),
}


@pytest.mark.parametrize("old", WIDER, ids=str)
def test_sizes_are_those_that_the_layer_would_be_made_with(old):
    want = WIDER[old]
    new = growth.into_module(old, fisher.functional(want, buffers=True)[1])
    plain = lambda m: {k: v for k, v in vars(m).items() if isinstance(v, (int, float, str, tuple)) and k != "training"}
    assert plain(new) == plain(want)
    assert str(new) == str(want)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_a_live_optimizer_goes_along(kind):
    """It trains on as one that had the larger network, with zeros for what is new; old entries of its state stay."""
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).double()
    m(X)
    options = {"lr": 0.05, "momentum": 0.9} if kind == "SGD" else {"lr": 0.05}
    groups = [{"params": [*m[0].parameters()]}, {"params": [*m[1:].parameters()], "lr": 0.01}]
    optimizer = getattr(torch.optim, kind)(groups, **options)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    target = X[:, :2].sin()

    def train(module, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (module(X) - target).square().mean()
            loss.backward()
            optimizer.step()
            scheduler.step()
        return loss.item()

    train(m, 3)
    key = "momentum_buffer" if kind == "SGD" else "exp_avg"
    before = optimizer.state[m[0].weight][key].clone()
    wider = growth.widen(fisher.functional(m, buffers=True)[1], growth.Pair("0", "3", norm="1"), 2, "zero_out", G)
    new = growth.into_module(m, wider, optimizer=optimizer)
    assert {id(t) for t in new.parameters()} == {id(t) for g in optimizer.param_groups for t in g["params"]}
    assert [g["lr"] for g in optimizer.param_groups] == [0.025, 0.005]
    close(optimizer.state[new[0].weight][key][:3], before, 0.0, "moments of the old units")
    close(optimizer.state[new[0].weight][key][3:], torch.zeros(2, 4).double(), 0.0, "of the new ones")
    assert not storages(new.parameters()) & storages([*m.parameters(), *wider.values()])
    first = (new(X) - target).square().mean().item()
    assert train(new, 20) < first
    small = growth.into_module(
        new, growth.prune(fisher.functional(new, buffers=True)[1], growth.Pair("0", "3", norm="1"), [0]),
        optimizer=optimizer, pair=growth.Pair("0", "3", norm="1"), units=[0],
    )  # fmt: skip
    assert optimizer.state[small[0].weight][key].shape == small[0].weight.shape == (4, 4)
    train(small, 1)


def test_an_optimizer_of_another_module_is_refused_and_left_as_it_is():
    module, _ = made("mlp")
    params = fisher.functional(module, buffers=True)[1]
    other = torch.optim.Adam(made("mlp")[0].parameters())
    held = [id(t) for t in other.param_groups[0]["params"]]
    with pytest.raises(ValueError, match="holds none of the tensors"):
        growth.into_module(module, params, optimizer=other)
    assert [id(t) for t in other.param_groups[0]["params"]] == held
    own = torch.optim.Adam(module.parameters())
    held = [id(t) for t in own.param_groups[0]["params"]]
    wide = growth.widen(params, growth.Pair("0", "3", norm="1"), 1)
    with pytest.raises(ValueError, match="running_mean: has 6 entries"):
        growth.into_module(module, without_statistics(wide), optimizer=own)
    assert [id(t) for t in own.param_groups[0]["params"]] == held


def test_ties_stay_and_can_be_undone():
    module, _ = made("tied")
    params = fisher.functional(module)[1]
    new = growth.into_module(module, params)
    assert new.head.weight is new.embedding.weight
    assert new.kept["twice"][0] is new.embedding.weight
    assert new.again is new.embedding
    apart = growth.into_module(module, params | {"head.weight": params["embedding.weight"] + 1})
    assert apart.head.weight is not apart.embedding.weight
    close(apart.head.weight.detach(), params["embedding.weight"] + 1, 0.0, "untied")


def test_nested_params_frozen_ones_and_other_dtypes():
    module, x = made("mlp")
    module[0].weight.requires_grad_(False)
    params = fisher.functional(module, buffers=True)[1]
    nested = {"0": {"weight": params["0.weight"], "bias": params["0.bias"]}}
    rest = {k: v for k, v in params.items() if not k.startswith("0.")}
    new = growth.into_module(module, {**nested, **rest})
    close(new(x).detach(), module(x).detach(), 0.0, "nested")
    assert not new[0].weight.requires_grad
    assert new[0].bias.requires_grad
    half = growth.into_module(module, trees.map(lambda t: t.float(), params))
    assert {t.dtype for t in half.parameters()} == {torch.float32}
    assert half[1].num_batches_tracked.dtype == torch.int64
    without = growth.into_module(module, {k: v for k, v in params.items() if "running" not in k})
    close(without[1].running_mean, module[1].running_mean, 0.0, "buffers that are not given are copied")


def without_statistics(params):
    return {k: v for k, v in params.items() if "running" not in k} | {"2.weight": torch.ones(7)}


REFUSED = {
    "no module": (lambda m, p: growth.into_module(lambda x: x, p), TypeError, "module"),
    "missing": (lambda m, p: growth.into_module(m, {"0.weight": p["0.weight"]}), ValueError, r"missing \['0.bias'"),
    "unknown": (lambda m, p: growth.into_module(m, p | {"9.weight": X}), ValueError, r"unknown \['9.weight'\]"),
    "an ensemble": (lambda m, p: growth.into_module(m, trees.stack([p, p])), ValueError, "one member"),
    "no dict": (lambda m, p: growth.into_module(m, list(p.values())), TypeError, "got list, expected a dict"),
    "a transform": (lambda m, p: vmap(lambda q: growth.into_module(m, q)(X))(trees.stack([p, p])), TypeError, "transform"),
    "numbers": (lambda m, p: growth.into_module(m, p | {"0.bias": 1.0}), TypeError, "0.bias: got float"),
    "statistics left behind": (
        lambda m, p: growth.into_module(m, without_statistics(growth.widen(p, growth.Pair("0", "3", norm="1"), 1))),
        ValueError,
        r"1.running_mean: has 6 entries, expected 7.*buffers=True",
    ),
    "lazy": (lambda m, p: growth.into_module(nn.LazyLinear(3), p), ValueError, "no values yet"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(name):
    module, _ = made("mlp")
    call, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        call(module, fisher.functional(module, buffers=True)[1])


@pytest.mark.parametrize("kind", KEPT)
def test_functions_that_a_module_keeps_are_those_of_the_new_one(kind):
    m, x = Keeping(kind), X[:, :3]
    f, params = fisher.functional(m)
    before = m(x).detach()
    wider = growth.widen(params, growth.Pair("inner", "outer"), 2, generator=torch.Generator().manual_seed(0))
    made = growth.into_module(m, {name: 2 * t for name, t in wider.items()})
    close(made(x), f({name: 2 * t for name, t in wider.items()}, x), 1e-12, "the new one")
    close(m(x), before, 1e-12, "the old one")
