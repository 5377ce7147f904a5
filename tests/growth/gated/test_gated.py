"""Gated pairs: slopes by finite differences, the function kept, growth undone, ensembles, refusals."""

import pickle

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

import fisher
import growth
from linmaps import trees
from tests.growth.oracle import close, slope
from tests.growth.rows_gated import BIASES, GATES, collect, effects, gated
from tests.growth.rows_surgery import normal

KINDS = [k for k in GATES if k != "geglu by hand"]
both = pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
every = pytest.mark.parametrize("kind", KINDS)


def sizes(tree):
    return [tuple(t.shape) for t in trees.leaves(tree)]


def mean_loss(net, params):
    return F.cross_entropy(net.f(params, net.x).flatten(0, -2), net.target.flatten(), reduction="sum") / len(net.x)


def along(net, new=None, delta=None, h=1e-3):
    scale = (lambda t: (t, 0.0)) if new is None else (lambda t: (0.0, t))
    return slope(lambda t: mean_loss(net, growth.grow(net.params, net.pair, new, delta=delta, scale=scale(t))), h)


@every
@both
@pytest.mark.parametrize("positions", [0, 3])
@pytest.mark.parametrize("target", ["residual", "gradient"])
def test_gains_are_slopes(kind, bias, positions, target):
    net = gated(kind, bias, positions=positions)
    stats = collect(net)
    new = growth.optimal_neurons(stats, 3, target)
    assert new.gain > 0 or target == "residual"
    close(torch.tensor(along(net, new)).double(), -new.gain, 1e-4 * max(1e-3, float(new.gain.abs())))
    for j in range(3):
        one = growth.keep(new, torch.arange(3) == j)
        assert abs(along(net, one) + float(one.gain)) < 1e-4 * max(1e-3, abs(float(one.gain)))


@every
@both
def test_the_decrease_of_a_delta_is_a_slope(kind, bias):
    net = gated(kind, bias)
    delta = growth.optimal_delta(collect(net))
    step = along(net, delta=delta, h=1e-4)
    assert abs(step + float(delta.decrease)) < 1e-5 * max(1.0, float(delta.decrease))


def test_the_delta_is_that_of_gated_hidden_values():
    net = gated("swiglu", (False, False, False))
    z = torch.tanh(F.linear(net.x, net.params["first"]["weight"], net.params["first"]["bias"]))
    h = F.silu(z @ net.params["gate"]["weight"].mT) * (z @ net.params["up"]["weight"].mT)
    close(collect(net).S, h.mT @ h / len(h), 1e-12)


@every
@both
def test_given_gate_rows_are_solved_in_closed_form(kind, bias):
    """The best unit of a gate row: no other (u, w) of the same size has a larger slope."""
    net = gated(kind, bias)
    row = normal(4, 1, 3 + bias[0])
    stats = collect(net, gates=row)
    new = growth.optimal_neurons(stats, 1, "gradient")
    torch.testing.assert_close(new.joined_gate, row)
    S, M = stats.gates.S[0], stats.gates.M[0]
    top = torch.linalg.svdvals(torch.linalg.pinv(torch.linalg.cholesky(S)) @ M)[0]
    close(new.eigenvalues[0], top, 1e-8)
    close(new.gain, top**2, 1e-8)


@both
def test_moments_of_gates_are_their_definition(bias):
    net = gated("swiglu", bias, positions=2)
    rows = normal(1, 3, 3 + bias[0])
    stats = collect(net, gates=rows)
    z = torch.tanh(F.linear(net.x, net.params["first"]["weight"], net.params["first"]["bias"])).flatten(0, 1)
    one = z.new_ones(len(z), 1)
    gate = F.silu((torch.cat([z, one], 1) if bias[0] else z) @ rows.mT)
    inputs = torch.cat([z, one], 1) if bias[1] else z
    for j in range(3):
        rows_j = gate[:, j : j + 1] * inputs
        close(stats.gates.S[j], rows_j.mT @ rows_j / len(net.x), 1e-12)


def test_more_samples_and_other_batches_are_the_same():
    net, rows = gated("geglu"), normal(2, 3, 4)
    whole = collect(net, gates=rows)
    parts = [(net.x[i : i + 5], net.target[i : i + 5]) for i in range(0, 14, 5)]
    split = growth.statistics(net.f, net.params, parts, net.pair, gates=rows)
    first, second = (
        growth.statistics(net.f, net.params, parts[a:b], net.pair, gates=rows) for a, b in ((0, 2), (2, 3))
    )
    for other in (split, first + second):
        trees.map(lambda a, b: close(a, b, 1e-12), whole, other)


@pytest.mark.parametrize("kind", GATES)
def test_the_activation_is_read_from_f_or_named(kind):
    net = gated(kind)
    read = growth.statistics(net.f, net.params, net.data, net.pair, gates=normal(1, 2, 4))
    named = growth.Gated("gate", "up", "down", activation=GATES[kind])
    told = growth.statistics(net.f, net.params, net.data, named, gates=normal(1, 2, 4))
    trees.map(lambda a, b: close(a, b, 1e-5 if "hand" in kind else 1e-10), read, told)
    other = growth.Gated("gate", "up", "down", activation=torch.tanh)
    with pytest.raises(ValueError, match="is not the named activation"):
        growth.statistics(net.f, net.params, net.data, other)


@pytest.mark.parametrize("method", ["split", "zero_out", "pair"])
@both
def test_widening_keeps_the_function(method, bias):
    net = gated("swiglu", bias)
    wide = growth.widen(net.params, net.pair, 6, method, torch.Generator().manual_seed(0), check=(net.f, net.x))
    assert wide["gate"]["weight"].shape == (10, 3)
    assert wide["down"]["weight"].shape == (3, 10)
    close(net.f(wide, net.x), net.f(net.params, net.x), 1e-10)
    assert (wide["gate"]["weight"][4:] != 0).any(1).all()


@both
def test_pruning_undoes_growth(bias):
    net = gated("geglu", bias)
    new = growth.optimal_neurons(collect(net), 2)
    grown = growth.grow(net.params, net.pair, new, scale=0.3)
    trees.map(lambda a, b: close(a, b, 0.0), growth.prune(grown, net.pair, [4, 5]), net.params)
    small, removed = growth.cut(grown, net.pair, [1, 4])
    back = growth.restore(small, net.pair, removed)
    trees.map(lambda a, b: close(a, b, 0.0), back, grown)
    trees.map(lambda a, b: close(a, b, 0.0), pickle.loads(pickle.dumps(new)), new)


@both
def test_applied_as_previewed_and_nothing_at_amplitude_zero(bias):
    net = gated("glu", bias)
    stats = collect(net)
    new, delta = growth.optimal_neurons(stats, 3), growth.optimal_delta(stats)
    grown = growth.grow(net.params, net.pair, new, delta=delta, scale=(0.2, 0.7))
    shown = growth.apply_extended(net.f, net.params, net.pair, new, delta, (0.2, 0.7), net.x)
    close(net.f(grown, net.x), shown, 0.0)
    rest = growth.grow(net.params, net.pair, new, scale=0.0)
    close(net.f(rest, net.x), net.f(net.params, net.x), 1e-14)
    torch.testing.assert_close(rest["gate"]["weight"][4:], new.gate)


def test_a_search_never_harms_and_a_step_helps():
    net = gated("swiglu")
    stats = collect(net)
    new, delta = growth.optimal_neurons(stats, 2), growth.optimal_delta(stats)
    search = growth.line_search(net.f, net.params, net.data, net.pair, new, delta)
    assert search.loss < search.start


def test_a_recipe_grows_gated_pairs():
    net = gated("swiglu", dtype=torch.float32)
    order = growth.shuffles(14, [1, 1, 1], 7, generator=torch.Generator().manual_seed(0))
    fit = growth.fit_and_grow(net.f, net.params, net.data, net.pair, order=order, target=8, k=2)
    assert [step.width for step in fit.steps] == [4, 6, 8]
    assert all(step.grown <= step.before for step in fit.steps[1:])


def test_ensembles_are_loops():
    nets = [gated("swiglu", seed=s) for s in (0, 1, 2)]
    f, data, pair = nets[0].f, nets[0].data, nets[0].pair
    rows = normal(1, 3, 4)

    def step(params):
        stats = growth.statistics(f, params, data, pair, gates=rows)
        new = growth.optimal_neurons(stats, 2)
        return growth.grow(params, pair, new, delta=growth.optimal_delta(stats), scale=0.1), effects(new)

    params = [net.params for net in nets]
    stacked = vmap(step)(trees.stack(params))
    for one, member in zip(params, trees.unstack(stacked)):
        trees.map(lambda a, b: close(a, b, 1e-8), member, step(one))


def test_no_argument_is_changed():
    net = gated("swiglu")
    before = trees.map(torch.clone, (net.params, net.x))
    new = growth.gated_neurons(net.f, net.params, net.data, net.pair, 2, generator=torch.Generator().manual_seed(0))
    growth.widen(growth.grow(net.params, net.pair, new), net.pair, 1)
    trees.map(lambda a, b: close(a, b, 0.0), (net.params, net.x), before)


def test_single_precision():
    net = gated("swiglu", dtype=torch.float32)
    new = growth.optimal_neurons(collect(net), 2)
    assert new.fan_in.dtype == new.gate.dtype == torch.float32
    wide = gated("swiglu")
    close(new.eigenvalues.double(), growth.optimal_neurons(collect(wide), 2).eigenvalues, 1e-3)


@both
def test_without_a_unit(bias):
    net = gated("swiglu", bias, p=0)
    new = growth.optimal_neurons(collect(net, gates=normal(1, 4, 3 + bias[0])), 2, "gradient")
    assert new.gain > 0
    assert abs(along(net, new) + float(new.gain)) < 1e-4 * float(new.gain)
    assert growth.optimal_neurons(collect(net), 2, "gradient").gain > 0


def test_states_go_along():
    net = gated("swiglu")
    rows = normal(1, 2, 4)
    stats = collect(net, gates=rows)
    new = growth.optimal_neurons(stats, 2)
    grown = growth.grow(net.params, net.pair, new)
    state = growth.grow_like({"m": net.params, "stats": stats}, net.params, grown)
    assert sizes(state["m"]) == sizes(grown)
    assert state["stats"].gates.P.shape == (2, 4, 7)
    assert state["stats"].S.shape == (7, 7)
    back = growth.prune_like(state, grown, net.pair, [4, 5])
    trees.map(lambda a, b: close(a, b, 0.0), back, {"m": net.params, "stats": stats})
    live = trees.map(lambda t: t.clone().requires_grad_(), net.params)
    optimizer = torch.optim.Adam(trees.leaves(live))
    net.f(live, net.x).sum().backward()
    optimizer.step()
    assert sizes(growth.swap_parameters(optimizer, live, grown)) == sizes(grown)


@pytest.mark.parametrize("preset", [growth.zero_out, growth.senn, growth.zero_in, growth.random])
def test_presets_keep_the_function(preset):
    net = gated("swiglu")
    new = preset(collect(net), 3, generator=torch.Generator().manual_seed(0))
    grown = growth.grow(net.params, net.pair, new)
    close(net.f(grown, net.x), net.f(net.params, net.x), 1e-12)
    assert new.gate.shape == (3, 3)
    assert (new.gate != 0).any(1).all()
    assert not new.gain.any()


def test_slopes_of_random_units():
    net = gated("geglu")
    new = growth.random(collect(net), 3, generator=torch.Generator().manual_seed(0), std_out=0.5)
    assert (new.gains > 0).all()
    assert abs(along(net, new) + float(new.gain)) < 1e-4 * float(new.gain)
    again = growth.choose_sign(net.f, net.params, net.data, net.pair, new)
    close(again.gains, new.gains, 1e-10)


def test_units_are_chosen_scaled_and_joined():
    net = gated("swiglu")
    new = growth.optimal_neurons(collect(net), 3)
    assert growth.truncate(new, 2).gate.shape == (2, 3)
    joined = growth.merge_neurons(new, growth.truncate(new, 1))
    torch.testing.assert_close(joined.gate, torch.cat([new.gate, new.gate[:1]]))
    twice = growth.scale_neurons(new, fan_in=2.0, fan_out=3.0)
    assert abs(along(net, twice) + float(twice.gain)) < 1e-4 * float(twice.gain)
    quiet = growth.paired(growth.merge_neurons(new, growth.truncate(new, 1)))
    grown = growth.grow(net.params, net.pair, quiet)
    close(net.f(grown, net.x), net.f(net.params, net.x), 1e-12)


def test_records_are_saved_and_loaded_with_safe_defaults(tmp_path):
    net = gated("swiglu")
    stats = collect(net, gates=normal(1, 2, 4))
    torch.save([stats, growth.optimal_neurons(stats, 1)], tmp_path / "records")
    loaded, new = torch.load(tmp_path / "records")
    trees.map(lambda a, b: close(a, b, 0.0), loaded, stats)
    assert loaded.pair == net.pair
    assert repr(new) == repr(growth.optimal_neurons(stats, 1))


def test_half_precision_networks():
    net = gated("swiglu", dtype=torch.bfloat16)
    new = growth.optimal_neurons(collect(net), 2)
    assert new.fan_in.dtype == torch.float32
    assert growth.grow(net.params, net.pair, new)["gate"]["weight"].dtype == torch.bfloat16


def test_sizes_are_set_and_layers_rescaled():
    net = gated("swiglu")
    new, _ = growth.normalize(growth.optimal_neurons(collect(net), 2), None, net.params, net.pair, kind="units")
    assert abs(along(net, new) + float(new.gain)) < 1e-4 * float(new.gain)
    same = growth.rescale(net.params, net.pair, 4, preserve=True, check=(net.f, net.x))
    close(net.f(same, net.x), net.f(net.params, net.x), 1e-12)


def test_pairs_of_both_kinds_in_one_pass():
    net = gated("swiglu")
    f = lambda p, x: net.f(p, x) + F.linear(torch.tanh(F.linear(x, p["a"])), p["b"])
    params = {**net.params, "a": normal(1, 2, 3), "b": normal(2, 4, 2)}
    pairs = [growth.Pair("a", "b"), net.pair]
    plain, products = growth.statistics(f, params, net.data, pairs, gates=[None, normal(3, 5, 4)])
    assert plain.gates is None
    assert products.gates.rows.shape == (5, 3)
    new = [growth.optimal_neurons(s, 1, "gradient") for s in (plain, products)]
    grown = growth.grow(params, pairs, new, scale=0.01)
    assert F.cross_entropy(f(grown, net.x), net.target) < F.cross_entropy(f(params, net.x), net.target)


def test_scores_say_what_is_lost():
    net = gated("swiglu")
    scores = growth.unit_scores(net.params, net.pair, stats=collect(net))
    weak = growth.weakest_units(scores, keep=3)
    assert growth.prune(net.params, net.pair, weak, stats=collect(net))["gate"]["weight"].shape == (3, 3)
    silent = trees.replace(net.params, ("gate", "weight"), torch.zeros(4, 3).double())
    silent = trees.replace(silent, ("gate", "bias"), torch.zeros(4).double())
    assert not growth.unit_scores(silent, net.pair).any()


# --- search over gate rows -----------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("target", ["residual", "gradient"])
def test_searching_gate_rows_gains(kind, target):
    """Steps of a gate row never lower what its unit explains, and the gains are slopes."""
    net = gated(kind)
    search = lambda k, steps: growth.gated_neurons(
        net.f,
        net.params,
        net.data,
        net.pair,
        k,
        target=target,
        steps=steps,
        candidates=8,
        generator=torch.Generator().manual_seed(0),
    )
    start, new = search(1, 0), search(2, 3)
    assert new.eigenvalues[0] > start.eigenvalues[0]
    for j in range(2):
        one = growth.keep(new, torch.arange(2) == j)
        assert abs(along(net, one) + float(one.gain)) < 1e-4 * max(1e-3, abs(float(one.gain)))


@pytest.mark.parametrize("kind", ["swiglu", "bilinear"])
def test_what_a_unit_explains_is_not_explained_again(kind):
    """A target that one more unit reaches: the first unit found is that one, and leaves nothing to a second."""
    net = gated(kind, (False, False, False), loss="squared_error")
    linear = lambda p, name, x: F.linear(x, p[name]["weight"], p[name].get("bias"))

    def f(p, x):
        return linear(p, "down", GATES[kind](linear(p, "gate", x)) * linear(p, "up", x))

    row = normal(1, 1, 3)
    more = {"gate": row, "up": normal(2, 1, 3), "down": normal(3, 3, 1)}
    wanted = {n: {"weight": torch.cat([net.params[n]["weight"], t], int(n == "down"))} for n, t in more.items()}
    data = net.x, f(wanted, net.x)
    options = {"loss": "squared_error", "target": "gradient"}
    given = growth.gated_neurons(f, net.params, data, net.pair, 2, gates=row, steps=0, **options)
    assert given.eigenvalues[1] < 1e-6 * given.eigenvalues[0]
    close(given.eigenvalues[0] ** 2, given.gains[0], 1e-8)
    near = row + 0.3 * normal(4, 1, 3)
    search = lambda n: growth.gated_neurons(f, net.params, data, net.pair, 1, gates=near, steps=n, **options)
    left = [search(n).eigenvalues[0] for n in (0, 2, 6)]
    assert left[0] < left[1] < left[2] <= given.eigenvalues[0] * (1 + 1e-9)


# --- a module ------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A block as in LLaMA: RMS norm, attention, RMS norm, gated feed-forward, residual sums."""

    def __init__(self, width=6, hidden=5):
        super().__init__()
        self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj, self.act_fn = nn.Linear(hidden, width, bias=False), nn.SiLU()

    def forward(self, x):
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, -1)
        x = x + self.out((q @ k.mT / 6**0.5).softmax(-1) @ v)
        y = self.norms[1](x)
        return x + self.down_proj(self.act_fn(self.gate_proj(y)) * self.up_proj(y))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(6, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_a_transformer_grows():
    torch.manual_seed(0)
    model = Transformer().double()
    f, params = fisher.functional(model)
    x, t = normal(1, 8, 4, 6), torch.arange(32).reshape(8, 4) % 3
    pairs = [growth.Gated(*(f"layers.{i}.{n}_proj" for n in ("gate", "up", "down"))) for i in range(2)]
    stats = growth.statistics(f, params, (x, t), pairs)
    loss = lambda p: F.cross_entropy(f(p, x).mT, t, reduction="sum") / len(x)
    for pair, one in zip(pairs, stats):
        new = growth.optimal_neurons(one, 2)
        step = slope(lambda s, pair=pair, new=new: loss(growth.grow(params, pair, new, scale=s)))
        assert abs(step + float(new.gain)) < 1e-4 * float(new.gain)
    new = [growth.optimal_neurons(one, 2) for one in stats]
    larger = growth.into_module(model, growth.grow(params, pairs, new, scale=0.1))
    assert larger.layers[1].gate_proj.out_features == 7
    assert larger.layers[0].down_proj.in_features == 7
    assert F.cross_entropy(larger(x).mT, t) < F.cross_entropy(model(x).mT, t)
    wide = growth.widen(params, pairs[0], 3, check=(f, x))
    close(f(wide, x), f(params, x), 1e-10)


# --- refusals ------------------------------------------------------------------------------------------------------


def refused(change, match):
    net = gated("swiglu")
    linear = lambda p, name, x: F.linear(x, p[name]["weight"], p[name].get("bias"))
    inputs = lambda p, x: torch.tanh(linear(p, "first", x))
    outputs = lambda p, h: linear(p, "head", torch.tanh(linear(p, "down", h)))
    with pytest.raises(ValueError, match=match):
        growth.statistics(lambda p, x: change(p, inputs(p, x), linear, outputs), net.params, net.data, net.pair)


def test_something_else_between_is_refused():
    def normed(p, z, linear, outputs):
        return outputs(
            p, F.layer_norm(F.silu(linear(p, "gate", z)) * linear(p, "up", z), (p["up"]["weight"].shape[0],))
        )

    refused(normed, "not .*product")


def test_hidden_units_used_elsewhere_are_refused():
    def leaked(p, z, linear, outputs):
        h = F.silu(linear(p, "gate", z)) * linear(p, "up", z)
        return outputs(p, h) + h.sum(-1, keepdim=True)

    refused(leaked, "not the only")


def test_layers_of_other_inputs_are_refused():
    def crossed(p, z, linear, outputs):
        return outputs(p, F.silu(linear(p, "gate", z.flip(-1))) * linear(p, "up", z))

    refused(crossed, "inputs of")


def test_a_plain_network_is_no_gated_pair():
    refused(lambda p, z, linear, outputs: outputs(p, F.silu(linear(p, "gate", z)) + linear(p, "up", z)), "product")


def test_what_has_no_meaning_is_refused_by_name():
    net = gated("swiglu")
    stats = collect(net)
    new = growth.optimal_neurons(stats, 1)
    with pytest.raises(ValueError, match=r"gradmax: .*zero_out"):
        growth.gradmax(stats, 1)
    with pytest.raises(ValueError, match="gradient_norms: "):
        growth.gradient_norms(stats, new)
    with pytest.raises(ValueError, match="noise_floor: "):
        growth.noise_floor(stats)
    with pytest.raises(ValueError, match=r"initialize: .*widen"):
        growth.initialize(net.params, net.pair, 1, generator=torch.Generator())
    with pytest.raises(ValueError, match="joint=True"):
        growth.optimal_neurons(stats, 1, joint=True)
    with pytest.raises(ValueError, match="no gate rows"):
        growth.grow(net.params, net.pair, growth.Neurons(**{**vars(new), "gate": None, "gate_bias": None}))
    with pytest.raises(ValueError, match="gate rows"):
        growth.grow(net.params, growth.Pair("up", "down"), growth.Neurons(**{**vars(new), "pair": None}))
    bare = gated("swiglu", (False, True, True))
    with pytest.raises(ValueError, match="new has a gate_bias"):
        growth.grow(bare.params, bare.pair, new)
    with pytest.raises(ValueError, match="other gate rows"):
        collect(net, gates=normal(1, 2, 4)) + collect(net, gates=normal(2, 2, 4))
    with pytest.raises(ValueError, match="steps: got -1"):
        growth.gated_neurons(net.f, net.params, net.data, net.pair, 1, steps=-1)
    with pytest.raises(ValueError, match=r"belong to a growth\.Gated"):
        growth.statistics(net.f, net.params, net.data, growth.Pair("up", "down"), gates=normal(1, 2, 4))
    with pytest.raises(ValueError, match="gates: got"):
        collect(net, gates=normal(1, 2, 7))
    with pytest.raises(ValueError, match="expected three layers"):
        growth.Gated("a", "a", "b")
    with pytest.raises(TypeError, match="Gated: gate"):
        growth.Gated(1, "a", "b")
    with pytest.raises(ValueError, match=r"gate\.weight"):
        growth.prune({**net.params, "gate": {"weight": torch.ones(5, 3)}}, net.pair, [0])


def test_a_gated_pair_is_a_key():
    pair = growth.Gated("a", ("b",), "c")
    assert {pair: 1}[growth.Gated("a", ("b",), "c")] == 1
    assert pair != growth.Pair("b", "c")
    assert str(pair) == "Gated('a', 'b', 'c')"
    assert pickle.loads(pickle.dumps(pair)) == pair
