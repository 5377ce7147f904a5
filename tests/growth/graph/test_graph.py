"""Graphs: the function is the recursion over nodes; statistics are products of rows found sample by sample."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, vmap
from torch.nn import functional as F

import growth
from growth import Graph, Node, strategies
from linmaps import trees
from tests.growth.oracle import close

SMOOTH = list(strategies.SMOOTH)
LOSSES = {
    "cross_entropy": lambda y, t: F.cross_entropy(y.reshape(-1, y.shape[-1]), t.reshape(-1), reduction="sum"),
    "squared_error": lambda y, t: 0.5 * ((y - t) ** 2).sum(),
}


def made(graph, seed=0, positions=0, samples=9, loss="cross_entropy", dtype=torch.float64):
    """Generic params (no zeros) and data for a graph."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    params = trees.map(lambda t: 0.7 * normal(*t.shape), graph.init(generator, dtype=dtype))
    lead = (samples, positions) if positions else (samples,)
    x, n = normal(*lead, graph.nodes[0].width), graph.nodes[-1].width
    target = torch.randint(0, n, lead, generator=generator) if loss == "cross_entropy" else normal(*lead, n)
    return params, (x, target)


graphs = strategies.graphs()

MERGE = Graph(
    (Node("x", 3), Node("a", 2, torch.tanh), Node("b", 3, F.gelu), Node("c", 3, torch.tanh), Node("y", 3)),
    ("x->a", "x->b", "a->c", "b->c", "c->y", "a->y"),
    identities=("x->c",),
)


def recursion(graph, params, x, zero=None):
    """The value of each node by its definition, from the output backwards."""
    h = {graph.nodes[0].name: x}

    def value(v):
        if v not in h:
            node = graph.node(v)
            z = torch.zeros(*x.shape[:-1], node.width, dtype=x.dtype)
            for a, b in graph.edges:
                if b == v:
                    z = z + torch.einsum("oi,...i->...o", params["edges"][f"{a}->{b}"]["weight"], value(a))
            for a, b in graph.identities:
                if b == v:
                    z = z + value(a)
            if node.bias:
                z = z + params["nodes"][v]["bias"]
            if zero is not None:
                z = z + zero[v]
            h[v] = node.activation(z) if node.activation else z
        return h[v]

    for n in reversed(graph.nodes):
        value(n.name)
    return h


def brute(graph, params, data, loss):
    """Rows of all values (with a 1) and of all gradients, by one backward per sample."""
    hs, gs = [], []
    for x, t in zip(*data):
        zero = {n.name: torch.zeros(*x.shape[:-1], n.width, dtype=x.dtype, requires_grad=True) for n in graph.nodes[1:]}
        h = recursion(graph, params, x, zero)
        found = torch.autograd.grad(LOSSES[loss](h[graph.nodes[-1].name], t), list(zero.values()), allow_unused=True)
        g = [torch.zeros_like(z) if g is None else g for g, z in zip(found, zero.values())]
        rows = lambda t: t.detach().reshape(x[..., 0].numel(), t.shape[-1])  # noqa: B023
        values = [rows(h[n.name]) for n in graph.nodes]
        hs.append(torch.cat([*values, torch.ones(len(values[0]), 1, dtype=x.dtype)], 1))
        gs.append(torch.cat([rows(t) for t in g], 1))
    return torch.cat(hs), torch.cat(gs)


def mean_loss(graph, params, data, loss="cross_entropy"):
    y = graph.apply(params, data[0])
    return LOSSES[loss](y, data[1]) / len(y)


@given(graphs, st.integers(0, 99), st.sampled_from([(), (4,), (2, 3), (0,)]))
def test_apply_is_the_recursion(graph, seed, lead):
    params, _ = made(graph, seed)
    x = torch.randn(*lead, graph.nodes[0].width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    close(graph.apply(params, x), recursion(graph, params, x)[graph.nodes[-1].name], 1e-13)


@given(graphs, st.integers(0, 99), st.sampled_from([0, 3]), st.sampled_from(sorted(LOSSES)))
def test_statistics_equal_direct_products(graph, seed, positions, loss):
    params, data = made(graph, seed, positions, loss=loss)
    s = growth.graph_statistics(graph, params, data, loss)
    h, g = brute(graph, params, data, loss)
    for got, left, right in [(s.S, h, h), (s.M, h, g), (s.E, g, g)]:
        close(got, left.T @ right / 9, 1e-12)
    assert (s.count, s.positions) == (9, 9 * max(positions, 1))


@given(graphs, st.integers(0, 9))
def test_batching_and_merging_change_nothing(graph, cut):
    params, (x, t) = made(graph)
    whole = growth.graph_statistics(graph, params, (x, t))
    parts = [(x[:cut], t[:cut]), (x[cut:], t[cut:])]
    others = [growth.graph_statistics(graph, params, parts)]
    if 0 < cut < 9:
        a, b = (growth.graph_statistics(graph, params, p) for p in parts)
        others.append(a + b)
    for other in others:
        for got, want in zip(trees.leaves(other), trees.leaves(whole), strict=True):
            close(got, want, 1e-12)


def columns(graph, names, skip=0):
    ends = torch.tensor([0, *(n.width for n in graph.nodes)]).cumsum(0).tolist()
    where = {n.name: range(a - skip, b - skip) for n, a, b in zip(graph.nodes, ends, ends[1:])}
    return [i for n in names for i in where[n]]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("sources", "targets", "inside"),
    [
        (["x"], ["y"], ["a", "c"]),
        (["b", "x"], ["c", "y"], ["a", "b", "c"]),
        (["x", "a"], ["a"], ["x"]),
        ([], ["b"], ["x"]),
    ],
)
def test_between_cuts_out_the_rows(sources, targets, inside, bias):
    params, data = made(MERGE)
    s = growth.graph_statistics(MERGE, params, data).between(sources, targets, F.softplus, bias=bias)
    h, g = brute(MERGE, params, data, "cross_entropy")
    b2 = h[:, columns(MERGE, sources) + ([h.shape[1] - 1] if bias else [])]
    b1 = h[:, [*columns(MERGE, inside), h.shape[1] - 1]]
    g = g[:, columns(MERGE, targets, skip=3)]
    pairs = {"S": (b1, b1), "M": (b1, g), "S_prev": (b2, b2), "M_prev": (b2, g), "P": (b2, b1), "E": (g, g)}
    for name, (left, right) in pairs.items():
        close(getattr(s, name), left.T @ right / 9, 1e-12)
    assert (s.bias_before, s.bias_after, s.slope_plus) == (bias, True, 0.5)
    assert abs(s.sigma0.item() - 2**0 * torch.log(torch.tensor(2.0)).item()) < 1e-6


def test_a_chain_has_the_statistics_of_its_pair():
    graph = Graph((Node("x", 3), Node("h", 4, torch.tanh, False), Node("y", 3, None, False)), ("x->h", "h->y"))
    params, data = made(graph)
    want = growth.statistics(graph.apply, params, data, growth.Pair(("edges", "x->h"), ("edges", "h->y")))
    got = growth.graph_statistics(graph, params, data).between(["x"], ["y"], torch.tanh, bias=False)
    for n in ("S", "M", "S_prev", "M_prev", "P", "E", "count", "positions", "sigma0", "slope_plus", "slope_minus"):
        close(getattr(got, n), getattr(want, n), 1e-12)


def test_ensemble_equals_loop():
    members = [made(MERGE, seed)[0] for seed in range(3)]
    _, data = made(MERGE)
    together = vmap(lambda p: growth.graph_statistics(MERGE, p, data))(trees.stack(members))
    for i, p in enumerate(members):
        for a, b in zip(trees.leaves(together), trees.leaves(growth.graph_statistics(MERGE, p, data)), strict=True):
            close(a[i], b, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_single_and_half_precision(dtype):
    params, (x, t) = made(MERGE)
    cast = lambda tree: trees.map(lambda t: t.to(dtype), tree)
    s, want = (
        growth.graph_statistics(MERGE, cast(params), (x.to(dtype), t)),
        growth.graph_statistics(MERGE, params, (x, t)),
    )
    assert {u.dtype for u in trees.leaves(s)} == {torch.float32}
    for got, full in zip(trees.leaves(s), trees.leaves(want)):
        close(got.double(), full, 1e-5 if dtype == torch.float32 else 5e-2)


def test_a_node_of_width_zero_lets_the_bias_behind_it_act():
    graph = Graph((Node("x", 2), Node("h", 0, torch.tanh), Node("y", 2)), ("x->h", "h->y"))
    params, data = made(graph)
    assert torch.equal(graph.apply(params, data[0]), params["nodes"]["y"]["bias"].expand(9, 2))
    g = grad(lambda p: mean_loss(graph, p, data))(params)
    assert g["nodes"]["y"]["bias"].abs().min() > 1e-3
    assert g["edges"]["x->h"]["weight"].shape == (0, 2)
    close(g["nodes"]["y"]["bias"], growth.graph_statistics(graph, params, data).M[-1], 1e-12)


def test_init_has_the_scale_of_a_dense_layer_over_all_edges():
    graph = Graph((Node("x", 40), Node("a", 60), Node("y", 50)), ("x->a", "x->y", "a->y"))
    state = torch.random.get_rng_state()
    one, two = (graph.init(torch.Generator().manual_seed(1), dtype=torch.float64) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(trees.leaves(one), trees.leaves(two)))
    for path, bound in {"x->a": 40**-0.5, "x->y": 0.1, "a->y": 0.1}.items():
        largest = one["edges"][path]["weight"].abs().max().item()
        assert 0.98 * bound < largest <= bound
    assert one["nodes"]["y"]["bias"].abs().max() <= 0.1


def test_the_order_of_nodes_does_not_matter():
    x, a, b, y = Node("x", 2), Node("a", 2, torch.tanh), Node("b", 2, torch.tanh), Node("y", 2)
    edges = ("x->a", "a->b", "b->y")
    one, two = Graph((x, a, b, y), edges), Graph((x, b, a, y), edges)
    params, data = made(one)
    assert torch.equal(one.apply(params, data[0]), two.apply(params, data[0]))
    assert one.order() == two.order() == ("x", "a", "b", "y")
    assert one.reaches("a", "y")
    assert not one.reaches("b", "a")
    assert hash(one) == hash(Graph([x, a, b, y], [("x", "a"), ("a", "b"), ("b", "y")]))


def test_the_record_is_saved():
    graph = Graph((Node("x", 2), Node("y", 2)), ("x->y",))
    params, data = made(graph)
    s = growth.graph_statistics(graph, params, data)
    file = io.BytesIO()
    torch.save(s, file)
    file.seek(0)
    again = torch.load(file)
    assert again.graph == graph
    assert torch.equal((again + s).S, s.S)


X, H, Y = Node("x", 2), Node("h", 3), Node("y", 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Graph((X, H, Node("k", 1), Y), ("x->h", "h->k", "k->h", "h->y")), r"cycle (h->k->h|k->h->k)"),
        (lambda: Graph((X, H, Y), ("h->h",)), "cycle h->h"),
        (lambda: Graph((X, Node("h", 2), Y), ("x->h", "h->y"), ("y->h",)), "cycle"),
        (lambda: Graph((X, Y), ("x->z",)), "x->z names an unknown node"),
        (lambda: Graph((X, Y), ("y->x",)), "into the input"),
        (lambda: Graph((X, Y), ("x->y", "x->y")), "given 2 times"),
        (lambda: Graph((X, H, Y), (), ("x->h",)), "widths 2 and 3"),
        (lambda: Graph((X, X)), "each name once"),
        (lambda: Graph((X,)), "at least input and output"),
        (lambda: Graph((Node("x", 2, torch.tanh), Y)), "input x has an activation"),
        (lambda: Node("a->b", 2), "without"),
        (lambda: Node("a", -1), "width: got -1"),
        (lambda: MERGE.apply(made(MERGE)[0], torch.ones(2, 4)), r"got shape \(2, 4\), expected \[..., 3\]"),
        (lambda: MERGE.apply({"edges": {}, "nodes": {}}, torch.ones(2, 3)), "missing.*edges.a->c.weight"),
        (lambda: MERGE.apply(trees.map(lambda t: t[:1], made(MERGE)[0]), torch.ones(2, 3)), "has shape"),
        (lambda: MERGE.node("q"), "no such node"),
        (lambda: growth.graph_statistics(MERGE, made(MERGE)[0], []), "no batch"),
        (
            lambda: growth.graph_statistics(MERGE, made(MERGE)[0], (torch.ones(0, 3), torch.ones(0).long())),
            "only empty",
        ),
        (
            lambda: growth.graph_statistics(MERGE, made(MERGE)[0], (torch.ones(2, 3) / 0, torch.ones(2).long())),
            "batch 0: x",
        ),
        (
            lambda: growth.graph_statistics(MERGE, *made(MERGE), lambda y, t: F.cross_entropy(y, t)),
            "one loss per sample",
        ),
        (
            lambda: growth.graph_statistics(MERGE, *made(MERGE)).between(["x"], ["x"]),
            "not the input x",
        ),
        (
            lambda: growth.graph_statistics(MERGE, *made(MERGE)) + growth.graph_statistics(G2, *made(G2)),
            "two graphs",
        ),
    ],
)
def test_errors_name_what_is_wrong(build, message):
    with pytest.raises(ValueError, match=message):
        build()


G2 = Graph((X, Y), ("x->y",))


@pytest.mark.parametrize("build", [lambda: Node("a", 1.0), lambda: Node("a", 1, "relu"), lambda: Graph((X, Y), (3,))])
def test_other_kinds_are_type_errors(build):
    with pytest.raises(TypeError, match="expected"):
        build()
