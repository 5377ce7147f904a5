"""Laws of modules whose layers keep sizes: as functions they follow the params, as into_module does."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.func import vmap

import fisher
import growth
from linmaps import trees
from tests.growth.interop.test_modules import WIDER
from tests.laws import close

G = torch.Generator().manual_seed(0)


class Conv1D(nn.Module):
    """As transformers has it."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.size()[:-1], self.nf)


def inputs(layer):
    """Inputs of a layer, as its own sizes say."""
    numbers = lambda *shape: torch.randn(*shape, generator=G, dtype=torch.float64)
    match layer:
        case nn.Bilinear():
            return numbers(5, layer.in1_features), numbers(5, layer.in2_features)
        case nn.Conv1d() | nn.ConvTranspose1d():
            return (numbers(2, layer.in_channels, 7),)
        case nn.Conv2d() | nn.ConvTranspose2d():
            return (numbers(2, layer.in_channels, 7, 7),)
        case nn.Conv3d():
            return (numbers(2, layer.in_channels, 4, 4, 4),)
        case nn.InstanceNorm2d():
            return (numbers(2, layer.num_features, 3, 3),)
        case nn.LayerNorm() | nn.RMSNorm():
            return (numbers(5, *layer.normalized_shape),)
        case nn.Embedding() | nn.EmbeddingBag():
            return (torch.randint(layer.num_embeddings, (3, 6), generator=G),)
        case nn.MultiheadAttention():
            return tuple(numbers(3, 2, n) for n in (layer.embed_dim, layer.kdim, layer.vdim))
    names = ("in_features", "input_size", "num_features", "num_channels", "num_parameters", "nx")
    width = next(getattr(layer, n) for n in names if hasattr(layer, n))
    return (numbers(3, 5, width) if isinstance(layer, nn.RNNBase) else numbers(5, width),)


def first(y):
    return y[0] if isinstance(y, tuple) else y


FOLLOWING = {
    **WIDER,
    Conv1D(6, 4): Conv1D(7, 5),
    nn.Sequential(nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 3), nn.GroupNorm(3, 3))): nn.Sequential(
        nn.LayerNorm(5), nn.Sequential(nn.Linear(5, 6), nn.GroupNorm(6, 6))
    ),
}


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")  # PReLU of torch under vmap
@pytest.mark.parametrize("old", FOLLOWING, ids=lambda m: str(m).replace("\n", ""))
def test_the_function_of_a_module_at_other_sizes_is_the_module_of_these_sizes(old):
    want = copy.deepcopy(FOLLOWING[old]).double().eval()
    old = copy.deepcopy(old).double().eval()
    x = inputs(want[0] if isinstance(want, nn.Sequential) else want)
    own = inputs(old[0] if isinstance(old, nn.Sequential) else old)
    kept = lambda: [{k: v for k, v in vars(m).items() if isinstance(v, (int, tuple))} for m in old.modules()]
    f, params = fisher.functional(old, buffers=True)
    q, sizes, at_rest = fisher.functional(want, buffers=True)[1], kept(), first(f(params, own))
    close(first(growth.into_module(old, q)(*x)).detach(), first(want(*x)).detach(), 0.0, "into_module")
    close(first(f(q, x)), first(want(*x)).detach(), 1e-14, "at other sizes")
    close(first(pickle.loads(pickle.dumps(f))(q, x)), first(f(q, x)), 0.0, "pickled")
    assert kept() == sizes
    assert all(torch.equal(t, old.state_dict()[n]) for n, t in params.items())
    close(first(f(params, own)), at_rest, 0.0, "at its own sizes again")
    with pytest.raises(TypeError):
        f(q, ())
    close(first(f(params, own)), at_rest, 0.0, "after an error")
    total = lambda p: first(f(p, x)).square().sum()
    grads = torch.func.grad(total)({n: t for n, t in q.items() if t.is_floating_point()})
    assert {n: g.shape for n, g in grads.items()} == {n: t.shape for n, t in q.items()}
    if isinstance(old, (nn.RNNBase, nn.RNNCellBase, nn.EmbeddingBag)):
        return  # torch does not map these
    both = vmap(lambda p: first(f(p, x)))(trees.stack([q, trees.scale(2.0, q)]))
    close(both, torch.stack([first(f(p, x)) for p in (q, trees.scale(2.0, q))]), 1e-12, "ensemble")


def test_threads_of_several_sizes_do_not_meet():
    torch.manual_seed(0)
    f = fisher.functional(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4)).double())[0]
    nets = [nn.Sequential(nn.LayerNorm(n), nn.Linear(n, n), nn.LayerNorm(n)).double() for n in (4, 5, 6, 7)]
    leaves = [fisher.functional(net)[1] for net in nets]
    x = [torch.randn(3, n, generator=G, dtype=torch.float64) for n in (4, 5, 6, 7)]
    want = [net(t).detach() for net, t in zip(nets, x)]

    def work(n):
        return all(torch.equal(f(leaves[n], x[n]), want[n]) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, [0, 1, 2, 3] * 2))


class Mobile(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.project, self.head = nn.Conv2d(4, 2, 1), nn.Linear(2, 3)

    def forward(self, x):
        h = nn.functional.relu6(self.depthwise(nn.functional.relu6(self.expand(x))))
        return self.head(self.project(h).mean((2, 3)))


class Stream(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.e, self.n, self.r, self.w = nn.Embedding(7, 4), norm(4), nn.Linear(4, 5), nn.Linear(5, 4)
        self.last, self.h = norm(4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.e(x)
        return self.h(self.last(h + self.w(torch.tanh(self.r(self.n(h))))))


GROWN = {  # module, its pair, the input of an example
    "depthwise": (Mobile, growth.Pair("expand", "project", depthwise="depthwise"), (1, 6, 6)),
    "conv1d": (
        lambda: nn.Sequential(Conv1D(6, 4), nn.Tanh(), Conv1D(3, 6)), growth.Pair("0", "2", layout="in_out"), (4,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GROWN)
def test_modules_that_keep_sizes_grow_from_data(name):
    make, pair, shape = GROWN[name]
    torch.manual_seed(0)
    module = make().double()
    f, params = fisher.functional(module)
    data = (torch.randn(16, *shape, generator=G, dtype=torch.float64), torch.arange(16) % 3)
    made = growth.step(f, params, data, pair, 1)
    assert made.grown < made.before
    close(growth.into_module(module, made.params)(data[0]).detach(), f(made.params, data[0]), 1e-14, "into_module")


@pytest.mark.parametrize(("norm", "kind"), [(nn.LayerNorm, "layer"), (nn.RMSNorm, "rms")])
def test_a_stream_of_torch_norms_widens_and_is_held_to_be_the_same(norm, kind):
    torch.manual_seed(0)
    module, x = Stream(norm).double(), torch.arange(6)
    f, params = fisher.functional(module)
    roles = {"embeddings": ["e"], "norms": ["n", "last"], "readers": ["r", "h"], "writers": ["w"]}
    wide = growth.widen_stream(params, roles, 2, torch.Generator().manual_seed(0), norm=kind, f=f, x=x)
    close(growth.into_module(module, wide)(x).detach(), f(params, x), 1e-12, "the function is kept")
