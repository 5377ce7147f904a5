"""Layers of tensorly-torch become specs and params by value: stand-ins with its attributes, and its own where installed."""

import functools
import itertools
import math
import string
import warnings

import pytest
import torch
from torch import nn

import linmaps
from linmaps.interop.tltorch import convert
from tests.linmaps import tensor_peer

PEER = tensor_peer.tltorch()
needs_peer = pytest.mark.skipif(PEER is None, reason=tensor_peer.ABSENT)

NAMES = {"dense": "DenseTensorized", "cp": "CPTensorized", "tucker": "TuckerTensorized", "blocktt": "BlockTT"}
PEER_NAMES = {"dense": "Dense", "cp": "CP", "tucker": "Tucker", "blocktt": "BlockTT"}
COMPLEX = {"dense": "ComplexDense", "cp": "ComplexCP", "tucker": "ComplexTucker", "blocktt": "ComplexTT"}
RANKS = {"dense": "same", "cp": 5, "tucker": (2, 3, 4, 2, 5, 3), "blocktt": (1, 3, 4, 1)}
O, I = (4, 3, 5), (2, 3, 4)


def draw(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=dtype)


def close(got, want, tolerance=1e-12):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max()


def clean(spec, params):
    """Leaves that are of the spec, whole, and free."""
    assert {k: tuple(t.shape) for k, t in params.items()} == spec.shapes()
    assert all(not t.requires_grad and t.is_contiguous() for t in params.values())


# --- stand-ins -------------------------------------------------------------------------------------------------------


class Box(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        for key, value in attributes.items():
            setattr(self, key, nn.Parameter(value) if isinstance(value, torch.Tensor) else value)


def boxed(name, **attributes):
    return type(name, (Box,), {})(**attributes)


def tensor_of(kind, L, rows, columns, leaves):
    """Matrices [(L,) rows, columns] by one sum over all indices."""
    letters = iter(string.ascii_letters)
    lead, a, b = (tuple(itertools.islice(letters, n)) for n in (int(L > 1), len(rows), len(columns)))
    modes = lead + a + b
    if kind == "dense":
        return leaves[0].clone()
    if kind == "cp":
        r = next(letters)
        terms = [r, *(m + r for m in modes)]
    elif kind == "tucker":
        r = [next(letters) for _ in modes]
        terms = ["".join(r), *(m + n for m, n in zip(modes, r))]
    else:
        r = [next(letters) for _ in range(len(a) + 1)]
        terms = [r[k] + "".join(lead) + a[k] + b[k] + r[k + 1] for k in range(len(a))]
    T = torch.einsum(",".join(terms) + "->" + "".join(modes), *leaves)
    return T.reshape(*([L] if L > 1 else []), math.prod(rows), math.prod(columns))


def weight_of(kind, L, rows, columns, r, name=None, ranks=None):
    """A weight with random leaves, and its matrices; real numbers in store for a name with Complex."""
    modes, ranks = ((L,) if L > 1 else ()) + rows + columns, RANKS[kind] if ranks is None else ranks
    if kind == "dense":
        shapes = [(*([L] if L > 1 else []), math.prod(rows), math.prod(columns))]
    elif kind == "cp":
        shapes = [(ranks,), *((s, ranks) for s in modes)]
    elif kind == "tucker":
        ranks = ((2,) if L > 1 else ()) + ranks
        shapes = [ranks, *zip(modes, ranks)]
    else:
        lead = (L,) if L > 1 else ()
        shapes = [(ranks[k], *lead, o, i, ranks[k + 1]) for k, (o, i) in enumerate(zip(rows, columns))]
    name = name or NAMES[kind]
    of_pairs = name.startswith("Complex")
    stored = [r(*shape, 2) if of_pairs else r(*shape) for shape in shapes]
    leaves = [torch.view_as_complex(t) for t in stored] if of_pairs else stored
    first = {"dense": ["tensor"], "cp": ["weights"], "tucker": ["core"], "blocktt": []}[kind]
    factors = stored[len(first) :]
    keys = [f"factor_{10 - k}" for k in range(len(factors))]  # their order is that of the list
    attributes = dict(zip(first, stored)) | ({"factors": Box(**dict(zip(keys, factors)), keys=keys)} if factors else {})
    shape = (*([L] if L > 1 else []), rows, columns)
    return boxed(name, tensorized_shape=shape, **attributes), tensor_of(kind, L, rows, columns, leaves)


def linear_of(weight, bias=None, L=1, implementation="factorized", checkpointing=False):
    rows, columns = weight.tensorized_shape[-2:]
    sizes = {"in_features": math.prod(columns), "out_features": math.prod(rows), "n_layers": L}
    options = {"implementation": implementation, "checkpointing": checkpointing}
    return boxed("FactorizedLinear", weight=weight, bias=bias, **sizes, **options)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("L", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers(kind, paired, L, bias):
    r = draw(0)
    weight, M = weight_of(kind, L, O, I, r, ("Complex" if paired else "") + NAMES[kind])
    b = r(*([L] if L > 1 else []), 60).to(M.dtype) if bias else None
    module = linear_of(weight, b, L, checkpointing=True)
    spec, params = convert(module)
    clean(spec, params)
    ranks = (2, *RANKS[kind]) if kind == "tucker" and L > 1 else RANKS[kind]
    options = {"factorization": kind, "rank": ranks, "implementation": "factorized", "checkpointing": True}
    assert spec == linmaps.Factorized(I, O, **options, compat=True, n_layers=L, bias=bias)
    x = draw(1)(2, 7, 24).to(M.dtype)
    for layer in range(L):
        one, own = (M, b) if L == 1 else (M[layer], b[layer] if bias else None)
        close(spec.apply(params, x, layer), x @ one.mT + (own if bias else 0))
        if L > 1:
            part, leaves = convert(boxed("SubFactorizedLinear", main_linear=module, indices=layer - L))
            clean(part, leaves)
            assert part.n_layers == 1
            close(part.apply(leaves, x), x @ one.mT + (own if bias else 0))


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("L", [1, 3])
def test_embeddings(kind, L):
    weight, M = weight_of(kind, L, O, I, draw(0))
    sizes = {"num_embeddings": 60, "embedding_dim": 24, "n_layers": L}
    module = boxed("FactorizedEmbedding", weight=weight, **sizes)
    spec, params = convert(module)
    clean(spec, params)
    assert (spec.in_shape, spec.out_shape, spec.bias) == (O, I, False)
    idx = torch.tensor([[0, 59, 7], [31, 7, 12]])
    for layer in range(L):
        close(spec.rows(params, idx, layer), M[idx] if L == 1 else M[layer][idx])
    close(spec.effective_W(params), M)
    if L > 1:
        part, leaves = convert(boxed("SubFactorizedEmbedding", main_layer=module, indices=2))
        close(part.rows(leaves, idx), M[2][idx])


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("paired", [False, True])
def test_nothing_is_shared(kind, paired):
    weight, M = weight_of(kind, 1, O, I, draw(0), ("Complex" if paired else "") + NAMES[kind])
    module = linear_of(weight, torch.zeros(60, dtype=M.dtype))
    spec, params = convert(module)
    with torch.no_grad():
        for t in module.parameters():
            t.fill_(7.0)
    close(spec.effective_W(params), M.mT)
    assert torch.equal(params["bias"], torch.zeros(60, dtype=M.dtype))


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("L", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_copied_as_it_is(kind, L, dtype):
    weight, _ = weight_of(kind, L, O, I, draw(0))
    module = linear_of(weight, torch.ones(60) if L == 1 else torch.ones(L, 60), L).to(dtype)
    spec, params = convert(module)
    whole, wanted = convert(module.double())
    assert spec == whole
    assert params.keys() == wanted.keys()
    assert all(torch.equal(t, wanted[k].to(dtype)) for k, t in params.items())
    if L > 1:
        one, leaves = convert(boxed("SubFactorizedLinear", main_linear=module.to(dtype), indices=1))
        _, wanted = convert(boxed("SubFactorizedLinear", main_linear=module.float(), indices=1))
        assert all(torch.equal(t, wanted[k].to(dtype)) for k, t in leaves.items())
        clean(one, leaves)


def test_complex_numbers_of_half_precision_and_of_two_precisions():
    weight, _ = weight_of("cp", 1, O, I, draw(0), "ComplexCPTensorized")
    module = linear_of(weight, torch.ones(60, dtype=torch.complex64)).bfloat16()
    _, params = convert(module)
    assert {t.dtype for t in params.values()} == {torch.complex64}
    assert torch.equal(torch.view_as_real(params["weights"]), module.weight.weights.detach().float())
    assert {t.dtype for t in convert(module.double())[1].values()} == {torch.complex128}


def test_tied_factors_dense_tensors_and_shapes_of_ints():
    weight, _ = weight_of("cp", 1, (4, 4), (4, 4), draw(0))
    weight.factors.factor_9 = weight.factors.factor_10
    M = tensor_of("cp", 1, (4, 4), (4, 4), [weight.weights, *(getattr(weight.factors, k) for k in weight.factors.keys)])
    spec, params = convert(linear_of(weight))
    assert torch.equal(params["U0"], params["U1"])
    close(spec.effective_W(params), M.detach().mT)
    T = draw(1)(*O, *I)
    spec, params = convert(linear_of(boxed("DenseTensorized", tensor=T, tensorized_shape=(O, I))))
    assert torch.equal(params["W"], T.reshape(60, 24).mT)
    weight, M = weight_of("tucker", 1, (4,), (6,), draw(2), ranks=(3, 2))
    module = linear_of(weight)
    weight.tensorized_shape = [4, 6]
    spec, params = convert(module)
    assert spec.out_shape == (4,)
    close(spec.effective_W(params), M.mT)


# --- what is refused -------------------------------------------------------------------------------------------------


def of(kind="cp", L=1, **changes):
    module = linear_of(weight_of(kind, L, O, I, draw(0))[0], L=L)
    for key, value in changes.items():
        target = functools.reduce(getattr, key.split("__")[:-1], module)
        setattr(target, key.split("__")[-1], value)
    return module


def hooked(register):
    module = of("tucker")
    getattr(module.weight, register)(type("TuckerDropout", (), {"__call__": lambda self, *arguments: None})())
    return module


def without(name):
    module = of()
    delattr(module.weight, name)
    return module


REFUSED = {
    "a hook": (
        lambda: hooked("register_forward_hook"), ValueError,
        r"FactorizedLinear whose weight has hooks \(TuckerDropout\), expected none.* remove them",
    ),
    "a hook before": (lambda: hooked("register_forward_pre_hook"), ValueError, r"hooks \(TuckerDropout\), expected none"),
    "another weight": (
        lambda: of(weight=boxed("TTTensor")), ValueError,
        r"FactorizedLinear whose weight is a TTTensor, expected one of \['DenseTensorized', .*from_matrix",
    ),
    "a matrix": (
        lambda: boxed("FactorizedLinear", weight=torch.ones(2, 2)), TypeError,
        r"FactorizedLinear whose weight is Parameter, expected a factorized matrix, as in tensorly-torch; .*from_matrix",
    ),
    "no layers": (lambda: of(n_layers=None), TypeError, r"whose n_layers is NoneType, expected an int"),
    "no shapes": (lambda: of(weight__tensorized_shape=None), TypeError, r"CPTensorized whose tensorized_shape is NoneType"),
    "more layers": (
        lambda: of(n_layers=3), ValueError, r"of 3 layers whose weight has the shape \(\(4, 3, 5\), \(2, 3, 4\)\), expected",
    ),
    "fewer layers": (lambda: of(L=3, n_layers=1), ValueError, r"of 1 layers whose weight has the shape \(3, \(4, 3, 5\)"),
    "other sizes": (
        lambda: of(in_features=16), ValueError, r"whose in_features is 16, expected 24, as its weight .* \(2, 3, 4\); make",
    ),
    "other rows": (lambda: of(out_features=16), ValueError, r"whose out_features is 16, expected 60"),
    "unequal numbers of modes": (
        lambda: of("blocktt", weight__tensorized_shape=((4, 15), I)), ValueError,
        r"whose BlockTT has the shapes \(4, 15\) and \(2, 3, 4\), expected as many modes.* padded by ones",
    ),
    "no leaf": (lambda: without("weights"), TypeError, r"whose CPTensorized has no tensor weights"),
    "no factors": (lambda: without("factors"), TypeError, r"CPTensorized whose factors is NoneType, expected a list"),
    "no keys": (lambda: of(weight__factors__keys=None), TypeError, r"Box whose keys is NoneType, expected a list of names"),
    "an unknown key": (lambda: of(weight__factors__keys=["f"]), TypeError, r"has no tensor factors.f"),
    "too few factors": (
        lambda: of("blocktt", weight__factors__keys=["factor_10"]), TypeError, r"leaves {'A0': .*}, expected 3 of them",
    ),
    "another factor": (
        lambda: of(weight__factors__factor_10=nn.Parameter(torch.ones(4, 4))), TypeError,
        r"CPTensorized has leaves .*'U0': \(4, 4\).*, expected .*'U0': \(4, 5\)",
    ),
    "another core": (
        lambda: of("tucker", weight__core=nn.Parameter(torch.ones(2, 2))), TypeError, r"leaves {'core': \(2, 2\).*expected",
    ),
    "another tensor": (
        lambda: of("dense", weight__tensor=nn.Parameter(torch.ones(24, 60))), TypeError,
        r"leaves {'W': \(24, 60\)}, expected {'W': \(60, 24\)}",
    ),
    "a bias of another size": (lambda: of(bias=nn.Parameter(torch.ones(5))), TypeError, r"bias is \(5,\), .* \(60,\)"),
    "no implementation": (lambda: of(implementation=None), TypeError, r"whose implementation is NoneType, expected 'fact"),
    "a layer beyond": (
        lambda: boxed("SubFactorizedLinear", main_linear=of(L=3), indices=3), ValueError,
        r"SubFactorizedLinear whose indices is 3, expected one of several layers; there are 3",
    ),
    "a layer of one": (
        lambda: boxed("SubFactorizedLinear", main_linear=of(), indices=0), ValueError, r"indices is 0, .*; there are 1",
    ),
    "a list of layers": (
        lambda: boxed("SubFactorizedLinear", main_linear=of(L=3), indices=[0]), TypeError, r"indices is list, expected an int",
    ),
    "none of a layer": (lambda: boxed("SubFactorizedEmbedding"), TypeError, r"whose main_layer is NoneType"),
    "numbers that are no pairs": (
        lambda: linear_of(boxed("ComplexCPTensorized", tensorized_shape=(O, I), weights=torch.ones(5))), TypeError,
        r"ComplexCPTensorized has weights of torch.float32 and shape \(5,\), expected real numbers with a last axis of 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_cure(case):
    make, error, text = REFUSED[case]
    with pytest.raises(error, match="from_module: ") as caught:
        convert(make())
    assert caught.match(text)
    assert ";" in str(caught.value) or ", as they change" in str(caught.value)


def test_other_modules_and_derived_classes():
    assert convert(nn.Linear(3, 2)) is None
    assert convert(of().weight) is None
    module = of()
    derived = type("Mine", (type(module),), {})
    module.__class__ = derived
    assert convert(module)[0].factorization == "cp"
    module.__class__ = type("Mine", (derived,), {"forward": lambda self, x: x})
    assert convert(module) is None


# --- the peer's own --------------------------------------------------------------------------------------------------


def silent(f):
    @functools.wraps(f)
    def call(*arguments, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*arguments, **options)

    return call


@silent
def layer_of(kind, n_layers=1, shapes=(I, O), rank=0.4, names=PEER_NAMES, cls="FactorizedLinear", **options):
    """A layer of the peer with numbers far from its init."""
    make = getattr(PEER, cls)
    module = make(*shapes, factorization=names[kind], rank=rank, n_layers=n_layers, **options)
    r = draw(3)
    with torch.no_grad():
        for t in [*module.parameters(), *module.buffers()]:
            numbers = r(*t.shape, 2) if t.is_complex() else r(*t.shape)
            t.detach().copy_(torch.view_as_complex(numbers) if t.is_complex() else numbers)
    return module


@silent
def agrees(module, tolerance, dtype, works=True):
    """Like the module where its own forward works, and like its matrix in any case."""
    spec, params = convert(module)
    clean(spec, params)
    assert all(t.dtype == dtype for t in params.values())
    L = module.n_layers
    M = module.weight.to_matrix().detach().reshape(L, spec.out_features, spec.in_features)
    x = torch.view_as_complex(draw(4)(6, spec.in_features, 2)) if dtype.is_complex else draw(4)(6, spec.in_features)
    x = x.to(dtype)
    for layer in range(L):
        bias = 0 if module.bias is None else (module.bias if L == 1 else module.bias[layer]).detach()
        got = spec.apply(params, x, layer)
        close(got, x @ M[layer].mT + bias, tolerance)
        if works:
            close(got, (module(x) if L == 1 else module(x, layer)).detach(), tolerance)
    return spec, params


@needs_peer
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("implementation", ["factorized", "reconstructed"])
@pytest.mark.parametrize("L", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_of_the_peer(kind, implementation, L, bias):
    works = kind != "tucker" or L == 1
    module = layer_of(kind, L, implementation=implementation, bias=bias)
    spec, _ = agrees(module, 1e-6, torch.float32, works)
    assert (spec.implementation, spec.bias, spec.n_layers, spec.compat) == (implementation, bias, L, True)
    if kind not in ("dense", "blocktt") or (kind, L) == ("blocktt", 1):
        asked = linmaps.Factorized(I, O, factorization=kind, rank=0.4, compat=True, n_layers=L, bias=bias)
        assert spec.ranks == asked.ranks, "a stored checkpoint fits the spec of the same fraction"
    agrees(module.double(), 1e-12, torch.float64, works)


@needs_peer
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("implementation", ["factorized", "reconstructed"])
@pytest.mark.parametrize("L", [1, 3])
def test_complex_layers_of_the_peer(kind, implementation, L):
    works = kind != "tucker" or L == 1
    module = layer_of(kind, L, names=COMPLEX, implementation=implementation, dtype=torch.cfloat)
    agrees(module, 1e-6, torch.complex64, works)
    module.bias.data = module.bias.data.to(torch.complex128)
    agrees(module.double(), 1e-12, torch.complex128, works)


@needs_peer
@pytest.mark.parametrize("kind", ["cp", "tucker"])
def test_complex_numbers_and_other_numbers_of_modes(kind):
    module = layer_of(kind, dtype=torch.cfloat)
    agrees(module, 1e-6, torch.complex64)
    works = kind == "cp"
    agrees(layer_of(kind, shapes=((6, 4), O)).double(), 1e-12, torch.float64, works)
    agrees(layer_of(kind, shapes=(I, (60,))).double(), 1e-12, torch.float64, works)


@needs_peer
@pytest.mark.parametrize("kind", ["cp", "tucker", "blocktt"])
@pytest.mark.parametrize("rank", ["same", 2.0, 7])
def test_ranks_beyond_the_sizes(kind, rank):
    agrees(layer_of(kind, shapes=((3, 4), (2, 5)), rank=rank).double(), 1e-12, torch.float64)


@needs_peer
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("bias", [False, True])
def test_decompositions_of_the_peer(kind, bias):
    linear = nn.Linear(36, 24, bias=bias)
    make = silent(PEER.FactorizedLinear.from_linear)
    few = {"decomposition_kwargs": {"n_iter_max": 2}} if kind in ("cp", "tucker") else {}
    module = make(linear, rank="same", factorization=PEER_NAMES[kind], n_tensorized_modes=3, bias=bias, **few).double()
    spec, params = agrees(module, 1e-12, torch.float64)
    if kind == "blocktt":
        assert spec.ranks == (1, 6, 11, 1), "cut below what was asked for"
    if bias:
        assert params["bias"].data_ptr() != linear.bias.data_ptr()


@needs_peer
def test_lists_of_layers_of_the_peer():
    linears = [nn.Linear(24, 60) for _ in range(3)]
    joint = silent(PEER.FactorizedLinear.from_linear_list)
    for kind, works in (("dense", True), ("cp", True), ("tucker", False)):
        options = {} if kind == "dense" else {"decomposition_kwargs": {"init": "random", "n_iter_max": 3}}
        module = joint(linears, I, O, 0.2, factorization=PEER_NAMES[kind], **options).double()
        agrees(module, 1e-12, torch.float64, works)


@needs_peer
@pytest.mark.parametrize("kind", ["cp", "blocktt"])
def test_one_layer_of_several_of_the_peer(kind):
    module, x = layer_of(kind, 3).double(), draw(5)(4, 24)
    for one in (module[1], module.get_linear(-1)):
        spec, params = convert(one)
        clean(spec, params)
        close(spec.apply(params, x), silent(one)(x).detach())


@needs_peer
@pytest.mark.parametrize("kind", ["cp", "tucker", "blocktt"])
@pytest.mark.parametrize("L", [1, 3])
def test_embeddings_of_the_peer(kind, L):
    module = layer_of(kind, L, shapes=(60, 24), rank=4, cls="FactorizedEmbedding").double()
    spec, params = convert(module)
    clean(spec, params)
    idx = torch.tensor([0, 59, 7, 31, 7])
    for layer in range(L):
        close(spec.rows(params, idx, layer), silent(module)(idx, layer).detach())
        if L > 1:
            one, leaves = convert(module.get_embedding(layer))
            close(one.rows(leaves, idx), silent(module)(idx, layer).detach())


@needs_peer
def test_half_precision_and_hooks_of_the_peer():
    module = layer_of("tucker")
    _, wanted = convert(module)
    _, params = convert(module.bfloat16())
    assert all(torch.equal(t, wanted[k].bfloat16()) for k, t in params.items())
    PEER.tensor_hooks.tensor_lasso("Tucker").apply(module.weight)
    with pytest.raises(ValueError, match=r"FactorizedLinear whose weight has hooks \(TuckerLasso\), expected none"):
        convert(module)
