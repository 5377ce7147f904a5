"""Butterflies: parity with the definition, known transforms, orthogonality at any size, complex leaves, cost, errors."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.func import grad, jacfwd, jacrev

from linmaps import Butterfly, Permutation
from linmaps.families.patterns.butterfly_levels import fused, through
from tests.linmaps.kinds.butterfly import butterfly_matrix
from tests.linmaps.zoo import descend, generator, random_params, squared

D = torch.float64
SIZES = [(1, 1), (1, 3), (2, 2), (3, 5), (8, 8), (5, 13), (8, 3), (16, 2), (6, 6), (9, 40), (70, 5)]
FLAGS = list(itertools.product((False, True), repeat=3))


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=D)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("complex", "tied", "increasing"), FLAGS)
def test_the_definition_number_by_number(sizes, complex, tied, increasing):
    spec = Butterfly(*sizes, complex=complex, tied_weight=tied, increasing_stride=increasing)
    params = random_params(spec, 0)
    W = spec.effective_W(params)
    want = butterfly_matrix(params["twiddle"].numpy(), *sizes, increasing)
    assert W.dtype == (torch.complex128 if complex else D)
    assert np.abs(W.numpy() - want).max() < 1e-13
    for count in (1, 4, 200):
        x = rows(count, sizes[0])
        assert np.abs(spec.apply(params, x).numpy() - x.numpy() @ want).max() < 1e-12


@pytest.mark.parametrize("n", [2, 16, 64, 256, 512])
@pytest.mark.parametrize("blocks", ["free", "rotation"])
def test_few_rows_and_many_take_different_ways_to_the_same_product(n, blocks):
    spec = Butterfly(n, n - n // 4, blocks=blocks, tied_weight=False)
    params = random_params(spec, 1)
    W = spec.effective_W(params)
    for count in (1, 64, 700):
        x = rows(count, n, seed=2)
        assert torch.allclose(spec.apply(params, x), x @ W, rtol=0, atol=1e-11)


@pytest.mark.parametrize("increasing", [True, False])
def test_any_division_into_parts_is_the_same_product(increasing):
    spec = Butterfly(27, 50, tied_weight=False, increasing_stride=increasing)
    twiddle, x = random_params(spec, 0)["twiddle"], rows(3, 27)
    want = through(twiddle, x, increasing, [1, 1, 1, 1, 1])
    for parts in ([5], [2, 3], [3, 2], [1, 3, 1], [4, 1]):
        assert torch.allclose(through(twiddle, x, increasing, parts), want, atol=1e-12)


def test_hadamard_matrix():
    spec = Butterfly(8)
    W = spec.effective_W({"twiddle": torch.tensor([[1.0, 1.0], [1.0, -1.0]]).expand(1, 7, 2, 2)})
    pair = np.array([[1, 1], [1, -1]])
    assert np.array_equal(W.numpy(), np.kron(pair, np.kron(pair, pair)))


@pytest.mark.parametrize("n", [4, 32])
def test_fast_fourier_transform(n):
    """Bit reversal, then the butterflies of decimation in time."""
    spec, order = Butterfly(n, complex=True), Permutation(n)
    turns = torch.cat(
        [torch.exp(-1j * math.pi * torch.arange(s, dtype=D) / s) for s in 2 ** np.arange(int(math.log2(n)))]
    )
    one = torch.ones_like(turns)
    twiddle = torch.stack([one, turns, one, -turns], -1).reshape(1, n - 1, 2, 2)
    reversal = order.argmax({"logits": torch.tensor([1.0, -1.0, -1.0]).expand(order.shapes()["logits"])})
    x = rows(3, n)
    assert torch.allclose(spec.apply({"twiddle": twiddle}, x[:, reversal]), torch.fft.fft(x), atol=1e-12)


def test_shapes_are_those_of_the_definition():
    assert Butterfly(6, 20).shapes() == {"twiddle": (3, 7, 2, 2)}
    assert Butterfly(6, 20, tied_weight=False).shapes() == {"twiddle": (3, 3, 4, 2, 2)}
    assert Butterfly(1, 5).shapes() == {"twiddle": (3, 1, 2, 2)}, "N is at least 2"


# --- init ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(64, 64), (8, 100), (100, 3), (6, 20), (1, 4), (4, 1)], ids=str)
@pytest.mark.parametrize(("complex", "tied", "increasing"), FLAGS)
def test_outputs_have_mean_variance_one_third_at_init(sizes, complex, tied, increasing):
    spec = Butterfly(*sizes, complex=complex, tied_weight=tied, increasing_stride=increasing)
    W = spec.effective_W(random_params(spec, 3))
    N = 2 ** max(1, math.ceil(math.log2(sizes[0])))
    for start in range(0, sizes[1], N):
        assert squared(W[:, start : start + N]) / W[:, start : start + N].shape[1] == pytest.approx(1 / 3)


def test_free_entries_are_normal_before_rescaling():
    twiddle = random_params(Butterfly(1024, tied_weight=False), 0)["twiddle"].flatten()
    z = (twiddle - twiddle.mean()) / twiddle.std()
    assert abs((z**4).mean() - 3) < 0.15
    assert twiddle.std() == pytest.approx(0.5**0.5 * 3**-0.05, rel=0.05)


def test_complex_rotations_are_haar_at_init():
    """A uniform unit vector (a, b) of C^2: |a|^2 is uniform."""
    spec = Butterfly(2, blocks="rotation", complex=True)
    W = torch.stack([spec.effective_W(random_params(spec, seed)) for seed in range(800)])
    share = W[:, 0, 0].abs().square().sort().values
    assert (share - (torch.arange(800) + 0.5) / 800).abs().max() < 0.06
    assert W.mean(0).abs().max() < 0.1


# --- rotations -------------------------------------------------------------------------------------------------------


def reachable(spec):
    """Pairs (or, tied, classes of pairs) on a way from an input to an output, by walking the graph both ways."""
    n = max(spec.in_features, spec.out_features)
    levels = list(range(math.ceil(math.log2(n))))
    levels = levels if spec.increasing_stride else levels[::-1]
    pairs = {level: [(i, i + 2**level) for i in range(n - 2**level) if i // 2**level % 2 == 0] for level in levels}

    def walk(start, order):
        seen, before = set(start), {}
        for level in order:
            before[level] = set(seen)
            for pair in pairs[level]:
                if seen & set(pair):
                    seen |= set(pair)
        return before

    forth, back = walk(range(spec.in_features), levels), walk(range(spec.out_features), levels[::-1])
    live = [(l, p) for l in levels for p in pairs[l] if forth[l] & set(p) and back[l] & set(p)]
    return len({(l, p[0] % 2**l) if spec.tied_weight else (l, p) for l, p in live})


@pytest.mark.parametrize(("tied", "increasing"), [(True, True), (True, False), (False, True), (False, False)])
def test_angles_are_those_that_matter_at_every_size(tied, increasing):
    for sizes in itertools.product(range(1, 14), repeat=2):
        spec = Butterfly(*sizes, blocks="rotation", tied_weight=tied, increasing_stride=increasing)
        assert spec.n_params == reachable(spec), spec
        params = random_params(spec, 0)
        assert spec.violation(spec.effective_W(params)) < 1e-12
        slopes = grad(lambda p: (spec.effective_W(p) * rows(*sizes, seed=9)).sum())(params)  # noqa: B023
        assert (slopes["angle"].abs() > 1e-9).all(), spec


def test_rotation_of_the_plane():
    W = Butterfly(2, blocks="rotation").effective_W({"angle": torch.tensor([0.7], dtype=D)})
    c, s = math.cos(0.7), math.sin(0.7)
    assert np.allclose(W.numpy().T, [[c, -s], [s, c]], atol=1e-15)


@pytest.mark.parametrize("complex", [False, True])
@pytest.mark.parametrize("sizes", [(16, 16), (11, 11), (5, 12), (12, 5)], ids=str)
def test_zeros_are_the_identity(sizes, complex):
    spec = Butterfly(*sizes, blocks="rotation", complex=complex)
    ((key, shape),) = spec.shapes().items()
    W = spec.effective_W({key: torch.zeros(shape, dtype=torch.complex128 if complex else D)})
    assert torch.equal(W, torch.eye(*sizes, dtype=W.dtype))


def test_unitary_where_a_block_vanishes():
    spec = Butterfly(4, blocks="rotation", complex=True)
    block = random_params(spec, 0)["block"].clone()
    block[0] = torch.tensor([-1.0, 0.0])
    assert spec.violation(spec.effective_W({"block": block})) < 1e-14
    slopes = grad(lambda p: squared(spec.effective_W(p)[0, :2]))({"block": block})
    assert torch.isfinite(torch.view_as_real(slopes["block"])).all()


@pytest.mark.parametrize(
    "spec",
    [
        Butterfly(32, blocks="rotation", tied_weight=False),
        Butterfly(21, 9, blocks="rotation"),
        Butterfly(12, blocks="rotation", complex=True, tied_weight=False, increasing_stride=False),
    ],
    ids=["32", "21x9", "complex"],
)
def test_orthogonal_after_a_thousand_adam_steps(spec):
    target = rows(spec.in_features, spec.out_features, seed=5)
    params = descend(spec, lambda W: squared(W - target), 0, 1000, 0.02)
    W, start = spec.effective_W(params), spec.effective_W(random_params(spec, 0))
    assert spec.violation(W) < 1e-12 * spec.in_features
    assert squared(W - target) < squared(start - target) - 1


@pytest.mark.parametrize("complex", [False, True])
def test_spectrum_and_inverse_are_closed_forms(complex):
    spec = Butterfly(6, blocks="rotation", complex=complex, bias=True)
    params = random_params(spec, 0)
    assert torch.equal(spec.singular_values(params), torch.ones(6, dtype=D))
    assert torch.equal(spec.inverse(params), spec.effective_W(params).mH)
    assert torch.equal(spec.logabsdet(params), torch.zeros((), dtype=D))
    x = rows(2, 6)
    assert torch.allclose(spec.solve(params, spec.apply(params, x)).real, x, atol=1e-13)


def test_what_is_promised():
    assert Butterfly(3, blocks="rotation").guaranteed
    assert Butterfly(3).violation(torch.ones(3, 3)) == 0
    assert Butterfly(2, blocks="rotation").violation(2 * torch.eye(2)).item() == pytest.approx(3 * math.sqrt(2))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("complex", [True, False])
def test_determinant_of_free_blocks_without_W(tied, complex):
    spec = Butterfly(8, tied_weight=tied, complex=complex)
    params = random_params(spec, 0)
    want = torch.linalg.slogdet(spec.effective_W(params)).logabsdet
    assert spec.logabsdet(params) == pytest.approx(want.item())
    assert not spec.logabsdet(params).is_complex()
    assert not Butterfly(3, complex=complex).logabsdet(random_params(Butterfly(3, complex=complex), 0)).is_complex()


# --- complex leaves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", ["free", "rotation"])
def test_dtypes_of_complex_maps(blocks):
    spec = Butterfly(4, 3, blocks=blocks, complex=True, bias=True)
    for real, want in ((torch.float32, torch.complex64), (torch.float64, torch.complex128)):
        for dtype in (real, want):
            params = spec.init(generator(0), dtype=dtype)
            assert {t.dtype for t in params.values()} == {want, real}
            assert params["bias"].dtype == real
        W = spec.effective_W(params)
        results = spec.violation(W), spec.reg_error(params), spec.singular_values(params)
        assert W.dtype == want
        assert {t.dtype for t in results} == {real}
        for x in (torch.ones(2, 4, dtype=real), torch.ones(2, 4, dtype=want)):
            assert spec.apply(params, x).dtype == want
    assert torch.get_default_dtype() == torch.float32
    assert spec.init(generator(0))["bias"].dtype == torch.float32


def test_one_by_one_rotations_have_nothing_to_train():
    for complex in (False, True):
        spec = Butterfly(1, blocks="rotation", complex=complex)
        params = random_params(spec, 0)
        assert spec.n_params == 0
        W = spec.effective_W(params)
        assert torch.equal(W, torch.ones(1, 1, dtype=torch.complex128 if complex else D))
        assert torch.equal(spec.apply(params, rows(3, 1)), rows(3, 1).to(W.dtype))


@pytest.mark.parametrize("blocks", ["free", "rotation"])
def test_complex_maps_have_right_second_derivatives(blocks):
    spec = Butterfly(3, 2, blocks=blocks, complex=True)
    ((key, shape),) = spec.shapes().items()
    at = torch.view_as_real(random_params(spec, 0)[key])
    x = torch.complex(rows(2, 3), rows(2, 3, seed=1))

    def loss(t):
        y = spec.apply({key: torch.view_as_complex(t)}, x)
        return (y.real**3).sum() + (y.real * y.imag**2).sum()

    reverse, forward, mixed = jacrev(jacrev(loss))(at), jacfwd(jacfwd(loss))(at), jacfwd(jacrev(loss))(at)
    assert torch.allclose(reverse, forward, atol=1e-10)
    assert torch.allclose(reverse, mixed, atol=1e-10)
    assert torch.autograd.gradcheck(loss, (at.clone().requires_grad_(),))
    assert shape == at.shape[:-1]


# --- cost and errors -------------------------------------------------------------------------------------------------


def operations(call):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return sum(event.count for event in profile.key_averages())


@pytest.mark.parametrize("options", [{}, {"tied_weight": False}, {"blocks": "rotation"}], ids=str)
def test_operations_grow_with_the_levels_alone(options):
    def count(n):
        spec = Butterfly(n, **options)
        params, x = random_params(spec, 0), rows(2, n)
        return operations(lambda: (spec.apply(params, x), spec.effective_W(params)))

    assert count(2048) < 2 * count(64) < 1500


def test_fused_blocks_cost_no_sums():
    names = []
    levels = [torch.randn(1, 8 // 2**l, 2**l, 2, 2) for l in range(4)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        block = fused(levels)
    names = {event.key for event in profile.key_averages()}
    assert block.shape == (1, 1, 1, 16, 16)
    assert "aten::mul" in names
    assert not names & {"aten::bmm", "aten::mm", "aten::sum"}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"blocks": "unitary"}, ValueError, r"Butterfly.blocks: got 'unitary', expected one of \('free', 'rotation'\)"),
        ({"complex": 1}, TypeError, r"Butterfly.complex: got 1, expected a bool"),
        ({"tied_weight": None}, TypeError, r"Butterfly.tied_weight: got None, expected a bool"),
        ({"increasing_stride": "no"}, TypeError, r"Butterfly.increasing_stride: got 'no', expected a bool"),
    ],
)
def test_options_that_do_not_fit(options, error, text):
    with pytest.raises(error, match=text):
        Butterfly(4, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex32])
def test_no_complex_half_precision(dtype):
    with pytest.raises(TypeError, match=r"expected float32 or float64.*pass dtype=torch.float32"):
        Butterfly(4, complex=True).init(generator(0), dtype=dtype)


def test_half_precision_rows_of_a_complex_map():
    spec = Butterfly(4, complex=True)
    with pytest.raises(
        TypeError, match=r"Butterfly\(4, 4\).apply: x: got torch.float16, expected torch.float32 as params"
    ):
        spec.apply(spec.init(generator(0)), torch.ones(4, dtype=torch.float16))


def test_complex_leaves_need_the_option():
    with pytest.raises(TypeError, match=r"expected a real floating torch\.dtype; complex leaves are those of"):
        Butterfly(4).init(generator(0), dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"expected a real floating torch\.dtype"):
        Butterfly(4).init(generator(0), dtype="float32")
