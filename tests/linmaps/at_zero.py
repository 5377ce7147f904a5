"""What the registry says of the W of params that are all 0, as predicates of a spec and that W; numpy only."""

import dataclasses
import itertools

import numpy as np
import torch

from linmaps.numerics.orthogonal.rotations import haar_rotation


def eye(spec):
    return np.eye(spec.in_features, spec.out_features)


def middle(spec):
    return (spec.sigma_min + spec.sigma_max) / 2


def near(W, want):
    return bool(np.abs(W - want).max() <= 1e-12)


def uniform(spec, W):
    return near(W, W[0, 0]) and W[0, 0] > 0


def of_norm(spec, W):
    """The identity rescaled to the middle of the bounds."""
    norm = np.linalg.norm(W, np.inf if spec.p == "inf" else spec.p)
    return abs(norm - middle(spec)) < 1e-12 and near(W / W[0, 0], eye(spec))


def repeated(spec, W):
    n, m = W.shape
    rows, columns = np.arange(n)[:, None], np.arange(m)
    ones = rows == columns % n if spec.axis == "out" else columns == rows % m
    return near(W, spec.radius * ones)


def mean_of_choices(spec, W):
    """Over all corners of the logits, each a permutation."""
    spec = dataclasses.replace(spec, bias=False)
    shape = spec.shapes()["logits"]
    corners = list(itertools.product((-60.0, 60.0), repeat=shape[0] * shape[1]))
    found = [spec.effective_W({"logits": torch.tensor(c, dtype=torch.float64).reshape(shape)}) for c in corners]
    return near(W, torch.stack(found).mean(0).numpy())


def schur(spec, W):
    want = spec.gamma_max / 2 * eye(spec)
    if len(W) % 2:
        want[-1, -1] = 0
    return near(W, want)


def based(spec, W):
    """The base, or the identity but for signs."""
    if spec.base is None:
        return near(np.abs(W), eye(spec))
    rows = max(W.shape)
    B = haar_rotation(spec.base, torch.zeros(rows, rows, dtype=torch.float64)).numpy()
    wide = W if W.shape[0] == rows else W.T
    return near(np.abs(wide), np.abs(B[:, : wide.shape[1]]))


def cut(spec, W):
    """A multiple of the identity, but for signs, above sigma_min, on as many axes as the rank."""
    rank = getattr(spec, "rank", len(W))
    want = eye(spec) * (np.arange(len(W)) < rank)[:, None]
    W = np.abs(W)
    return W[0, 0] > spec.sigma_min and near(W, W[0, 0] * want)


WORDS = {
    "0": lambda spec, W: not W.any(),
    "I": lambda spec, W: near(W, eye(spec)),
    "eps I": lambda spec, W: near(W, spec.eps * eye(spec)),
    "epsilon I": lambda spec, W: near(W, spec.epsilon * eye(spec)),
    "-margin I": lambda spec, W: near(W, -spec.margin * eye(spec)),
    "(margin + log 2) I": lambda spec, W: near(W, (spec.margin + np.log(2)) * eye(spec)),
    "m I": lambda spec, W: near(W, middle(spec) * eye(spec)),
    "-m I (discrete: m I)": lambda spec, W: near(W, (-1) ** (spec.time == "continuous") * middle(spec) * eye(spec)),
    "I, norm m (soft: 0)": lambda spec, W: not W.any() if spec.soft else of_norm(spec, W),
    "gamma_max / 2 I, odd n: a 0": schur,
    "diag(+-1)": lambda spec, W: near(np.abs(W), eye(spec)),
    "diag(+-1) (base: that)": based,
    "c diag(+-1), cut": cut,
    "c I (sigma_max: m I)": lambda spec, W: (
        cut(spec, W) and W[0, 0] > 0 if spec.sigma_max is None else near(W, middle(spec) * eye(spec))
    ),
    "diag(+-m)": lambda spec, W: near(np.abs(W), middle(spec) * eye(spec)),
    "radius I, repeated": repeated,
    "0 (rotation: I)": lambda spec, W: near(W, eye(spec)) if spec.blocks == "rotation" else not W.any(),
    "0 (positive, unit: I)": lambda spec, W: near(W, eye(spec)) if spec.diagonal != "free" else not W.any(),
    "uniform": uniform,
    "uniform (relu, square: 0)": lambda spec, W: not W.any() if spec.method in ("relu", "square") else uniform(spec, W),
    "uniform (orthostochastic: I)": lambda spec, W: (
        near(W, eye(spec)) if spec.method == "orthostochastic" else uniform(spec, W)
    ),
    "mean of all choices": mean_of_choices,
}
