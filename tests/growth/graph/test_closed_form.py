"""Growth of graphs: closed forms are the least squares they claim, gains are slopes, surgery is what it previews."""

import dataclasses

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch.func import vmap
from torch.nn import functional as F

import growth
from growth import Graph, Node
from linmaps import trees
from tests.growth.graph.test_graph import LOSSES, MERGE, SMOOTH, brute, columns, graphs, made, mean_loss, recursion
from tests.growth.oracle import clear, close, slope

LOSS = st.sampled_from(sorted(LOSSES))


def observed(graph, seed=0, loss="cross_entropy", **options):
    params, data = made(graph, seed, loss=loss, **options)
    return params, data, growth.graph_statistics(graph, params, data, loss)


def measured(graph, params, data, items, loss="cross_entropy", h=1e-3, root=False, scale=lambda t: t):
    """- d mean loss / dt at 0+."""

    def at(t):
        grown, p = growth.grow_graph(graph, params, items, scale=scale(t))
        return mean_loss(grown, p, data, loss)

    return -slope(at, h, root=root)


def agree(gain, found, tol):
    assert abs(gain - found) <= tol * max(1.0, abs(found)), f"{gain} against {found}"


def free_edges(graph):
    return [
        (u.name, v.name)
        for u in graph.nodes
        for v in graph.nodes[1:]
        if not graph.reaches(v.name, u.name) and (u.name, v.name) not in graph.edges
    ]


# --- changes of what is there --------------------------------------------------------------------------------------


@given(graphs, st.integers(0, 99), LOSS)
def test_node_delta_is_joint_least_squares_of_minimum_norm(graph, seed, loss):
    params, data, stats = observed(graph, seed, loss)
    h, g = brute(graph, params, data, loss)
    for node in graph.nodes[1:]:
        delta = growth.node_delta(stats, node.name)
        inside = [u for u in graph.order() if u in graph.parents(node.name)]
        b1 = h[:, columns(graph, inside) + ([h.shape[1] - 1] if node.bias else [])]
        target = g[:, columns(graph, [node.name], skip=graph.nodes[0].width)]
        assume(clear(b1))
        want = torch.linalg.pinv(b1) @ target
        blocks = [delta.change["edges"][f"{u}->{node.name}"]["weight"] for u in inside]
        blocks += [delta.change["nodes"][node.name]["bias"][:, None]] if node.bias else []
        got = torch.cat([torch.zeros(node.width, 0, dtype=h.dtype), *blocks], 1)
        close(b1 @ got.mT, b1 @ want, 1e-8)
        assert got.norm() <= want.norm() * (1 + 1e-6) + 1e-9
        agree(delta.decrease.item(), ((b1 @ want) ** 2).sum().item() / 9, 1e-9)


@given(graphs, st.integers(0, 99), LOSS)
def test_node_delta_slope_is_measured(graph, seed, loss):
    params, data, stats = observed(graph, seed, loss)
    for node in graph.nodes[1:]:
        delta = growth.node_delta(stats, node.name)
        agree(delta.decrease.item(), measured(graph, params, data, delta, loss), 1e-6)


def test_squared_error_refits_the_output_and_keeps_identities():
    graph = dataclasses.replace(MERGE, identities=("x->c", "x->y"))
    params, data, stats = observed(graph, loss="squared_error")
    grown, p = growth.grow_graph(graph, params, growth.node_delta(stats, "y"))
    assert grown == graph
    h = recursion(graph, params, data[0])
    design = torch.cat([h["c"], h["a"], torch.ones(9, 1, dtype=torch.float64)], 1)
    rest = data[1] - data[0]
    refit = design @ torch.linalg.lstsq(design, rest).solution
    close(graph.apply(p, data[0]), data[0] + refit, 1e-9)


# --- new edges -----------------------------------------------------------------------------------------------------


@given(graphs, st.integers(0, 99), LOSS, st.sampled_from(["residual", "gradient"]))
def test_new_edges_lower_the_loss_by_their_gain(graph, seed, loss, target):
    params, data, stats = observed(graph, seed, loss)
    for u, v in free_edges(graph):
        edge = growth.new_edge(stats, u, v, target=target)
        assert edge.gain >= -1e-12
        agree(edge.gain.item(), measured(graph, params, data, edge, loss), 1e-6)
        if edge.gain > 1e-3:
            grown, p = growth.grow_graph(graph, params, edge, scale=1e-4)
            assert mean_loss(grown, p, data, loss) < mean_loss(graph, params, data, loss)


@given(graphs, st.integers(0, 99), LOSS)
def test_new_edge_is_what_joint_least_squares_have_beyond_the_old_edges(graph, seed, loss):
    """Never more; and all of it, where rounding cannot hide how far the new rows are from the old ones."""
    params, data, stats = observed(graph, seed, loss, samples=30)
    h, _ = brute(graph, params, data, loss)
    for u, v in free_edges(graph)[:3]:
        edge, old = growth.new_edge(stats, u, v), growth.node_delta(stats, v)
        grown, p = growth.grow_graph(graph, params, edge, scale=0.0)
        joint = growth.node_delta(growth.graph_statistics(grown, p, data, loss), v)
        rows = h[:, columns(graph, [u, *graph.parents(v)]) + ([h.shape[1] - 1] if graph.has_bias(v) else [])]
        s = torch.linalg.svdvals(rows)
        assume(clear(rows, 1e-5))
        assert edge.gain <= joint.decrease - old.decrease + 1e-9
        if len(s) and s.min() > 1e-3 * s.max():
            agree(joint.decrease.item(), (old.decrease + edge.gain).item(), 1e-8)


def test_new_edge_and_node_delta_are_the_joint_solution():
    params, data, stats = observed(MERGE, samples=30)
    edge, old = growth.new_edge(stats, "b", "y"), growth.node_delta(stats, "y")
    grown, p = growth.grow_graph(MERGE, params, edge, scale=0.0)
    joint = growth.node_delta(growth.graph_statistics(grown, p, data), "y")
    close(-edge.weight, joint.change["edges"]["b->y"]["weight"], 1e-8)
    both = trees.add(old.change, edge.delta.change)
    close(both["edges"]["a->y"]["weight"], joint.change["edges"]["a->y"]["weight"], 1e-8)
    close(both["nodes"]["y"]["bias"], joint.change["nodes"]["y"]["bias"], 1e-8)


def test_new_edge_of_the_gradient_is_the_regression_of_minus_the_gradient():
    params, data, stats = observed(MERGE, samples=20)
    h, g = brute(MERGE, params, data, "cross_entropy")
    edge = growth.new_edge(stats, "b", "y", target="gradient")
    close(edge.weight.mT, -torch.linalg.lstsq(h[:, columns(MERGE, ["b"])], g[:, -3:]).solution, 1e-9)
    assert edge.delta is None


def test_an_edge_that_brings_nothing_new_is_zero():
    """h repeats x by an identity edge, so what x gives y already, h cannot give."""
    graph = Graph((Node("x", 3), Node("h", 3, None, False), Node("y", 2)), ("x->y",), ("x->h",))
    _, _, stats = observed(graph)
    edge = growth.new_edge(stats, "h", "y")
    assert edge.gain.abs() < 1e-12
    assert edge.weight.abs().max() < 1e-9
    assert growth.new_edge(stats, "h", "y", target="gradient").gain > 1e-3


def test_two_edges_that_close_a_cycle_together():
    graph = Graph((Node("x", 2), Node("a", 2), Node("b", 2), Node("y", 2)), ("x->a", "x->b", "a->y", "b->y"))
    params, _, stats = observed(graph)
    both = [growth.new_edge(stats, "a", "b"), growth.new_edge(stats, "b", "a")]
    with pytest.raises(ValueError, match=r"cycle (a->b->a|b->a->b)"):
        growth.grow_graph(graph, params, both)
    table = growth.candidates(stats, 1, torch.tanh)
    assert {"a -> b", "b -> a"} <= {str(i) for i in table.items}
    taken = table.take(len(table.items))
    assert len({"a -> b", "b -> a"} & {str(i) for i in taken}) == 1
    grown, p = growth.grow_graph(graph, params, taken)
    assert len(grown.order()) == len(graph.nodes) + sum(i.node == "new" for i in taken if hasattr(i, "node"))
    grown.check(p)


# --- new units -----------------------------------------------------------------------------------------------------

PLACES = [(["x"], ["y"]), (["x", "a"], ["c"]), (["x"], ["a", "y"]), (["a", "b", "x"], ["c", "y"])]


@pytest.mark.parametrize("target", ["residual", "gradient"])
@pytest.mark.parametrize("activation", [F.gelu, F.softplus])
@pytest.mark.parametrize(("sources", "targets"), PLACES)
def test_new_nodes_have_the_slope_they_report(sources, targets, activation, target):
    params, data, stats = observed(MERGE, samples=20)
    new = growth.new_node(stats, sources, targets, 2, activation, target=target)
    assert abs(new.gain) > 1e-6
    agree(new.gain.item(), measured(MERGE, params, data, new, h=0.01, root=True), 1e-6)


@given(graphs, st.integers(0, 99), LOSS, st.sampled_from(SMOOTH), st.booleans())
def test_new_nodes_anywhere(graph, seed, loss, activation, bias):
    params, data, stats = observed(graph, seed, loss)
    for u, v in [(u.name, v.name) for u in graph.nodes for v in graph.nodes[1:] if not graph.reaches(v.name, u.name)]:
        shifted = activation in (torch.sigmoid, F.softplus) and not graph.has_bias(v)
        if shifted:
            with pytest.raises(ValueError, match="have no bias"):
                growth.new_node(stats, u, v, 2, activation, bias=bias)
            continue
        new = growth.new_node(stats, u, v, 2, activation, bias=bias, target="gradient")
        assert new.gain >= -1e-12
        agree(new.gain.item(), measured(graph, params, data, new, loss, h=0.01, root=True), 1e-5)


def test_a_new_node_is_the_best_approximation_of_the_residual():
    params, data, stats = observed(MERGE, samples=20, loss="squared_error")
    new = growth.new_node(stats, ["x", "b"], "y", 2, None)
    h, g = brute(MERGE, params, data, "squared_error")
    ones = torch.ones(20, 1, dtype=h.dtype)
    b1 = torch.cat([h[:, columns(MERGE, ["a", "c"])], ones], 1)
    b2 = torch.cat([h[:, columns(MERGE, ["x", "b"])], ones], 1)
    R = -(g[:, -3:] - b1 @ torch.linalg.pinv(b1) @ g[:, -3:])
    fit = b2 @ torch.linalg.pinv(b2) @ R
    u, s, v = torch.linalg.svd(fit, full_matrices=False)
    close(b2 @ new.neurons.joined.mT @ new.neurons.fan_out.mT, u[:, :2] * s[:2] @ v[:2], 1e-9)
    close(new.neurons.eigenvalues, s[:2] / 20**0.5, 1e-9)


def test_several_targets_each_keep_their_own_residual():
    """Nothing is left for a linear node where old edges reach all that it could bring, target by target."""
    nodes = Node("x", 3), Node("a", 2), Node("y", 2)
    graph = Graph(nodes, ("x->a", "x->y", "a->y"))
    _, _, stats = observed(graph)
    assert growth.new_node(stats, "x", ["a", "y"], 2, None).neurons.eigenvalues.max() < 1e-7
    assert growth.new_node(stats, "x", ["a", "y"], 2, None, target="gradient").gain > 1e-3


@pytest.mark.parametrize("target", ["residual", "gradient"])
@pytest.mark.parametrize("activation", [None, torch.tanh, torch.sigmoid])
def test_wider_nodes_with_several_predecessors_and_successors(activation, target):
    graph = Graph(
        (Node("x", 3), Node("a", 2, torch.tanh), Node("h", 2, activation), Node("b", 2, torch.tanh), Node("y", 3)),
        ("x->h", "a->h", "x->a", "h->b", "h->y", "b->y"),
    )
    params, data, stats = observed(graph, samples=20)
    new = growth.wider_node(stats, "h", 2, target=target)
    assert new.neurons.fan_in.shape == (2, 5)
    assert new.neurons.fan_out.shape == (5, 2)
    agree(new.gain.item(), measured(graph, params, data, new, h=0.01, root=True), 1e-6)
    grown, p = growth.grow_graph(graph, params, new)
    assert grown.width("h") == 4
    assert grown.edges == graph.edges
    assert torch.equal(p["edges"]["x->h"]["weight"][:2], params["edges"]["x->h"]["weight"])


def test_a_wider_chain_is_the_growth_of_its_pair():
    graph = Graph((Node("x", 3), Node("h", 4, torch.tanh, False), Node("y", 3, None, False)), ("x->h", "h->y"))
    params, data, stats = observed(graph)
    pair = growth.Pair(("edges", "x->h"), ("edges", "h->y"))
    want = growth.optimal_neurons(growth.statistics(graph.apply, params, data, pair), 2)
    new = growth.wider_node(stats, "h", 2)
    close(new.neurons.fan_out @ new.neurons.fan_in, want.fan_out @ want.fan_in, 1e-9)
    close(new.gain, want.gain, 1e-9)
    grown, p = growth.grow_graph(graph, params, new, scale=0.3)
    close(grown.apply(p, data[0]), grown.apply(growth.grow(params, pair, want, scale=0.3), data[0]), 1e-9)


@pytest.mark.parametrize("activation", [torch.relu, F.selu, torch.nn.LeakyReLU(0.2)])
def test_the_better_sign_at_a_kink_and_its_exact_gain(activation):
    graph = Graph((Node("x", 3), Node("h", 2, activation), Node("y", 3)), ("x->h", "h->y"))
    params, data, stats = observed(graph, samples=20)
    table = growth.candidates(stats, 2, activation)
    signed = growth.choose_graph_sign(graph, params, data, table)
    assert [str(i) for i in signed.items] == [str(i) for i in table.items]
    units = [(a, b) for a, b in zip(table.items, signed.items) if isinstance(a, growth.NewUnits)]
    assert len(units) == 4
    for before, after in units:
        assert (after.neurons.gains >= before.neurons.gains - 1e-12).all()
        agree(after.gain.item(), measured(graph, params, data, after, h=0.01, root=True), 1e-5)
        close(after.neurons.fan_out @ after.neurons.fan_in, before.neurons.fan_out @ before.neurons.fan_in, 1e-12)
    alone = growth.choose_graph_sign(graph, params, data, units[0][0])
    halves = [(data[0][:7], data[1][:7]), (data[0][7:], data[1][7:])]
    (listed,) = growth.choose_graph_sign(graph, params, halves, [units[0][0]])
    close(alone.gain, units[0][1].gain, 1e-12)
    close(listed.gain, alone.gain, 1e-12)


def test_both_signs_of_a_relu_share_what_is_linear():
    graph = Graph((Node("x", 3), Node("y", 3)))
    params, data, stats = observed(graph, samples=20)
    new = growth.new_node(stats, "x", "y", 3, torch.relu, target="gradient")
    close(new.neurons.gains, new.neurons.eigenvalues**2 / 2, 1e-9)
    flipped = dataclasses.replace(
        new.neurons,
        fan_in=-new.neurons.fan_in,
        fan_in_bias=-new.neurons.fan_in_bias,
        fan_out=-new.neurons.fan_out,
    )
    sides = [
        measured(graph, params, data, dataclasses.replace(new, neurons=n), h=0.01, root=True)
        for n in (new.neurons, flipped)
    ]
    agree(sum(sides), (new.neurons.eigenvalues**2).sum().item(), 1e-5)
    best = growth.choose_graph_sign(graph, params, data, new)
    assert best.gain >= max(sides) - 1e-6


# --- surgery -------------------------------------------------------------------------------------------------------


@given(graphs, st.integers(0, 99))
def test_nothing_changes_at_zero_amplitude(graph, seed):
    params, data, stats = observed(graph, seed)
    items = growth.candidates(stats, 2, torch.tanh).items
    items += tuple(growth.node_delta(stats, n.name) for n in graph.nodes[1:])
    before = [t.clone() for t in trees.leaves(params)]
    for item in items:
        grown, p = growth.grow_graph(graph, params, item, scale=0.0)
        close(grown.apply(p, data[0]), graph.apply(params, data[0]), 1e-12)
    assert all(torch.equal(a, b) for a, b in zip(before, trees.leaves(params)))


def test_what_is_applied_is_what_was_computed():
    """By hand: new unit, new edge and delta on one graph, at two amplitudes."""
    params, data, stats = observed(MERGE)
    new = growth.new_node(stats, ["x", "b"], ["c", "y"], 2, torch.sigmoid, name="n")
    edge, delta = growth.new_edge(stats, "b", "y", target="gradient"), growth.node_delta(stats, "y")
    grown, p = growth.grow_graph(MERGE, params, [new, edge, delta], scale=(0.3, 0.5))
    assert grown.nodes[-2] == Node("n", 2, torch.sigmoid)
    e, n, root = params["edges"], new.neurons, 0.5**0.5
    x = data[0]
    h = recursion(MERGE, params, x)
    unit = torch.sigmoid(root * (torch.cat([x, h["b"]], 1) @ n.fan_in.mT + n.fan_in_bias))
    move = root * (unit - 0.5) @ n.fan_out.mT
    c = h["a"] @ e["a->c"]["weight"].mT + h["b"] @ e["b->c"]["weight"].mT + params["nodes"]["c"]["bias"]
    c = torch.tanh(c + x + move[:, :3])
    w = {k: e[k]["weight"] - 0.3 * delta.change["edges"][k]["weight"] for k in ("c->y", "a->y")}
    bias = params["nodes"]["y"]["bias"] - 0.3 * delta.change["nodes"]["y"]["bias"]
    y = c @ w["c->y"].mT + h["a"] @ w["a->y"].mT + bias + move[:, 3:] + 0.5 * h["b"] @ edge.weight.mT
    close(grown.apply(p, x), y, 1e-12)


def test_several_expansions_in_any_order_are_one_network():
    """Neighbours grow in one call: what was computed before is padded with zeros."""
    graph = Graph(
        (Node("x", 3), Node("a", 2, torch.tanh), Node("b", 2, torch.tanh), Node("y", 3)), ("x->a", "a->b", "b->y")
    )
    params, data, stats = observed(graph)
    items = [
        growth.wider_node(stats, "a", 2),
        growth.wider_node(stats, "b", 1),
        growth.new_edge(stats, "a", "y"),
        growth.new_edge(stats, "x", "b"),
        growth.node_delta(stats, "b"),
        growth.new_node(stats, "a", "y", 1, torch.tanh),
    ]
    one, p = growth.grow_graph(graph, params, items, scale=0.3)
    two, q = growth.grow_graph(graph, params, items[::-1], scale=0.3)
    close(one.apply(p, data[0]), two.apply(q, data[0]), 1e-12)
    total = sum(i.gain.item() for i in items if not isinstance(i, growth.NodeDelta)) + items[4].decrease.item()
    agree(total, measured(graph, params, data, items, h=0.01, root=True), 1e-5)


def test_two_new_nodes_get_two_names():
    params, _, stats = observed(MERGE)
    items = [growth.new_node(stats, "x", "y", 1, torch.tanh), growth.new_node(stats, "b", "y", 2, torch.tanh)]
    grown, p = growth.grow_graph(MERGE, params, items)
    assert [n.name for n in grown.nodes] == ["x", "a", "b", "c", "new", "new2", "y"]
    assert p["edges"]["b->new2"]["weight"].shape == (2, 3)


# --- residual blocks from width zero ---------------------------------------------------------------------------------


def block(n, activation, bias):
    nodes = Node("x", n), Node("h", 0, activation, bias), Node("y", n, None, bias)
    return Graph(nodes, ("x->h", "h->y"), identities=("x->y",))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, torch.tanh, F.gelu])
def test_a_residual_block_grows_from_width_zero(activation, bias):
    graph = block(4, activation, bias)
    params, data, stats = observed(graph, loss="squared_error", samples=20)
    s = stats.between(["x"], ["y"], activation, bias=bias)
    assert s.S.shape == (int(bias), int(bias))
    new = growth.wider_node(stats, "h", 3)
    agree(new.gain.item(), measured(graph, params, data, new, "squared_error", h=0.01, root=True), 1e-6)
    assert new.gain > 0.01
    items = [new, growth.node_delta(stats, "y")]
    grown, p = growth.grow_graph(graph, params, items, scale=0.1)
    assert grown.width("h") == 3
    assert mean_loss(grown, p, data, "squared_error") < mean_loss(graph, params, data, "squared_error") - 0.01
    again = growth.wider_node(growth.graph_statistics(grown, p, data, "squared_error"), "h", 2)
    wide, q = growth.grow_graph(grown, p, again, scale=0.1)
    assert wide.width("h") == 5
    assert mean_loss(wide, q, data, "squared_error") < mean_loss(grown, p, data, "squared_error")


def test_without_inputs_the_residual_is_the_gradient():
    _, _, stats = observed(block(3, torch.tanh, False))
    a, b = (growth.wider_node(stats, "h", 3, target=t).neurons for t in ("residual", "gradient"))
    assert growth.node_delta(stats, "y").change["edges"]["h->y"]["weight"].shape == (3, 0)
    assert torch.equal(a.fan_in, b.fan_in)


def test_a_residual_block_learns_minus_the_identity():
    graph = block(4, None, True)
    params = trees.zeros_like(graph.init(torch.Generator(), dtype=torch.float64))
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = x, torch.zeros_like(x)
    stats = growth.graph_statistics(graph, params, data, "squared_error")
    both = [growth.wider_node(stats, "h", 4), growth.node_delta(stats, "y")]
    for items in (both, growth.wider_node(stats, "h", 4, target="gradient")):
        grown, p = growth.grow_graph(graph, params, items)
        close(grown.apply(p, x), torch.zeros_like(x), 1e-10)
    weight = p["edges"]["h->y"]["weight"] @ p["edges"]["x->h"]["weight"]
    close(weight, -torch.eye(4, dtype=x.dtype), 1e-10)


# --- tables --------------------------------------------------------------------------------------------------------


def test_the_table_lists_what_can_be_added():
    graph = Graph((Node("x", 3), Node("h", 2, torch.tanh), Node("y", 3)), ("x->h", "h->y"))
    _, _, stats = observed(graph)
    table = growth.candidates(stats, 2, torch.tanh)
    lines = repr(table).splitlines()
    assert lines[0].split() == ["kind", "where", "gain", "parameters", "gain", "/", "parameter"]
    rows = [line.split("  ") for line in lines[1:]]
    found = {(r[0].strip(), next(c for c in r[1:] if c).strip()) for r in rows}
    nodes = {("node", "x -> new -> y"), ("node", "x -> new -> h"), ("node", "h -> new -> y")}
    assert found == {("edge", "x -> y"), ("wider", "x -> h -> y")} | nodes
    numbers = [[float(n) for n in r.split()[-3:]] for r in lines[1:]]
    assert [n[0] for n in numbers] == sorted((n[0] for n in numbers), reverse=True)
    assert all(abs(n[2] * n[1] - n[0]) <= 0.01 * abs(n[0]) for n in numbers)
    parameters = {str(i): i.parameters for i in table.items}
    assert parameters["x -> y"] == 9
    assert parameters["x -> new -> y"] == parameters["x -> h -> y"] == 14
    assert table.best.gain == table.gains.max()
    ratios = [i.gain / i.parameters for i in table.items]
    assert table.take(1, by="ratio")[0].gain / table.take(1, by="ratio")[0].parameters == max(ratios)
    assert [i.gain for i in table.take(3)] == sorted((i.gain for i in table.items), reverse=True)[:3]


@given(graphs)
def test_candidates_add_the_parameters_they_say(graph):
    params, _, stats = observed(graph)
    count = lambda p: sum(t.numel() for t in trees.leaves(p))
    for item in growth.candidates(stats, 2, torch.tanh).items:
        assert count(growth.grow_graph(graph, params, item)[1]) - count(params) == item.parameters > 0


def test_an_ensemble_grows_in_one_structure():
    members = [made(MERGE, seed)[0] for seed in range(3)]
    _, data = made(MERGE)

    def table(p):
        return growth.candidates(growth.graph_statistics(MERGE, p, data), 2, torch.tanh)

    together, loop = vmap(table)(trees.stack(members)), [table(p) for p in members]
    assert together.gains.shape == (3, len(loop[0].items))
    close(together.gains, torch.stack([t.gains for t in loop]), 1e-10)
    assert len(repr(together).splitlines()) == 1 + len(loop[0].items)
    best = together.best
    assert best.gain.mean() == together.gains.mean(0).max()
    structure = []

    def step(p, item):
        grown, q = growth.grow_graph(MERGE, p, item, scale=0.2)
        structure.append(grown)
        return q

    grown = vmap(step)(trees.stack(members), best)
    for i, p in enumerate(members):
        mine = trees.map(lambda t: t[i], best)  # noqa: B023
        graph, q = growth.grow_graph(MERGE, p, mine, scale=0.2)
        assert graph == structure[0]
        close(structure[0].apply(trees.map(lambda t: t[i], grown), data[0]), graph.apply(q, data[0]), 1e-10)  # noqa: B023


# --- state ---------------------------------------------------------------------------------------------------------


def expanded(seed=0):
    params, data, stats = observed(MERGE, seed)
    items = [
        growth.wider_node(stats, "a", 2),
        growth.new_edge(stats, "b", "y"),
        growth.new_node(stats, "x", "c", 1, torch.tanh),
    ]
    return params, data, items, *growth.grow_graph(MERGE, params, items, scale=0.3)


def test_moments_are_carried_and_new_leaves_start_at_zero():
    params, *_, p = expanded()
    state = {"step": torch.tensor(3), "m": trees.scale(2.0, params), "lists": [trees.leaves(params), "x"]}
    carried = growth.carry_graph(state, params, p)
    trees.check_like(carried["m"], p, "m")
    assert carried["step"] == 3
    assert torch.equal(carried["m"]["edges"]["x->a"]["weight"][:2], 2 * params["edges"]["x->a"]["weight"])
    assert not carried["m"]["edges"]["x->a"]["weight"][2:].any()
    for path in (("edges", "b->y", "weight"), ("edges", "x->new", "weight"), ("nodes", "new", "bias")):
        assert not trees.get(carried["m"], path).any()
    assert [t.shape for t in carried["lists"][0]] == [t.shape for t in trees.leaves(p)]
    for path, t in zip(trees.paths(p), carried["lists"][0]):
        if path in trees.paths(params):
            old = trees.get(params, path)
            assert torch.equal(t[tuple(slice(n) for n in old.shape)], old)
    again = growth.carry_graph(params, params, params)
    assert all(torch.equal(a, b) for a, b in zip(trees.leaves(again), trees.leaves(params)))


def test_adam_goes_on_as_if_nothing_had_been_added():
    """Expansions of amplitude 0 have no say in the next step of the old entries."""
    params, data, items, *_ = expanded()
    old = trees.map(lambda t: t.clone().requires_grad_(), params)
    adam = torch.optim.Adam(trees.leaves(old), 0.01)

    def step(graph, params, optimizer):
        optimizer.zero_grad()
        mean_loss(graph, params, data).backward()
        optimizer.step()

    for _ in range(3):
        step(MERGE, old, adam)
    grown, p = growth.grow_graph(MERGE, trees.map(torch.detach, old), items, scale=0.0)
    new = trees.map(lambda t: t.clone().requires_grad_(), p)
    other = torch.optim.Adam(trees.leaves(new), 0.01)
    other.load_state_dict(growth.carry_graph(adam.state_dict(), old, p))
    step(MERGE, old, adam)
    step(grown, new, other)
    for path in trees.paths(old):
        want = trees.get(old, path)
        close(trees.get(new, path)[tuple(slice(n) for n in want.shape)], want, 1e-12)
    groups = {"state": {}, "param_groups": [{"params": [0]}, {"params": [1]}]}
    with pytest.raises(ValueError, match="2 parameter groups"):
        growth.carry_graph(groups, old, p)


# --- dtype, errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_params_keep_their_dtype(dtype):
    params, (x, t) = made(MERGE)
    params, x = trees.map(lambda t: t.to(dtype), params), x.to(dtype)
    stats = growth.graph_statistics(MERGE, params, (x, t))
    table = growth.candidates(stats, 2, torch.tanh)
    grown, p = growth.grow_graph(MERGE, params, [*table.take(4), growth.node_delta(stats, "y")], scale=0.1)
    assert {t.dtype for t in trees.leaves(p)} == {dtype}
    assert grown.apply(p, x).isfinite().all()


def stats_of(graph):
    return observed(graph)[2]


TIED = block(3, torch.tanh, True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: growth.new_edge(s, "x", "a"), "there is such an edge"),
        (lambda s: growth.new_edge(s, "y", "a"), "close a cycle, since a is or leads to y"),
        (lambda s: growth.new_edge(s, "a", "a"), "close a cycle"),
        (lambda s: growth.new_edge(s, "a", "x"), "not the input"),
        (lambda s: growth.new_edge(s, "q", "a"), "no such node"),
        (lambda s: growth.new_edge(s, "b", "y", target="hessian"), 'expected "residual" or'),
        (lambda s: growth.new_edge(s, "b", "y", ridge=-1.0), "ridge"),
        (lambda s: growth.new_node(s, "y", "a", 1, None), "close a cycle"),
        (lambda s: growth.new_node(s, ["x", "x"], "a", 1, None), "different nodes"),
        (lambda s: growth.new_node(s, "x", ["a", "a"], 1, None), "different nodes"),
        (lambda s: growth.new_node(s, [], "a", 1, None), "one at least"),
        (lambda s: growth.new_node(s, "x", "a", 1, None, name="b"), "already"),
        (lambda s: growth.new_node(s, "x", "a", -1, None), "k: got -1"),
        (lambda s: growth.wider_node(s, "x", 1), "input or output"),
        (lambda s: growth.wider_node(s, "y", 1), "input or output"),
        (lambda s: growth.wider_node(s, "c", 1), r"identity edges \['x->c'\]"),
        (lambda s: growth.node_delta(s, "x"), "not the input"),
        (lambda s: growth.grow_graph(MERGE, made(MERGE)[0], [growth.new_edge(s, "b", "y")] * 2), "given 2 times"),
        (lambda s: growth.grow_graph(TIED, made(TIED)[0], growth.new_edge(s, "b", "y")), "unknown node"),
        (lambda s: growth.grow_graph(MERGE, made(TIED)[0], growth.new_edge(s, "b", "y")), "missing"),
        (lambda s: growth.candidates(s, 1, None).take(1, by="size"), "by: got"),
        (lambda s: growth.candidates(stats_of(Graph((Node("x", 1), Node("y", 1)), ("x->y",))), 0, None).best, "empty"),
        (lambda s: growth.carry_graph({}, made(MERGE)[0], made(TIED)[0]), "lacks the leaves"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(stats_of(MERGE))


def test_only_expansions_can_be_added():
    with pytest.raises(TypeError, match="expected NodeDelta, NewEdge, NewUnits"):
        growth.grow_graph(MERGE, made(MERGE)[0], 3)


# --- digits --------------------------------------------------------------------------------------------------------


def search(graph, params, items, data):
    """The best of some amplitudes, zero not among them."""
    tried = [growth.grow_graph(graph, params, items, scale=t) for t in (0.03, 0.1, 0.3, 1.0, 3.0, 6.0, 10.0)]
    return min(tried, key=lambda g: float(mean_loss(*g, data)))


def random(table, generator):
    """Any candidate, in a random direction of the same length."""
    item = table.items[int(torch.randint(0, len(table.items), (), generator=generator))]

    def noise(t):
        r = torch.randn(t.shape, generator=generator, dtype=t.dtype)
        return r * (t.norm() / r.norm().clamp(min=1e-30))

    if isinstance(item, growth.NewEdge):
        return dataclasses.replace(item, weight=noise(item.weight), delta=None)
    n = item.neurons
    parts = {name: noise(getattr(n, name)) for name in ("fan_in", "fan_in_bias", "fan_out")}
    return dataclasses.replace(item, neurons=dataclasses.replace(n, **parts))


def digits_losses(choose, seed=0):
    """From input and output without any edge: the loss before and after each of four additions."""
    x, y = load_digits(return_X_y=True)
    data = torch.tensor(x[:300] / 16), torch.tensor(y[:300])
    generator = torch.Generator().manual_seed(seed)
    graph = Graph((Node("x", 64), Node("y", 10)))
    params = graph.init(generator, dtype=torch.float64)
    losses = [mean_loss(graph, params, data).item()]
    for _ in range(4):
        stats = growth.graph_statistics(graph, params, data)
        table = growth.candidates(stats, 3, torch.tanh, target="gradient")
        graph, params = search(graph, params, choose(table, generator), data)
        losses.append(mean_loss(graph, params, data).item())
    return losses


def test_digits_grown_by_the_best_candidates():
    """Lower at every addition, and far below as many random ones."""
    largest = digits_losses(lambda table, _: table.best)
    cheapest = digits_losses(lambda table, _: table.take(1, by="ratio")[0])
    theirs = digits_losses(random)[-1]
    for ours in (largest, cheapest):
        assert all(b < a for a, b in zip(ours, ours[1:])), ours
    assert largest[-1] < 0.1 < cheapest[-1] < 0.6
    assert theirs > 2.2
