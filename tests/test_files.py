"""Every kind of record comes back from a file as it was: structure, settings, bits, and what it computes."""

import functools
import json
import struct

import optree
import pytest
import torch
from torch import nn
from torch.func import vmap

import fisher
import growth
import linmaps
from fisher.distributed.marks import Symmetric
from fisher.iterative.cg import Report
from fisher.pmat.algebra.regrouped import Layered, Products
from fisher.recipes import functional_laplace, laplace, soap
from fisher.recipes.optimizers.model import Model
from linmaps import trees
from linmaps.trees.files.digests import digest
from linmaps.trees.registry import ENTERED
from linmaps.trees.seals import sealed
from tests import test_prints as prints
from tests.linmaps import zoo

PACKAGES = ("linmaps", "fisher", "growth")
F, PARAMS, X, T, PAIR, MODEL = prints.F, prints.PARAMS, prints.X, prints.T, prints.PAIR, prints.MODEL
REPRESENTATIONS = [
    fisher.PMatBlockDiag, fisher.PMatDense, fisher.PMatDiag, fisher.PMatEKFAC, fisher.PMatKFAC, fisher.PMatLowRank,
    fisher.PMatMixed, fisher.PMatQuasiDiag, fisher.PMatEye,
]  # fmt: skip

OF_BLOCKS = [
    "PMatBlockDiag",
    "PMatKFAC",
    "PMatEKFAC",
    "PMatQuasiDiag",
    "PMatDiag",
    "in its eigenbases",
    "layered",
    "of images",
]


@trees.static
def network(params, x):
    return F(params, x)


def fim(representation, **options):
    return lambda: fisher.fim(F, PARAMS, X, representation, **options)


def ensemble():
    stacked = trees.stack([PARAMS, trees.map(lambda t: 2 * t, PARAMS)])
    return vmap(lambda p: fisher.fim(F, p, X))(stacked)


def of_images():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.GroupNorm(2, 4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2),
        nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(75, 3)),
    )  # fmt: skip
    f, p = fisher.functional(net)
    return f, p, torch.randn(4, 2, 8, 8)


def token_layers():
    def f(p, x):
        h = nn.functional.embedding(x, p["e"], padding_idx=0)
        h = torch.einsum("btd,hdk->bthk", h, p["q"]).flatten(2)
        return nn.functional.layer_norm(h, (6,), p["s"], p["b"]) @ p["o"]

    p = {
        "e": torch.randn(7, 4),
        "q": torch.randn(2, 4, 3),
        "s": torch.ones(6),
        "b": torch.ones(6),
        "o": torch.ones(6, 2),
    }
    return fisher.LayerCollection.from_function(f, p, torch.arange(12).reshape(4, 3) % 7)


def pooled_statistics():
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    f, p = fisher.functional(net)
    return growth.statistics(f, p, (torch.randn(6, 1, 4, 4), torch.arange(6) % 2), growth.Pair("0", "4"))


def normed_statistics():
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).eval()
    f, p = fisher.functional(net, buffers=True)
    return growth.statistics(f, p, (X, T), growth.Pair("0", "3", norm="1"))


GATED = {n: torch.randn(s, generator=prints.G) for n, s in {"g": (4, 5), "u": (4, 5), "o": (3, 4)}.items()}


def gated_statistics():
    f = lambda p, x: (torch.nn.functional.silu(x @ p["g"].T) * (x @ p["u"].T)) @ p["o"].T
    return growth.statistics(f, GATED, (X, T), growth.Gated("g", "u", "o"))


def soap_state():
    rule = soap(F, rate=0.1, estimator="exact")
    state = rule.init(PARAMS, (X, T))
    return rule.update(trees.map(torch.ones_like, PARAMS), state, PARAMS, batch=(X, T))[1]


RECORDS = {
    **{
        name: make
        for name, make in {**prints.LINES, **prints.TABLES}.items()
        if not name.startswith(("Pair", "Gated", "Compiled"))  # functions and graphs are made where they run
    },
    **{R.__name__: fim(R) for R in REPRESENTATIONS},
    "of a tensor's likelihood": fim(fisher.PMatKFAC, likelihood=fisher.Gaussian(torch.tensor([1.0, 2.0, 0.5]))),
    "in its eigenbasis": lambda: fim(fisher.PMatDense)().eigendecomposition(),
    "in its eigenbases": lambda: fim(fisher.PMatBlockDiag)().eigendecomposition(),
    "PMatRange": lambda: fim(fisher.PMatLowRank)().inverse(0.3),
    "PMatSum": lambda: fim(fisher.PMatKFAC)() + fim(fisher.PMatDiag)(),
    "sum of KFACs": lambda: fim(fisher.PMatKFAC)() + 2.0 * fim(fisher.PMatKFAC)(),
    "inverse of a sum": lambda: (fim(fisher.PMatKFAC)() + fim(fisher.PMatDiag)()).inverse(0.3),
    "of an ensemble": ensemble,
    "of some layers": lambda: fisher.fim(
        F, PARAMS, X, layers=fisher.LayerCollection.from_function(F, PARAMS, X).select(["0"])
    ),
    "PMatImplicit": lambda: fisher.fim(network, PARAMS, X, fisher.PMatImplicit),
    "PMatImplicit mc": lambda: fisher.fim(
        network, PARAMS, X, fisher.PMatImplicit, estimator="mc", generator=torch.Generator().manual_seed(0)
    ),
    "PMatImplicit of a tensor's likelihood": lambda: fisher.fim(
        network, PARAMS, X, fisher.PMatImplicit, fisher.Gaussian(torch.tensor([1.0, 2.0, 0.5]))
    ),
    "hessian": lambda: fisher.hessian(squares, PARAMS, (X, T), fisher.PMatImplicit),
    "ggn": lambda: fisher.ggn(network, entropies, PARAMS, (X, T), fisher.PMatImplicit),
    "PMatPullback": lambda: fisher.pullback(fim(fisher.PMatKFAC)(), halved, PARAMS),
    "PFMapImplicit": lambda: fisher.jacobian(network, PARAMS, X, fisher.PFMapImplicit),
    "Laplace": lambda: laplace(network, PARAMS, fim(fisher.PMatKFAC)(), 12),
    "FunctionalLaplace": lambda: functional_laplace(network, PARAMS, X, temperature=0.5),
    "soap": soap_state,
    "image layers": lambda: fisher.LayerCollection.from_function(*of_images()),
    "of images": lambda: fisher.fim(*of_images()),
    "token layers": token_layers,
    "pooled statistics": pooled_statistics,
    "statistics behind a norm": normed_statistics,
    "gated statistics": gated_statistics,
    "gated neurons": lambda: growth.optimal_neurons(gated_statistics(), 2),
    "pairs": lambda: [
        growth.Pair(growth.Sum("a", ("net", 2)), "b", torch.nn.functional.gelu, norm=["n", "m"], along=("p",)),
        growth.Gated(None, None, "net.down", packed="net.gate_up", order="up_gate"),
        growth.Heads("q", "k", "v", ("a", "o"), 4, n_kv_heads=2),
    ],
    "likelihoods": lambda: [
        fisher.Bernoulli(),
        fisher.Categorical(-1, weight=(1.0, 2.0)),
        fisher.Segmentation(),
        fisher.Poisson(),
        fisher.Gaussian(covariance=torch.eye(2)),
        fisher.HeteroscedasticGaussian(),
    ],
    "graph": lambda: prints.GRAPH,
    "adam": lambda: growth.adam(0.1).init(PARAMS),
    "sgd": lambda: growth.sgd(0.1, momentum=0.9).init(PARAMS),
    "layout": lambda: trees.Layout.of({"a": torch.zeros(2)}),
    "text beside tensors": lambda: sealed({"ids": torch.ones(2), "text": ["a", None]}),
    "blocks": lambda: [made(name)._blocks() for name in OF_BLOCKS],
    "layered": lambda: Layered((made("PMatKFAC"), made("PMatDiag")), made("PMatKFAC").layers, True),
    "products": lambda: Products(made("PMatSum")),
    "model": lambda: Model(torch.ones(2, 3), torch.ones(2), torch.eye(2), torch.eye(2)),
    "report": lambda: Report(torch.tensor(0.1), torch.tensor(3), torch.tensor(True)),
    "factorized convolution": lambda: linmaps.factorize_conv(torch.randn(3, 2, 3, 3), rank=2),
    "lipschitz convolution": lambda: linmaps.LipschitzConv(3, 8, 5, bound=2.0),
    "a mark": lambda: Symmetric(torch.eye(2)),
    "a cell": lambda: linmaps.RNNCell(linmaps.Spectral(4), linmaps.Linear(3, 4, bias=True)),
}
RECORDS |= {f"map {zoo.label(e)}": lambda e=e: (e.spec, zoo.random_params(e.spec, 0)) for e in zoo.ENTRIES}


@trees.static
def squares(params, x, y):
    return (F(params, x) ** 2).mean()


@trees.static
def entropies(y, t):
    return nn.functional.cross_entropy(y, t, reduction="none")


@trees.static
def halved(params):
    return trees.scale(0.5, params)


def same(got, want, memory=True):
    """Structure and settings, dtypes, devices, shapes, bits, and the order of the axes in memory."""
    (s, one), (t, other) = optree.tree_flatten(got), optree.tree_flatten(want)
    assert one == other
    for a, b in zip(s, t):
        assert type(a) is type(b) or isinstance(b, nn.Parameter)
        if isinstance(b, tuple):  # a pair with an attribute
            same((*a, getattr(a, "__dict__", {})), (*b, getattr(b, "__dict__", {})))
            continue
        if not isinstance(a, torch.Tensor):
            assert a == b
            continue
        assert (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape)
        assert not memory or a.stride() == torch.empty_like(b).stride()
        assert torch.equal(bits(a), bits(b))


def bits(t):
    t = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
    return t.contiguous().view(torch.uint8) if t.ndim else t.contiguous()[None].view(torch.uint8)


@functools.cache
def made(name):
    return RECORDS[name]()


def through(tree, path, **options):
    trees.save(tree, path)
    return trees.load(path, **options)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_comes_back(name, tmp_path):
    want = made(name)
    got = through(want, tmp_path / "record.safetensors")
    same(got, want)
    assert type(got) is type(want)
    assert repr(got) == repr(want)
    if isinstance(want, fisher.PMat) and name != "of an ensemble":
        assert got.likelihood == want.likelihood
        assert repr(got.known_layers) == repr(want.known_layers)
        v = want.get_diag() if not isinstance(want, fisher.PMatPullback) else PARAMS
        same(got.solve(v, 0.1), want.solve(v, 0.1), memory=False)
    if name.startswith("map "):
        same(got[0].effective_W(got[1]), want[0].effective_W(want[1]), memory=False)
        assert hash(got[0]) == hash(want[0])


def cached(node):
    """What cached properties of records keep, wherever it lies in a tree."""
    own = [k for k in dir(type(node)) if isinstance(getattr(type(node), k, None), functools.cached_property)]
    if isinstance(node, dict):
        return [found for part in node.values() for found in cached(part)]
    if isinstance(node, (list, tuple)):
        return [found for part in node for found in cached(part)]
    found = [(type(node).__name__, k) for k in own]
    if not hasattr(node, "__dict__") or isinstance(node, (torch.Tensor, type)):
        return found
    for key in own:
        getattr(node, key)
    return found + [f for k, part in vars(node).items() if k not in own for f in cached(part)]


@pytest.mark.parametrize("name", RECORDS)
def test_what_a_record_computed_of_itself_is_in_no_file(name, tmp_path):
    node = through(made(name), tmp_path / "record.safetensors")
    before = digest(node)
    cached(node)
    assert digest(node) == before


def named(node):
    """The classes that a layout names."""
    if isinstance(node, list):
        return {n for part in node for n in named(part)}
    if not isinstance(node, dict):
        return set()
    own = {node["record"]} if isinstance(node.get("record"), str) else set()
    own |= {node["class"]} if isinstance(node.get("class"), str) else set()
    return own | {n for part in node.values() for n in named(part)}


def header(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


NOWHERE = {  # registered, and in no record
    "fisher.collector.layers:Layers": "LayerCollection is one",
    "fisher.recipes.posterior.saved:Unsaved": "in the state of a posterior, in place of its function",
    "fisher.recipes.optimizers.schedules:Turn": "what is due at a step, an argument of its update",
    "fisher.pmat.matrix_free.curvature:OutputCurvature": "without a curvature at the output",
}


def test_every_registered_class_is_in_a_record_of_the_table(tmp_path):
    seen = set()
    for n, name in enumerate(RECORDS):
        trees.save(made(name), tmp_path / str(n))
        seen |= named(json.loads(header(tmp_path / str(n))["__metadata__"]["layout"]))
    ours = {n for n in ENTERED if n.partition(".")[0] in PACKAGES and "<locals>" not in n}
    assert not ours - seen - NOWHERE.keys(), sorted(ours - seen - NOWHERE.keys())


def test_no_two_classes_of_a_package_have_one_name():
    """So that a class may move to another file."""
    ours = [n for n in ENTERED if n.partition(".")[0] in PACKAGES and "<locals>" not in n]
    short = [(n.partition(".")[0], n.partition(":")[2]) for n in ours]
    assert len(set(short)) == len(short), sorted(n for n, s in zip(ours, short) if short.count(s) > 1)
