"""Hypothesis strategies for growth: small networks with a pair and data, graphs, statistics of random rows, new units.

Needs hypothesis, so `growth` itself does not import this file.  r inputs of the pair, p hidden units, q outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from growth.checks.losses import LossName
from growth.closed_form.neurons import optimal_neurons
from growth.closed_form.units import Neurons
from growth.graph.nodes import Graph, Node
from growth.moments.first_order import Statistics
from growth.reading.activations import Activation
from growth.reading.pairs import Pair

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: 1.0 * z,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "selu": F.selu,
    "relu": torch.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.2),
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
}
KINKED = ("relu", "leaky_relu", "selu")
SHIFTED = ("sigmoid", "softplus")


@dataclasses.dataclass(frozen=True)
class Network:
    """first -> tanh -> hidden -> activation -> output -> tanh -> head, the pair being (hidden, output).

    f(params, x): the function; x `[B, (T,) 3]`; target: classes or values; loss: the name of the loss.
    """

    f: Callable[[Any, Tensor], Tensor]
    params: Any
    x: Tensor
    target: Tensor
    loss: str
    pair: Pair
    activation: Callable[[Tensor], Tensor]
    bias: tuple[bool, bool]

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return self.x, self.target


def network(
    seed: int = 0,
    *,
    r: int = 3,
    p: int = 4,
    q: int = 3,
    samples: int = 12,
    positions: int = 0,
    activation: str = "tanh",
    bias: tuple[bool, bool] = (True, True),
    loss: LossName = "cross_entropy",
    flat: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Network:
    """One small network, the same for the same arguments; positions > 0 makes inputs `[B, T, 3]`; flat: dotted keys.

    >>> net = network(p=2)
    >>> net.f(net.params, net.x).shape
    torch.Size([12, 4])
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def layer(o: int, i: int, has_bias: bool) -> dict[str, Tensor]:
        weight = {"weight": normal(o, i) / max(i, 1) ** 0.5}
        return weight | ({"bias": 0.3 * normal(o)} if has_bias else {})

    act = ACTIVATIONS[activation]
    nested = {
        "first": layer(r, 3, True),
        "hidden": layer(p, r, bias[0]),
        "output": layer(q, p, bias[1]),
        "head": layer(4, q, True),
    }
    params: Any = {f"{a}.{b}": t for a, leaves in nested.items() for b, t in leaves.items()} if flat else nested

    def f(params: Any, x: Tensor) -> Tensor:
        def apply(name: str, x: Tensor) -> Tensor:
            leaves = {b: params.get(f"{name}.{b}") for b in ("weight", "bias")} if flat else params[name]
            return F.linear(x, leaves["weight"], leaves.get("bias"))

        hidden = act(apply("hidden", torch.tanh(apply("first", x))))
        return apply("head", torch.tanh(apply("output", hidden)))

    lead = (samples, positions) if positions else (samples,)
    x = normal(*lead, 3)
    classes = torch.randint(0, 4, lead, generator=generator)
    target = classes if loss == "cross_entropy" else normal(*lead, 4)
    return Network(f, params, x, target, loss, Pair("hidden", "output"), act, bias)


def networks(**fixed: Any) -> st.SearchStrategy[Network]:
    """Small networks of all kinds: sizes, biases, activations, losses, sequences, flat or nested.

    A keyword of `network` fixes that choice: `networks(p=0)`.  An activation with value at 0 gets the bias it needs.
    """
    choices: dict[str, st.SearchStrategy[Any]] = {
        "seed": st.integers(0, 10**6),
        "r": st.integers(1, 4),
        "p": st.integers(0, 4),
        "q": st.integers(1, 4),
        "samples": st.integers(1, 12),
        "positions": st.sampled_from([0, 3]),
        "activation": st.sampled_from(sorted(ACTIVATIONS)),
        "bias": st.tuples(st.booleans(), st.booleans()),
        "loss": st.sampled_from(["cross_entropy", "squared_error"]),
        "flat": st.booleans(),
    }

    def build(values: dict[str, Any]) -> Network:
        if values["activation"] in SHIFTED:
            values = values | {"bias": (values["bias"][0], True)}
        return network(**values)

    drawn = {k: st.just(fixed[k]) if k in fixed else s for k, s in choices.items()}
    rest = {k: st.just(v) for k, v in fixed.items() if k not in choices}
    return st.fixed_dictionaries({**drawn, **rest}).map(build)


def rows(seed: int, n: int, r: int, p: int, q: int, deficient: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Random b2 `[n, r]`, b1 `[n, p]`, g `[n, q]`; deficient: the last column of b2 and b1 repeats the first."""
    generator = torch.Generator().manual_seed(seed)
    b2, b1, g = (torch.randn(n, d, generator=generator, dtype=torch.float64) for d in (r, p, q))
    if deficient:
        b2, b1 = (torch.cat([b[:, :-1], b[:, :1]], 1) for b in (b2, b1))
    return b2, b1, g


def from_rows(b2: Tensor, b1: Tensor, g: Tensor, bias: tuple[bool, bool] = (True, True)) -> Statistics:
    """The statistics of given rows, one per sample, by their definition; activation tanh.

    >>> from_rows(torch.ones(2, 3), torch.ones(2, 1), torch.ones(2, 2)).P.shape
    torch.Size([4, 2])
    """
    n = g.shape[0]
    b2, b1 = (torch.cat([b, g.new_ones(n, int(has))], 1) for b, has in zip((b2, b1), bias))
    one = torch.ones((), dtype=g.dtype)
    return Statistics(
        S=b1.mT @ b1 / n,
        M=b1.mT @ g / n,
        S_prev=b2.mT @ b2 / n,
        M_prev=b2.mT @ g / n,
        P=b2.mT @ b1 / n,
        E=g.mT @ g / n,
        count=n * one,
        positions=n * one,
        sigma0=0 * one,
        slope_plus=one,
        slope_minus=one,
        bias_before=bias[0],
        bias_after=bias[1],
        pair=Pair("hidden", "output"),
    )


def statistics(max_size: int = 4) -> st.SearchStrategy[Statistics]:
    """Statistics of random rows: any sizes up to `max_size`, any biases, with and without full rank."""
    size = st.integers(1, max_size)
    arguments = st.tuples(st.integers(0, 10**6), st.integers(1, 20), size, size, size, st.booleans())
    biases = st.tuples(st.booleans(), st.booleans())
    return st.builds(lambda a, b: from_rows(*rows(*a), bias=b), arguments, biases)


@dataclasses.dataclass(frozen=True)
class ConvolutionalNetwork(Network):
    """The same of convolutions: x `[B, 3, H, W]`, hidden 2 x 2, output of any geometry or dense behind the flattened map."""

    taps: int = 1


def convolutional_network(
    seed: int = 0,
    *,
    p: int = 3,
    q: int = 3,
    samples: int = 12,
    size: int = 5,
    kernel: int | None = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    activation: str = "tanh",
    bias: tuple[bool, bool] = (True, True),
    dtype: torch.dtype = torch.float64,
) -> ConvolutionalNetwork:
    """One small convolutional network; kernel: of the layer `output`, None for a dense one behind the flattened map.

    >>> net = convolutional_network(kernel=None)
    >>> net.f(net.params, net.x).shape, net.params["output"]["weight"].shape
    (torch.Size([12, 4]), torch.Size([3, 48]))
    """
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def layer(has_bias: bool, *shape: int) -> dict[str, Tensor]:
        weight = {"weight": normal(*shape) / max(1, shape[1]) ** 0.5}
        return weight | ({"bias": 0.3 * normal(shape[0])} if has_bias else {})

    output = (q, p, kernel, kernel) if kernel is not None else (q, p * (size - 1) ** 2)
    params = {"hidden": layer(bias[0], p, 3, 2, 2), "output": layer(bias[1], *output), "head": layer(True, 4, q)}
    act = ACTIVATIONS[activation]

    def f(params: Any, x: Tensor) -> Tensor:
        leaves = lambda name: (params[name]["weight"], params[name].get("bias"))
        h = act(F.conv2d(x, *leaves("hidden")))
        if kernel is None:
            a = F.linear(h.flatten(1), *leaves("output"))
        else:
            a = F.conv2d(h, *leaves("output"), stride=stride, padding=padding, dilation=dilation)
        return F.linear(torch.tanh(a).flatten(2).mean(-1) if kernel is not None else torch.tanh(a), *leaves("head"))

    x, target = normal(samples, 3, size, size), torch.randint(0, 4, (samples,), generator=generator)
    taps = kernel**2 if kernel is not None else (size - 1) ** 2
    return ConvolutionalNetwork(f, params, x, target, "cross_entropy", Pair("hidden", "output"), act, bias, taps)


def convolutional_networks(**fixed: Any) -> st.SearchStrategy[ConvolutionalNetwork]:
    """Small convolutional networks: widths, biases, activations, kernels, strides, paddings, flattened maps.

    A keyword of `convolutional_network` fixes that choice.
    """
    choices: dict[str, st.SearchStrategy[Any]] = {
        "seed": st.integers(0, 10**6),
        "p": st.integers(1, 4),
        "q": st.integers(1, 4),
        "samples": st.integers(1, 12),
        "size": st.integers(4, 6),
        "kernel": st.sampled_from([None, 1, 2, 3]),
        "stride": st.integers(1, 2),
        "padding": st.integers(0, 1),
        "activation": st.sampled_from(sorted(set(ACTIVATIONS) - set(SHIFTED))),
        "bias": st.tuples(st.booleans(), st.booleans()),
    }
    drawn = {k: st.just(fixed[k]) if k in fixed else s for k, s in choices.items()}
    rest = {k: st.just(v) for k, v in fixed.items() if k not in choices}
    return st.fixed_dictionaries({**drawn, **rest}).map(lambda values: convolutional_network(**values))


def random_graph(seed: int, size: int, activations: Sequence[Activation | None] = (None, torch.tanh, F.gelu)) -> Graph:
    """A graph of this many nodes, their order in the tuple included; widths 0 to 3, every acyclic edge with probability 1/2.

    >>> random_graph(0, 3).order()[0]
    'a'
    """
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: int(torch.randint(0, n, (), generator=generator))
    names = [chr(ord("a") + i) for i in range(size)]
    nodes = [Node(names[0], 1 + draw(3))]
    nodes += [Node(n, draw(4), activations[draw(len(activations))], bool(draw(3))) for n in names[1:-1]]
    nodes += [Node(names[-1], 1 + draw(3), None, bool(draw(3)))]
    pairs = [(u, v) for i, u in enumerate(nodes) for v in nodes[i + 1 :]]
    edges = [(u.name, v.name) for u, v in pairs if draw(2)]
    identities = [(u.name, v.name) for u, v in pairs if u.width == v.width and draw(2)]
    inner = torch.randperm(size - 2, generator=generator).tolist()
    return Graph((nodes[0], *(nodes[1 + i] for i in inner), nodes[-1]), tuple(edges), tuple(identities))


SMOOTH = (None, *(ACTIVATIONS[n] for n in ("tanh", "gelu", *SHIFTED)))


def graphs(max_size: int = 5) -> st.SearchStrategy[Graph]:
    """Graphs of two to `max_size` nodes with activations smooth at 0."""
    return st.builds(
        lambda seed, size: random_graph(seed, size, SMOOTH), st.integers(0, 10**6), st.integers(2, max_size)
    )


def neurons(max_size: int = 4) -> st.SearchStrategy[Neurons]:
    """New units: the optimal ones of random statistics, masked ones among them."""
    return st.builds(optimal_neurons, statistics(max_size), st.integers(0, max_size + 1))
