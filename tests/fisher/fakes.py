"""Matrices made by hand on a stand-in for a LayerCollection: one layer of every form, without any function f."""

import dataclasses

import torch

from fisher.pmat import PMatBlockDiag, PMatDense, PMatDiag, PMatEye, PMatKFAC, PMatQuasiDiag
from linmaps import trees
from linmaps.trees import Layout


@trees.static
@dataclasses.dataclass(frozen=True)
class FakeLayer:
    """Leaves `weight` and `bias` (paths) with the view [W | b] `[O, I]`, or `[groups, O, I]`."""

    name: str
    kind: str
    weight: str | None = None
    bias: str | None = None
    transposed: bool = False
    groups: int = 0
    diagonal: bool = False

    by_leaf = False

    @property
    def kronecker(self):
        return self.kind == "linear"

    @property
    def grouped(self):
        return self.groups > 0


@trees.static
@dataclasses.dataclass(frozen=True)
class FakeLayers:
    """What the matrices need of a LayerCollection."""

    layers: tuple[FakeLayer, ...]
    space: Layout
    through = ()

    def __iter__(self):
        return iter(self.layers)

    def __getitem__(self, name):
        return next(layer for layer in self.layers if layer.name == name)

    def views(self, v):
        self.space.check(v, "v")
        found = {}
        for layer in self:
            if not layer.kronecker:
                found[layer.name] = trees.get(v, layer.weight).reshape(self._size(layer.weight))
                continue
            w = trees.get(v, layer.weight)
            if layer.grouped:
                w = w.reshape(layer.groups, w.shape[0] // layer.groups, w[0].numel())
            w = w.mT if layer.transposed else w
            if layer.bias:
                b = trees.get(v, layer.bias).reshape(w.shape[:-1])
                w = torch.cat([w, b[..., None]], -1)
            found[layer.name] = w
        return found

    def tree(self, views):
        flat = {}
        for layer in self:
            w = views[layer.name]
            if layer.bias:
                flat[layer.bias], w = w[..., -1], w[..., :-1]
            flat[layer.weight] = w.mT if layer.transposed else w
        names = [trees.path_str(p) for p in self.space.paths]
        return self.space.unflatten([flat[n].reshape(s) for n, s in zip(names, self.space.shapes)])

    def _size(self, path):
        return dict(zip(map(trees.path_str, self.space.paths), self.space.sizes))[path]


PARAMS = {
    "a": {"weight": torch.zeros(4, 3), "bias": torch.zeros(4)},
    "conv": {"weight": torch.zeros(4, 2, 2), "bias": torch.zeros(4)},
    "emb": torch.zeros(5, 2),
    "idle": torch.zeros(2, 2),
    "m": torch.zeros(3, 2),
    "scale": torch.zeros(3),
    "t": torch.zeros(()),
}
LAYERS = FakeLayers(
    (
        FakeLayer("a", "linear", "a.weight", "a.bias"),
        FakeLayer("conv", "linear", "conv.weight", "conv.bias", groups=2),
        FakeLayer("emb", "linear", "emb", transposed=True, diagonal=True),
        FakeLayer("idle", "unused", "idle"),
        FakeLayer("m", "linear", "m", transposed=True),
        FakeLayer("scale", "exact", "scale"),
        FakeLayer("t", "exact", "t"),
    ),
    Layout.of(PARAMS),
)
SHAPES = {k: tuple(t.shape) for k, t in LAYERS.views(PARAMS).items()}
RANK = {"full": 20, "deficient": 1, "zero": 0, "ill": 20}  # rows in a second moment


def _source(seed, dtype, ill=False):
    generator = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def moment(n, rank, *groups):
        rows = randn(*groups, max(1, rank), n) * (rank > 0)
        if ill and n:  # condition about 1e9
            scales = torch.logspace(0, -4.5, n, dtype=dtype)
            rows = (rows / rank**0.5 * scales) @ torch.linalg.qr(randn(n, n)).Q.to(dtype)
            return (rows.mT @ rows + (rows.mT @ rows).mT) / 2
        return rows.mT @ rows / max(1, rank)

    return randn, moment


def kfac(data="full", dtype=torch.float64, seed=0):
    _, moment = _source(seed, dtype, data == "ill")
    factors, exact = {}, {}
    for layer in LAYERS:
        *groups, n = SHAPES[layer.name][:-1] if layer.kronecker else SHAPES[layer.name]
        if layer.kronecker:
            A = moment(SHAPES[layer.name][-1], RANK[data], *groups)
            factors[layer.name] = (A.diagonal().clone() if layer.diagonal else A, moment(n, RANK[data], *groups))
            if layer.diagonal and data != "full":
                factors[layer.name][0][0] = 0.0
        else:
            exact[layer.name] = torch.zeros((), dtype=dtype) if layer.kind == "unused" else moment(n, RANK[data])
    return PMatKFAC(factors, exact, LAYERS)


def blockdiag(data="full", dtype=torch.float64, seed=0):
    _, moment = _source(seed, dtype, data == "ill")
    size = {k: torch.zeros(s).numel() for k, s in SHAPES.items()}
    blocks = {layer.name: moment(size[layer.name], RANK[data]) for layer in LAYERS}
    return PMatBlockDiag(blocks | {"idle": torch.zeros((), dtype=dtype)}, LAYERS)


def dense(data="full", dtype=torch.float64, seed=0):
    _, moment = _source(seed, dtype, data == "ill")
    return PMatDense(moment(LAYERS.space.numel, (4 if data == "ill" else 2) * RANK[data]), LAYERS.space)


def diag(data="full", dtype=torch.float64, seed=0):
    randn, _ = _source(seed, dtype)
    found = {
        "full": lambda s: randn(*s) ** 2,
        "deficient": lambda s: randn(*s).clamp_min(0),
        "zero": lambda s: randn(*s) * 0,
        "ill": lambda s: 10 ** (1.5 * randn(*s)),
    }
    return PMatDiag(trees.map(lambda t: found[data](t.shape), PARAMS), LAYERS.space)


def quasidiag(data="full", dtype=torch.float64, seed=0):
    """The bias's variance is what the weights explain of it, and a rest where data is full: semi-definite."""
    randn, _ = _source(seed, dtype)
    views, cross = {}, {}
    for layer in LAYERS:
        view = randn(*SHAPES[layer.name]) ** 2 * (layer.kind != "unused")
        if layer.bias:
            c = randn(*view.shape[:-1], view.shape[-1] - 1)
            rest = view[..., -1] if data == "full" else 0.0
            explained = (c**2 / view[..., :-1]).sum(-1) * (1 + 1e-7 * (data == "ill"))
            view, cross[layer.name] = torch.cat([view[..., :-1], (explained + rest)[..., None]], -1), c
        views[layer.name] = view
    made = PMatQuasiDiag(LAYERS.tree(views), cross, LAYERS)
    return made * 0.0 if data == "zero" else made


def eye(data="full", dtype=torch.float64, seed=0):
    return PMatEye(torch.tensor(0.7 * (data == "full"), dtype=dtype), LAYERS.space)


MAKE = {
    "dense": dense,
    "diag": diag,
    "blockdiag": blockdiag,
    "quasidiag": quasidiag,
    "kfac": kfac,
    "ekfac": lambda *a, **k: kfac(*a, **k).eigendecomposition(),
    "eye": eye,
    "eigen": lambda *a, **k: dense(*a, **k).eigendecomposition(),
    "eigen by layers": lambda *a, **k: blockdiag(*a, **k).eigendecomposition(),
    "sum of kfacs": lambda *a, **k: kfac(*a, **k) + 2.0 * kfac(*a, **{**k, "seed": 1}),
    "kfac + diag": lambda *a, **k: kfac(*a, **k) + diag(*a, **k),
    "kfac + eye": lambda *a, **k: kfac(*a, **k) + eye(*a, **k),
}
KINDS = list(MAKE)


def vector(seed=0, dtype=torch.float64, lead=()):
    generator = torch.Generator().manual_seed(100 + seed)
    draw = lambda t: torch.randn((*lead, *t.shape), generator=generator, dtype=torch.float64).to(dtype)
    return trees.map(draw, PARAMS)


def rows(J, n):
    """Leaves `[*lead, *leaf]` with n leading axes as a matrix `[lead, d]`."""
    return torch.cat(
        [t.flatten(0, n - 1).flatten(1) if t.ndim > n else t.flatten()[:, None] for t in trees.leaves(J)], 1
    )
