"""A pass that was cut off goes on from its file to the bits of one that was not, at constant memory; other calls are refused."""

import contextlib
import dataclasses
import functools
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import vmap

import fisher
import growth
from linmaps import trees
from tests.test_files import same

N = 6


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


P = {"s": randn(1, 3).abs(), "w": randn(2, 4, 3), "b": randn(3, 4), "v": randn(4, 4, 3)}


def f(p, x):
    return torch.tanh(nn.functional.linear(x * p["s"], p["w"], p["b"])) @ p["v"]


X, T, W = randn(6, 4 * N, 3), torch.arange(4 * N) % 3, randn(7, 4 * N).abs()
LAYERS = fisher.LayerCollection.from_function(f, P, X[:4])


class Killed(Exception):
    pass


class Loader:
    """Batches that come again; the pass ends at a batch of the first round, or of a later one."""

    def __init__(self, at=None, order=range(N)):
        self.at, self.order, self.given = at, list(order), 0

    def __iter__(self):
        for n in self.order:
            if self.given == self.at:
                raise Killed
            self.given += 1
            own = slice(4 * n, 4 * n + 4)
            yield X[own], T[own], W[own]


DRAWN = {"estimator": "mc", "n_samples": 2}
CALLS = {
    **{R.__name__: (R, {}) for R in (
        fisher.PMatKFAC, fisher.PMatEKFAC, fisher.PMatDense, fisher.PMatDiag, fisher.PMatBlockDiag, fisher.PMatQuasiDiag,
        fisher.PMatLowRank, fisher.PMatEye)},
    "KFAC mc": (fisher.PMatKFAC, DRAWN),
    "EKFAC mc": (fisher.PMatEKFAC, DRAWN),
    "EKFAC in float64": (fisher.PMatEKFAC, {"dtype": torch.float64}),
    "KFAC reduce": (fisher.PMatKFAC, {"sharing": "reduce", "estimator": "empirical"}),
    "centered": (fisher.PMatDense, {"estimator": "gradient_covariance", "centered": True}),
    "mixed": (fisher.PMatMixed, {"layers_to": {"linear": fisher.PMatEKFAC, "matmul": fisher.PMatEKFAC}}),
}  # fmt: skip


def call(name, data, path, seed=0, every=2, **changed):
    representation, options = CALLS[name]
    generator = torch.Generator().manual_seed(seed) if "mc" in options.values() else None
    options = {"layers": LAYERS, "check_finite": False, **options, **changed}
    made = fisher.fim(f, P, data, representation, generator=generator, checkpoint=path, every=every, **options)
    return made, None if generator is None else generator.get_state()


@pytest.mark.parametrize("at", [1, 3, N + 3])
@pytest.mark.parametrize("name", CALLS)
def test_a_pass_goes_on_to_the_same_bits(name, at, tmp_path):
    path = tmp_path / "pass"
    with contextlib.suppress(Killed):
        call(name, Loader(at), path)
        assert at > N, "the pass was not cut off"
    assert path.exists() or at == 1 or CALLS[name][0] not in (fisher.PMatEKFAC, fisher.PMatMixed)
    same(call(name, Loader(), path), whole(name), memory=False)
    assert not path.exists()


@functools.cache
def whole(name):
    return call(name, Loader(), None)


def test_batches_that_are_done_are_not_computed_again(tmp_path):
    path, seen = tmp_path / "pass", []

    def watched(p, x):
        seen.append(len(x))
        return f(p, x)

    def run(at=None):
        seen.clear()
        fisher.fim(watched, P, Loader(at), layers=LAYERS, checkpoint=path, every=1, check_finite=False)
        return len(seen)

    whole = run()
    with pytest.raises(Killed):
        run(N - 1)
    assert run() <= whole - (N - 2)


def test_a_pass_that_is_cut_off_twice(tmp_path):
    path = tmp_path / "pass"
    for at in (2, 4, N + 2, 4):
        with pytest.raises(Killed):
            call("EKFAC mc", Loader(at), path, every=1)
    same(call("EKFAC mc", Loader(), path, every=1), whole("EKFAC mc"))


def cut_off(path, name="KFAC mc", **changed):
    with pytest.raises(Killed):
        call(name, Loader(5), path, **changed)


OTHER = {
    "params": lambda path: fisher.fim(f, {**P, "b": P["b"] + 1}, Loader(), checkpoint=path, **drawn()),
    "params (names and shapes)": lambda path: fisher.fim(
        lambda p, x: f(P, x) * p["q"], {"q": torch.ones(3)}, Loader(), checkpoint=path, **drawn()
    ),
    "generator": lambda path: call("KFAC mc", Loader(), path, seed=1),
    "n_samples": lambda path: call("KFAC mc", Loader(), path, n_samples=3),
    "representation": lambda path: call("EKFAC mc", Loader(), path),
    "likelihood": lambda path: call("KFAC mc", Loader(), path, likelihood="gaussian"),
    "estimator, generator, n_samples": lambda path: call("PMatKFAC", Loader(), path),
    "dtype": lambda path: call("KFAC mc", Loader(), path, dtype=torch.float64),
    "largest_block": lambda path: call("KFAC mc", Loader(), path, largest_block=3),
}  # fmt: skip


def drawn():
    return DRAWN | {"generator": torch.Generator().manual_seed(0)}


@pytest.mark.parametrize("name", OTHER)
def test_the_checkpoint_of_another_call_is_refused_by_what_differs(name, tmp_path):
    path = tmp_path / "pass"
    cut_off(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="pass: is the checkpoint of a call with other") as refused:
        OTHER[name](path)
    named = str(refused.value).partition("other ")[2].partition(", expected")[0]
    assert set(name.split(", ")) <= set(named.split(", ")), named
    assert path.read_bytes() == before


def test_other_data_and_another_function_are_refused(tmp_path):
    path = tmp_path / "pass"
    cut_off(path)
    with pytest.raises(ValueError, match=r"data: the first 4 batches are others than before.*same order"):
        call("KFAC mc", Loader(order=[0, 2, 1, *range(3, N)]), path)
    with pytest.raises(ValueError, match=r"data: the first batch is another than before"):
        call("KFAC mc", Loader(order=[1, 0, *range(2, N)]), path)
    with pytest.raises(ValueError, match=r"data: got 3 batches, of which 4 were done before"):
        call("KFAC mc", Loader(order=range(3)), path)
    with pytest.raises(ValueError, match=r"f: gives another output on the first batch"):
        fisher.fim(lambda p, x: 2 * f(p, x), P, Loader(), layers=LAYERS, checkpoint=path, **drawn())
    trees.save([1], path)
    with pytest.raises(ValueError, match=r"pass: got a file that is no checkpoint"):
        call("KFAC mc", Loader(), path)


def test_targets_that_change_places_are_noticed(tmp_path):
    path, batches = tmp_path / "pass", list(Loader())
    with pytest.raises(Killed):
        fisher.fim(f, P, ended(batches, 3), estimator="empirical", layers=LAYERS, checkpoint=path, every=1)
    x, t, *rest = batches[1]
    assert not torch.equal(t.flip(0), t)
    batches[1] = (x, t.flip(0), *rest)
    with pytest.raises(ValueError, match="the first 3 batches are others than before"):
        fisher.fim(f, P, batches, estimator="empirical", layers=LAYERS, checkpoint=path, every=1)


def ended(batches, at):
    yield from batches[:at]
    raise Killed


class Scaled(fisher.Gaussian):
    """A likelihood of a user's own, which no file can hold."""

    def __init__(self, scale, extra=None):
        super().__init__()
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "extra", extra)

    def root_part(self, y, start, stop):
        return self.scale * super().root_part(y, start, stop)


OWN = {
    "number": (lambda: Scaled(1.0), lambda: Scaled(3.0)),
    "tensor": (lambda: Scaled(torch.ones(1)), lambda: Scaled(torch.ones(1) + 1)),
    "array": (lambda: Scaled(1.0, np.ones(2)), lambda: Scaled(1.0, np.zeros(2))),
    "function": (lambda: Scaled(1.0, lambda x: x + 1), lambda: Scaled(1.0, lambda x: x + 2)),
    "closure": (lambda: Scaled(1.0, times(2)), lambda: Scaled(1.0, times(3))),
    "partial": (lambda: Scaled(1.0, functools.partial(max, 1)), lambda: Scaled(1.0, functools.partial(max, 2))),
    "module": (lambda: Scaled(1.0, linear(0)), lambda: Scaled(1.0, linear(1))),
    "containers": (lambda: Scaled(1.0, [{"a": times(2)}]), lambda: Scaled(1.0, [{"a": times(3)}])),
}


def times(c):
    return lambda x: c * x


def linear(seed):
    torch.manual_seed(seed)
    return torch.nn.Linear(1, 1)


@pytest.mark.parametrize("what", OWN)
def test_a_likelihood_of_ones_own_is_known_by_what_it_is_made_of(what, tmp_path):
    one, other = OWN[what]
    path, xs = tmp_path / "pass", [x for x, *_ in Loader()]
    run = lambda likelihood, data: fisher.fim(
        f, P, data, likelihood=likelihood, layers=LAYERS, checkpoint=path, every=1
    )
    with pytest.raises(Killed):
        run(one(), ended(xs, 3))
    with pytest.raises(ValueError, match="of a call with other likelihood"):
        run(other(), xs)
    same(run(one(), xs), fisher.fim(f, P, xs, likelihood=one(), layers=LAYERS))


def test_what_has_no_sums_is_refused(tmp_path):
    path = tmp_path / "pass"
    with pytest.raises(ValueError, match="checkpoint: got it with PMatImplicit"):
        fisher.fim(f, P, Loader(), fisher.PMatImplicit, checkpoint=path)
    grown = trees.map(lambda t: t.clone().requires_grad_(), P)
    with pytest.raises(ValueError, match="params: got tensors that require a gradient with checkpoint"):
        fisher.fim(f, grown, Loader(), checkpoint=path, every=1)
    with pytest.raises(ValueError, match=r"every: got 0"):
        fisher.fim(f, P, Loader(), checkpoint=path, every=0)
    for wrong in (3, torch.ones(1), b"a"):
        with pytest.raises(TypeError, match=r"checkpoint: got"):
            fisher.fim(f, P, Loader(), checkpoint=wrong)
    with pytest.raises(TypeError, match="outside of vmap"):
        vmap(lambda p: fisher.fim(f, p, X, checkpoint=path))(trees.stack([P, P]))
    assert not path.exists()


# --- statistics of growth ------------------------------------------------------------------------------------------

Q = {"a": {"weight": randn(0, 4, 3), "bias": randn(1, 4)}, "b": {"weight": randn(2, 3, 4), "bias": randn(3, 3)}}
PAIR = growth.Pair("a", "b")


def g(p, x):
    h = torch.tanh(nn.functional.linear(x.flatten(1), p["a"]["weight"], p["a"]["bias"]))
    return nn.functional.linear(h, p["b"]["weight"], p["b"]["bias"])


def pairs(data):
    return ((x, t) for x, t, _ in data)


@pytest.mark.parametrize("at", [1, 5, N - 1])
@pytest.mark.parametrize(
    "pair", [PAIR, [PAIR], dataclasses.replace(PAIR, activation=torch.tanh)], ids=["one", "list", "named"]
)
def test_statistics_go_on_to_the_same_bits(pair, at, tmp_path):
    path = tmp_path / "pass"
    with pytest.raises(Killed):
        growth.statistics(g, Q, pairs(Loader(at)), pair, checkpoint=path, every=1)
    got = growth.statistics(g, Q, pairs(Loader()), pair, checkpoint=path, every=1)
    same(got, growth.statistics(g, Q, pairs(Loader()), pair))
    assert not path.exists()


def test_statistics_of_another_call_are_refused(tmp_path):
    path = tmp_path / "pass"
    with pytest.raises(Killed):
        growth.statistics(g, Q, pairs(Loader(5)), PAIR, checkpoint=path, every=2)
    for name, options in {"loss": {"loss": "squared_error"}, "taps": {"taps": "centre"}}.items():
        with pytest.raises(ValueError, match=f"with other {name}"):
            growth.statistics(g, Q, pairs(Loader()), PAIR, checkpoint=path, **options)
    with pytest.raises(ValueError, match="with other pairs"):
        growth.statistics(g, Q, pairs(Loader()), growth.Pair("b", "a"), checkpoint=path)
    with pytest.raises(ValueError, match="data: the first batch is another"):
        growth.statistics(g, Q, pairs(Loader(order=[*range(1, N), 0])), PAIR, checkpoint=path)


# --- a process that ends ------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
import tests.fisher.passes.test_checkpoints as test

class Ends(test.Loader):
    def __iter__(self):
        for n, item in enumerate(super().__iter__()):
            self.rounds = getattr(self, "rounds", 0) + 1
            if self.rounds == test.N + 5:  # in the second stage, after some of its batches were kept
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

test.call("EKFAC mc", Ends(), sys.argv[1], every=2)
"""


@pytest.mark.slow
def test_a_process_that_was_killed_goes_on(tmp_path):
    path = tmp_path / "pass"
    code = textwrap.dedent(SCRIPT)
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert os.listdir(tmp_path) == ["pass"]
    assert trees.load(path)["stage"]["batches"] == 4
    same(call("EKFAC mc", Loader(), path), whole("EKFAC mc"))
    assert not path.exists()
