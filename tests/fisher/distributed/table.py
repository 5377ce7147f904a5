"""What is checked at every rank: each check gives what all ranks made together, and how one process makes it.

A check takes the place of its rank; `got` must have the same bits at all ranks and equal `want()` to 1e-12.
"""

import dataclasses

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from torch.func import grad, vmap

import fisher
import growth
from linmaps import trees
from tests.fisher.distributed import nets
from tests.fisher.distributed.nets import GRAPH, IMAGES, LAYERS, MAPS, PAIR, TABLE, WORDS, P, T, W, X, f


@dataclasses.dataclass(frozen=True)
class Place:
    rank: int
    world: int
    reduce: object

    def own(self, data):
        return nets.shard(data, self.rank, self.world)

    def batches(self, data):
        return nets.batched(data, self.rank, self.world)


CHECKS = {}


def check(fn):
    CHECKS[fn.__name__.strip("_")] = fn
    return fn


def add(name, fn):
    CHECKS[name] = fn


KINDS = ("Dense", "Diag", "KFAC", "EKFAC", "BlockDiag", "QuasiDiag", "Eye", "LowRank", "Mixed")
MIXED = {"v": fisher.PMatEKFAC, "scale": fisher.PMatLowRank}


def numbers(F):
    """What two ways to one matrix have in common: eigenvectors and rows have signs and an order of their own."""
    return F.to_torch()


def of_fim(kind, net, params, data, batches=False, **options):
    R = getattr(fisher, f"PMat{kind}")

    def one(place):
        made = lambda d, **more: fisher.fim(net, params, d, R, layers=LAYERS[net], **options, **more)
        own = place.batches(data) if batches else place.own(data)
        F = made(own, reduce=place.reduce)
        return F, (numbers(F), lambda: numbers(made(data)))

    return one


for kind in KINDS:
    more = {"layers_to": MIXED} if kind == "Mixed" else {}
    add(f"fim {kind}", of_fim(kind, f, P, (X, T), **more))
    add(f"fim {kind}, batches", of_fim(kind, f, P, (X, T), True, **more))
    if kind != "Mixed":
        add(f"fim {kind} of maps", of_fim(kind, nets.maps, MAPS, IMAGES, likelihood="gaussian"))
for kind in ("KFAC", "EKFAC", "BlockDiag"):
    add(f"fim {kind} of words", of_fim(kind, nets.words, TABLE, WORDS))
for kind in ("Dense", "KFAC", "EKFAC", "Diag", "QuasiDiag", "LowRank", "BlockDiag"):
    centered = {"estimator": "gradient_covariance", "centered": True}
    add(f"fim {kind}, centered", of_fim(kind, f, P, (X, T), **centered))
for kind in ("KFAC", "EKFAC", "Dense"):
    add(f"fim {kind}, weights", of_fim(kind, f, P, (X, T, W)))
    add(f"fim {kind}, empirical", of_fim(kind, f, P, (X, T), True, estimator="empirical"))
    add(f"fim {kind}, chunks", of_fim(kind, f, P, (X, T), chunk_size=1))
add("fim KFAC, reduced", of_fim("KFAC", nets.maps, MAPS, IMAGES, likelihood="gaussian", sharing="reduce"))


@check
def drawn_targets(place):
    noise = torch.rand(3, nets.N, 2, generator=torch.Generator().manual_seed(5), dtype=X.dtype)
    made = lambda x, noise, **more: fisher.fim(
        f, P, x, fisher.PMatKFAC, "gaussian", "mc", LAYERS[f], noise=noise, **more
    )
    own = place.own(noise.transpose(0, 1)).transpose(0, 1)
    F = made(place.own(X), own, reduce=place.reduce)
    return F, (numbers(F), lambda: numbers(made(X, noise)))


@check
def update_diag(place):
    E = fisher.fim(f, P, X, fisher.PMatKFAC, layers=LAYERS[f]).eigendecomposition()
    moved = trees.scale(1.1, P)
    F = E.update_diag(f, moved, place.batches((X, T)), reduce=place.reduce)
    return F.eigenvalues, (F.eigenvalues, lambda: E.update_diag(f, moved, (X, T)).eigenvalues)


def loss(p, x, y):
    return nnf.cross_entropy(f(p, x), y, reduction="none")


for kind in ("Dense", "Diag", "BlockDiag"):
    R = getattr(fisher, f"PMat{kind}")

    def hessian(place, R=R):
        made = lambda d, **more: fisher.hessian(loss, P, d, R, layers=LAYERS[f], **more)
        F = made(place.own((X, T)), reduce=place.reduce)
        return F, (numbers(F), lambda: numbers(made((X, T))))

    def ggn(place, R=R):
        fn = lambda y, t: nnf.cross_entropy(y, t, reduction="none")
        made = lambda d, **more: fisher.ggn(f, fn, P, d, R, layers=LAYERS[f], **more)
        F = made(place.batches((X, T, W)), reduce=place.reduce)
        return F, (numbers(F), lambda: numbers(made((X, T, W))))

    add(f"hessian {kind}", hessian)
    add(f"ggn {kind}", ggn)


# --- growth ----------------------------------------------------------------------------------------------------------


def of_statistics(net, params, pair, x=X, **options):
    def one(place):
        made = lambda d, **more: growth.statistics(net, params, d, pair, **options, **more)
        s = made(place.batches((x, T)), reduce=place.reduce)
        return s, (s, lambda: made((x, T)))

    return one


MAP_PAIR = growth.Pair("c", "d")
add("statistics", of_statistics(nets.layered, nets.LAYERED, PAIR))
add("statistics of gates", of_statistics(nets.gates, nets.GATES, nets.GATED))
add("statistics of several", of_statistics(nets.layered, nets.LAYERED, [PAIR, PAIR]))


@check
def statistics_of_maps(place):
    params = MAPS | {"c": {"weight": nets.drawn(4, 2, 3, 3, seed=1), "bias": MAPS["c"]["bias"]}}
    net = lambda p, x: (
        torch.tanh(nnf.conv2d(torch.tanh(nnf.conv2d(x, **p["c"])), **p["d"])).flatten(1) @ p["o"]["weight"].T
    )
    return of_statistics(net, params, MAP_PAIR, IMAGES)(place)


@check
def output_fisher(place):
    layers = fisher.LayerCollection.from_function(nets.layered, nets.LAYERED, X)
    made = lambda d, **more: growth.output_fisher(nets.layered, nets.LAYERED, d, PAIR, layers=layers, **more)
    E = made(place.batches(X), reduce=place.reduce)
    return E, (E, lambda: made(X))


@check
def graph_statistics(place):
    made = lambda d, **more: growth.graph_statistics(GRAPH, nets.EDGES, d, **more)
    s = made(place.own((X, T)), reduce=place.reduce)
    return s, (s, lambda: made((X, T)))


# --- optimizers ------------------------------------------------------------------------------------------------------


def of_steps(make, own_loss=False):
    def one(place):
        mean = lambda p, b: nnf.cross_entropy(f(p, b[0]), b[1])

        def run(batch, reduce):
            extra = {"loss": mean} if own_loss else {}
            optimizer = make(reduce=reduce, layers=LAYERS[f], **extra)
            params, state = P, optimizer.init(P, batch)
            for _ in range(3):
                g = grad(lambda p: nnf.cross_entropy(f(p, X), T))(params)  # as DDP leaves it
                updates, state = optimizer.update(g, state, params, batch=batch)
                params = trees.add(params, updates)
            return params, state

        params, state = run(place.own((X, T)), place.reduce)

        def want():
            theirs, other = run((X, T), None)
            return theirs, other.factors, other.damping, other.velocity

        return (params, state), ((params, state.factors, state.damping, state.velocity), want)

    return one


KFAC = fisher.recipes.kfac
add("kfac", of_steps(lambda **o: KFAC(f, estimator="exact", bases_every=2, adapt_every=1, **o)))
add("kfac, own loss", of_steps(lambda **o: KFAC(f, estimator="exact", adapt_every=1, **o), own_loss=True))
add("kfac, corrected", of_steps(lambda **o: KFAC(f, estimator="exact", correct=True, bases_every=2, **o)))
add("kfac, clipped", of_steps(lambda **o: KFAC(f, estimator="exact", rate=0.3, clip=1e-2, l2=0.1, **o)))
add("soap", of_steps(lambda **o: fisher.recipes.soap(f, estimator="exact", bases_every=2, eps=1e-2, **o)))


@check
def kfac_of_several_batches(place):
    start = lambda d, reduce: KFAC(f, estimator="exact", layers=LAYERS[f], reduce=reduce).init(P, d)
    state = start(place.batches((X, T)), place.reduce)
    return state, (state.factors, lambda: start((X, T), None).factors)


# --- matrices that are there -----------------------------------------------------------------------------------------

for kind in ("Dense", "KFAC", "BlockDiag", "QuasiDiag", "LowRank", "Mixed", "Diag"):

    def split(place, kind=kind):
        F = fisher.fim(f, P, X, getattr(fisher, f"PMat{kind}"), layers=LAYERS[f])
        E = F.eigendecomposition(group=dist.group.WORLD)
        return E, (numbers(E), lambda: numbers(F.eigendecomposition()))

    add(f"eigendecomposition of {kind}", split)


@check
def eigendecomposition_of_groups(place):
    F = fisher.fim(nets.maps, MAPS, IMAGES, fisher.PMatKFAC, "gaussian", layers=LAYERS[nets.maps])
    E = F.eigendecomposition(group=dist.group.WORLD)
    return E, (numbers(E), lambda: numbers(F.eigendecomposition()))


@check
def eigendecomposition_of_a_range(place):
    F = fisher.fim(f, P, X, fisher.PMatLowRank).inverse(0.5)
    E = F.eigendecomposition(group=dist.group.WORLD)
    return E, (numbers(E), lambda: numbers(F))


@check
def influence(place):
    F = fisher.fim(f, P, X, fisher.PMatKFAC, layers=LAYERS[f])
    made = lambda d: fisher.recipes.influence(f, P, d, F, (X[:3], T[:3]), regul=0.1)
    own = made(place.own((X, T))) if place.own(X).numel() else None
    scores = fisher.distributed.all_gather(own, dim=1)
    return scores, (scores, lambda: made((X, T)))


@check
def kernel(place):
    made = lambda x: fisher.gram(f, P, x, X, kind="trace", layers=LAYERS[f]).kernel
    own = made(place.own(X)) if place.own(X).numel() else None
    K = fisher.distributed.all_gather(own)
    return K, (K, lambda: made(X))


@check
def ensemble_outside_of_the_collective(place):
    stacked = trees.stack([P, trees.scale(0.5, P)])
    made = lambda x: vmap(lambda p: fisher.fim(f, p, x, fisher.PMatDense, layers=LAYERS[f]))(stacked)
    n = len(place.own(X))
    sums, count = place.reduce(trees.scale(float(n), made(place.own(X))) if n else None, n)
    F = trees.scale(1 / count, sums)
    return F, (F, lambda: made(X))


# --- DTensors --------------------------------------------------------------------------------------------------------


def spread(tree):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {name: distribute_tensor(t, mesh, [Replicate() if name == "b" else Shard(0)]) for name, t in tree.items()}


@check
def params_of_DTensors(place):
    F = fisher.fim(f, spread(P), place.own(X), fisher.PMatKFAC, layers=LAYERS[f], reduce=place.reduce)
    assert not any(hasattr(t, "placements") for t in trees.leaves(F))
    return F, (F, lambda: fisher.fim(f, P, X, fisher.PMatKFAC))


@check
def layers_and_matrices_of_DTensors(place):
    found = fisher.LayerCollection.from_function(f, spread(P), X)
    assert found == LAYERS[f]
    F = fisher.fim(f, {n: torch.nn.Parameter(t) for n, t in spread(P).items()}, X, fisher.PMatDense)
    return F, (F, lambda: fisher.fim(f, P, X, fisher.PMatDense))


@check
def statistics_of_DTensors(place):
    params = {name: spread(leaves) for name, leaves in nets.LAYERED.items()}
    s = growth.statistics(nets.layered, params, place.own((X, T)), PAIR, reduce=place.reduce)
    return s, (s, lambda: growth.statistics(nets.layered, nets.LAYERED, (X, T), PAIR))


@check
def vectors_of_DTensors(place):
    v, regul = spread(P), 0.3
    got, want = {}, {}
    for kind in ("Dense", "Diag", "KFAC", "EKFAC", "BlockDiag", "QuasiDiag", "Eye", "LowRank", "Mixed", "Implicit"):
        F = fisher.fim(f, P, X, getattr(fisher, f"PMat{kind}"), "gaussian", layers=LAYERS[f])
        for name, fn in {"solve": lambda F, v: F.solve(v, regul=regul), "mv": lambda F, v: F @ v}.items():
            found = fn(F, v)
            for leaf in v:
                assert found[leaf].placements == v[leaf].placements, (kind, name, leaf)
            got[kind, name] = trees.map(lambda t: t.full_tensor(), found)
            want[kind, name] = fn(F, P)
        got[kind, "vTMv"], want[kind, "vTMv"] = F.vTMv(v), F.vTMv(P)
    by_leaf = F.solve(v, regul=trees.map(torch.ones_like, v))
    got["diagonal"] = trees.map(lambda t: t.full_tensor(), by_leaf)
    want["diagonal"] = F.solve(P, regul=trees.map(torch.ones_like, P))
    return got, (got, lambda: want)


@check
def fully_sharded_module_of_DTensors(place):
    """FSDP2: f of the module before it is sharded; gradients and what F makes of them are placed alike."""
    from torch.distributed.fsdp import fully_shard

    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    module.load_state_dict({n: nets.drawn(*t.shape, seed=k) for k, (n, t) in enumerate(module.state_dict().items())})
    net, params = fisher.functional(module)
    fully_shard(module, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (place.world,)))
    with pytest.raises(TypeError, match="is a DTensor"):
        fisher.functional(module)
    mine = dict(module.named_parameters())
    layers = fisher.LayerCollection.from_function(net, params, X)
    F = fisher.fim(net, mine, place.own((X, T)), layers=layers, reduce=place.reduce)
    nnf.cross_entropy(module(X), T).backward()  # the mean over ranks of what is the same at all
    found = F.solve({n: p.grad for n, p in mine.items()}, regul=0.1)
    assert all(found[n].placements == p.placements for n, p in mine.items())

    def want():
        g = grad(lambda p: nnf.cross_entropy(net(p, X), T))(params)
        return fisher.fim(net, params, (X, T)).solve(g, regul=0.1)

    return F, (trees.map(lambda t: t.full_tensor(), found), want)


@check
def steps_of_DTensors(place):
    optimizer = KFAC(f, estimator="exact", layers=LAYERS[f], reduce=place.reduce)
    params, batch = spread(P), place.own((X, T))
    g = grad(lambda p: nnf.cross_entropy(f(p, X), T))(P)
    state = optimizer.init(params, batch)
    updates, state = optimizer.update(spread(g), state, params, batch=batch)
    assert all(updates[n].placements == params[n].placements for n in params)
    plain = KFAC(f, estimator="exact", layers=LAYERS[f])
    want = lambda: plain.update(g, plain.init(P, (X, T)), P, batch=(X, T))[0]
    return state, (trees.map(lambda t: t.full_tensor(), updates), want)


# of three processes: one without examples; what does not ask for it, of two alone
OF_TWO = (
    "DTensors",
    "own loss",
    "clipped",
    "hessian Diag",
    "hessian BlockDiag",
    "ggn Dense",
    "ggn Diag",
    "eigendecomposition",
)


def checks(world):
    """Those of so many processes."""
    return {name: fn for name, fn in CHECKS.items() if world < 3 or not any(part in name for part in OF_TWO)}
