"""Trees in files: whatever containers, keys, dtypes and memory; what cannot be stored, and files that are not ours, are told."""

import collections
import dataclasses
import enum
import json
import math
import os
import pickle
import re
import struct
import threading
import typing
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import vmap

from linmaps import Spectral, trees
from linmaps.trees.files import written
from linmaps.trees.registry import ENTERED
from tests.test_files import header, same, through


@trees.static
class Colour(enum.Enum):
    RED = 1


@trees.static
class Two(typing.NamedTuple):
    first: typing.Any
    second: typing.Any = 3


@trees.record(static=("unit",))
class Length:
    value: torch.Tensor
    unit: str = "m"


@trees.static
class Plain:
    """A class that is no dataclass."""

    def __init__(self, scale):
        self.scale = scale

    def __eq__(self, other):
        return type(other) is Plain and self.scale == other.scale

    __hash__ = None


class Loose:
    pass


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tree.safetensors"


NO_NUMBERS = r"q?u?int[1-7]$|qu?int|bits|float4"  # quantized ones, and those of parts of a byte
DTYPES = [d for d in vars(torch).values() if isinstance(d, torch.dtype) and not re.search(rf"\.({NO_NUMBERS})", str(d))]


@pytest.mark.parametrize("dtype", dict.fromkeys(DTYPES), ids=str)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_dtype(dtype, path):
    bytes_ = torch.arange(48, dtype=torch.uint8)
    t = bytes_.view(dtype) if dtype != torch.bool else bytes_ > 20
    same(through([t, t[:1], t[0], t[:0]], path), [t, t[:1].clone(), t[0].clone(), t[:0].clone()])


WILD = torch.tensor([math.nan, -math.nan, math.inf, -0.0, 1e-45])
TREES = {
    "a tensor": WILD,
    "none": None,
    "a number": -0.0,
    "numbers": [1, True, 0.1, math.inf, -math.inf, 10**30, 1e-300, 1 + 2j, "text", "ü\u2028\ud800", b"\x00\xff", None],
    "keys": {("a", 0): 1, 3: 2, None: 3, True: 4, 2.5: 5, "s": 6, Colour.RED: 7, frozenset({1, 2}): 8, Spectral(3): 9},
    "dicts": [
        {"b": 1, "a": 2}, collections.OrderedDict(b=1, a=2), collections.defaultdict(list, a=[1]), {},
        collections.defaultdict(None, {1: 2}), {"tensor": "no tensor", "__metadata__": torch.ones(1)},
    ],
    "sequences": [(), [], (1,), [(2,)], collections.deque([1, 2], maxlen=3), torch.Size([2, 3]), range(1, 9, 2), slice(2)],
    "sets": [{3, 1, 2}, frozenset({"a", "b"}), set()],
    "of torch": [torch.bfloat16, torch.device("cuda:1"), torch.strided, torch.channels_last],
    "classes": [Two(torch.ones(2)), Two(1, None), Colour.RED, Length, torch.relu, nn.functional.gelu, Plain({"a": 1})],
    "records": Length({"nested": Length(torch.ones(2), "km")}, ("a", 1)),
    "names that meet": {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}, "value": torch.ones(2), "a.b#2": torch.ones(3)},
    "views": [torch.arange(12.0).reshape(3, 4).mT, torch.ones(1, 3).expand(2, 3), torch.arange(9.0)[::2],
              torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.complex(WILD, WILD).conj()],
    "empty": [torch.ones(0), torch.ones(2, 0, 3), torch.ones(0, dtype=torch.bool)],
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_a_tree_comes_back(name, path):
    tree = TREES[name]
    got = through(tree, path)
    same(got, tree)
    assert shown(got) == shown(tree)


def shown(node):
    """Types, order of keys and values, where tensors are one."""
    if isinstance(node, (dict, list, tuple, collections.deque)):
        return (
            type(node),
            getattr(node, "default_factory", 0),
            [shown(p) for p in (node.items() if isinstance(node, dict) else node)],
        )
    return (
        type(node)
        if isinstance(node, (torch.Tensor, Length))
        else (type(node), repr(node) if isinstance(node, float) else node)
    )


def test_what_is_one_tensor_stays_one_and_bits_lie_once(path):
    t = torch.randn(1000)
    got = through({"a": t, "b": [t]}, path)
    assert got["a"] is got["b"][0]
    assert os.path.getsize(path) < 6000


def test_parameters_are_taken_detached(path):
    got = through(nn.Parameter(torch.ones(2)), path)
    assert type(got) is torch.Tensor
    assert not got.requires_grad


leaf = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.binary(max_size=4),
    st.sampled_from([torch.ones(2), torch.zeros(0, 3, dtype=torch.complex128), torch.tensor(3, dtype=torch.int8), torch.float16]),
)  # fmt: skip
key = st.recursive(
    st.one_of(st.integers(), st.text(max_size=4), st.booleans(), st.none()), lambda k: st.tuples(k, k), max_leaves=3
)
tree = st.recursive(
    leaf,
    lambda t: st.one_of(
        st.lists(t, max_size=3), st.lists(t, max_size=3).map(tuple), st.dictionaries(key, t, max_size=3),
        st.builds(Two, t, t), st.builds(Length, t, st.integers()),
        st.dictionaries(key, t, max_size=2).map(collections.OrderedDict),
    ),
    max_leaves=12,
)  # fmt: skip


@given(tree=tree)
def test_trees_of_any_shape_come_back(tree, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "drawn.safetensors"
    assert deep(through(tree, path)) == deep(tree)


def deep(node):
    """The whole of a tree as text."""
    if isinstance(node, dict):
        return type(node).__name__, [(deep(k), deep(v)) for k, v in node.items()]
    if isinstance(node, (list, tuple)):
        return type(node).__name__, [deep(v) for v in node]
    if isinstance(node, Length):
        return "Length", deep(node.value), deep(node.unit)
    return (repr(node.tolist()), node.dtype, node.shape) if isinstance(node, torch.Tensor) else (type(node), repr(node))


def test_no_pickle_and_no_torch_save(path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle is used")

    for module, names in (
        (pickle, ("dumps", "loads", "dump", "load", "Pickler", "Unpickler")),
        (torch, ("save", "load")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    same(through(TREES["records"], path), TREES["records"])


def test_other_readers_read_the_tensors_by_their_paths(path):
    torch_reader = pytest.importorskip("safetensors.torch")
    trees.save({"net": {"w": WILD, "half": WILD.half()}}, path)
    got = torch_reader.load_file(path)
    assert set(got) == {"net.w", "net.half"}
    same(got["net.half"], WILD.half())
    said = header(path)["__metadata__"]
    assert (said["kind"], said["format_version"]) == ("dict", "1")


# --- what is refused -----------------------------------------------------------------------------------------------

REFUSED = {
    "a function": (lambda: {"a": [lambda x: x]}, r"a\.0: got the function .*lambda.*given=\['a\.0'\]"),
    "a module": (lambda: nn.Linear(1, 1), "the tree: got Linear, a module.*state_dict"),
    "a class": (lambda: {"a": Loose}, "a: got Loose, a class that is not registered.*trees.static"),
    "an object": (lambda: {"a": Loose()}, "a: got Loose, a class that is not registered.*trees.record"),
    "in a static field": (lambda: Length(torch.ones(1), lambda: 0), "unit: got the function"),
    "a generator": (torch.Generator, "get_state"),
    "an array": (lambda: {"a": torch.ones(2).numpy()}, "a: got numpy.ndarray.*as_tensor"),
    "a number of numpy": (lambda: {"a": torch.ones(2).numpy()[0]}, "a: got numpy.float32.*item"),
    "a sparse tensor": (lambda: {"a": torch.eye(2).to_sparse()}, "a: got a tensor of torch.sparse_coo.*to_dense"),
    "a meta tensor": (lambda: {"a": torch.ones(2, device="meta")}, "a: got a tensor on the meta device"),
    "a quantized tensor": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "dequantize"),
    "a tensor as a key": (lambda: {torch.ones(1): 1}, "the tree: got a tensor as a key"),
    "a factory": (lambda: collections.defaultdict(lambda: 0), "defaultdict of .*save dict"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_file_cannot_hold_is_told_by_path_and_cure(name, path):
    make, words = REFUSED[name]
    with pytest.raises(TypeError, match=words):
        trees.save(make(), path)
    assert not os.listdir(path.parent)


def test_tensors_of_transforms_and_of_many_processes_are_refused(path):
    with pytest.raises(TypeError, match="outside of vmap"):
        vmap(lambda t: trees.save(t, path) or t)(torch.ones(2))

    class Spread(torch.Tensor):
        def full_tensor(self):
            return self

    with pytest.raises(TypeError, match=r"a: got a DTensor.*full_tensor"):
        trees.save({"a": torch.ones(2).as_subclass(Spread)}, path)


def test_a_class_that_another_replaced_is_refused(path):
    def make():
        @trees.static
        @dataclasses.dataclass(frozen=True)
        class Local:
            a: int

        return Local

    old, new = make()(1), make()(1)
    assert type(through(new, path)) is type(new)
    with pytest.raises(TypeError, match="not registered"):
        trees.save(old, path)


def test_what_is_given_is_left_out_and_put_in_again(path):
    step = lambda x: x
    tree = Length({"f": step, "w": WILD}, Loose)
    trees.save(tree, path, given=["value.f", "unit"])
    got = trees.load(path, given={"value.f": step, "unit": Loose})
    assert (got.value["f"], got.unit) == (step, Loose)
    with pytest.raises(ValueError, match=r"unit: was left out.*given="):
        trees.load(path, given={"value.f": step})
    with pytest.raises(ValueError, match=r"given: got \['x'\]"):
        trees.load(path, given={"value.f": step, "unit": Loose, "x": 1})
    with pytest.raises(ValueError, match=r"given: got \['x'\]"):
        trees.save(tree, path, given=["value.f", "unit", "x"])
    for wrong in ("unit", 3, [3]):
        with pytest.raises(TypeError, match="given: got"):
            trees.save(tree, path, given=wrong)
    with pytest.raises(TypeError, match="given: got"):
        trees.load(path, given=["unit"])


@pytest.mark.parametrize("wrong", [None, 3, "", WILD])
def test_a_path_is_a_name(wrong):
    for call in (lambda: trees.save(1, wrong), lambda: trees.load(wrong)):
        with pytest.raises(TypeError, match="path: got"):
            call()


@pytest.mark.parametrize("nest", [lambda t: [t], lambda t: {"a": (1, t)}, lambda t: collections.deque([t])])
def test_what_holds_itself_is_refused(nest, path):
    loop = [torch.ones(2)]
    loop.append(nest(loop))
    with pytest.raises(
        ValueError, match=r"b\.1\..*: is b again, which holds it, expected containers that do not hold themselves"
    ):
        trees.save({"b": loop}, path)
    with pytest.raises(ValueError, match=r"is the tree again"):
        trees.save(loop, path)
    twice = [1]
    same(through([twice, twice, (), ()], path), [twice, twice, (), ()])


def test_what_is_too_deep_is_refused(path):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match=r"nested too deeply .*recursion limit"):
        trees.save(deep, path)
    assert not os.listdir(path.parent)


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_save_that_fails_leaves_the_old_file(path, monkeypatch):
    trees.save({"a": WILD}, path)
    before = path.read_bytes()
    for broken in ("raw", "checksum"):
        with monkeypatch.context() as patch:
            patch.setattr(written, broken, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                trees.save({"a": torch.ones(3)}, path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]


def test_rights_and_links_stay(path):
    target = path.parent / "target"
    trees.save(1, target)
    os.chmod(target, 0o600)
    path.symlink_to(target)
    trees.save(2, path)
    assert path.is_symlink()
    assert (trees.load(target), target.stat().st_mode & 0o777) == (2, 0o600)


def test_what_is_no_file_is_neither_replaced_nor_read(tmp_path):
    pipe, link, folder = tmp_path / "pipe", tmp_path / "link", tmp_path / "folder"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    folder.mkdir()
    for place, what in ((pipe, "a pipe"), (link, "a pipe"), (os.devnull, "a device"), (folder, "a folder")):
        for call in (lambda p: trees.save(1, p), trees.load):
            with pytest.raises(OSError, match=f"{re.escape(str(place))}: is {what}, expected a file.*;"):
                call(place)
    assert pipe.is_fifo()
    assert not os.path.isfile(os.devnull)
    with pytest.raises(IsADirectoryError):
        trees.load(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "pipe"]


def test_where_no_file_can_be_made_the_path_is_named(tmp_path, monkeypatch):
    missing = tmp_path / "missing" / "tree.safetensors"
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(missing))}: there is no folder .*makedirs"):
        trees.save(1, missing)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"file/tree: .*file is a file, expected a folder"):
        trees.save(1, tmp_path / "file" / "tree")
    with pytest.raises(FileNotFoundError, match="expected the name of a file"):
        trees.save(1, f"{tmp_path}/new/")
    long = tmp_path / ("n" * 250)
    with pytest.raises(OSError, match=r"made beside .*expected") as got:
        trees.save(1, long)
    assert got.value.filename == str(long)
    assert ".part" not in str(got.value)
    assert os.listdir(tmp_path) == ["file"]


def test_readers_see_one_of_the_two(path):
    trees.save(torch.zeros(50_000), path)
    stop, seen = threading.Event(), []

    def read():
        while not stop.is_set():
            t = trees.load(path)
            seen.append(bool((t == t[0]).all()))

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(40):
        trees.save(torch.full((50_000,), float(n)), path)
    stop.set()
    reader.join()
    assert seen
    assert all(seen)


def test_files_that_are_damaged_are_refused(path):
    trees.save({"a": torch.arange(100.0), "n": 3}, path)
    whole = path.read_bytes()
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    for cut in (0, 7, 50, start, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(
            ValueError, match=r"tree\.safetensors: got a file that is cut off, damaged .* expected .*save it again"
        ):
            trees.load(path)
    for place in range(start, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"tree\.safetensors: a: the bits are not those"):
            trees.load(path)
    for place in range(0, start, 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            got = trees.load(path)
        except ValueError as error:
            assert "tree.safetensors" in str(error)  # noqa: PT017
        else:  # a word that nothing is made of
            same(got, {"a": torch.arange(100.0), "n": 3})


def test_files_of_others_are_refused(path):
    with pytest.raises(FileNotFoundError, match="no such file, expected"):
        trees.load(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match="no file of safetensors"):
        trees.load(path)
    write(path, {"a": WILD}, None)
    with pytest.raises(ValueError, match=r"without a layout.*load_file"):
        trees.load(path)
    write(path, {}, {"format_version": "2", "written_by": "linmaps 9.0"})
    with pytest.raises(ValueError, match=r"format 2, written by linmaps 9.0, expected up to 1"):
        trees.load(path)


def test_no_file_reaches_beyond_the_registry(path):
    for node in (
        {"class": "os:system"},
        {"function": "os:system"},
        {"function": "torch.load"},
        {"record": "builtins:eval", "fields": {}},
    ):
        by_hand(path, node)
        with pytest.raises(ValueError, match=r"not registered here.*linmaps 0.1.*import the module"):
            trees.load(path)
    by_hand(path, {"tensors": 1})
    with pytest.raises(ValueError, match="got a node 'tensors', expected one of"):
        trees.load(path)
    here = f"{Length.__module__}:Length"
    by_hand(path, {"record": here, "fields": {"value": 1}, "beside": {"__class__": 2}})
    with pytest.raises(ValueError, match="attributes"):
        trees.load(path)
    by_hand(path, "[" * 100_000 + "]" * 100_000, raw=True)
    with pytest.raises(ValueError, match=r"tree\.safetensors"):
        trees.load(path)


# --- versions ------------------------------------------------------------------------------------------------------


def write(path, tensors, said):
    """A file of safetensors by hand, of float32 tensors."""
    place, data = {}, b""
    for name, t in tensors.items():
        own = struct.pack(f"<{t.numel()}f", *t.flatten().tolist())
        place[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [len(data), len(data) + len(own)]}
        data += own
    text = json.dumps(({} if said is None else {"__metadata__": said}) | place).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def by_hand(path, layout, tensors=None, raw=False):
    """A file as format version 1 has it; raw: the layout is text."""
    tensors = tensors or {}
    crc = lambda data: f"{zlib.crc32(data):08x}"
    of = lambda t: struct.pack(f"<{t.numel()}f", *t.flatten().tolist())
    table = json.dumps({n: {"dtype": "float32", "device": "cpu", "crc32": crc(of(t))} for n, t in tensors.items()})
    text = layout if raw else json.dumps(layout)
    said = {"kind": "by hand", "written_by": "linmaps 0.1", "format_version": "1", "tensors": table, "layout": text}
    write(path, tensors, said | {"checksum": crc((table + text).encode())})


HERE = Length.__module__


def test_a_file_of_format_1_is_read(path):
    """Written out: what format 1 is does not change with the code that writes it."""
    w = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    layout = {"dict": [
        ["params", {"dict": {"w": {"tensor": "params.w"}, "n": {"tuple": [1, 2.5, None, True, "s", {"float": "inf"}]}}}],
        [3, {"record": f"{HERE}:Length", "fields": {"value": {"tensor": "params.w"}, "unit": {"dtype": "float16"}}}],
        [None, {"record": "linmaps.families.singular_values.spectral:Spectral", "fields": {
            "in_features": 4, "out_features": 2, "bias": False, "sigma_min": 0.1, "sigma_max": 1.0}}],
        ["more", [{"member": [f"{HERE}:Colour", "RED"]}, {"class": f"{HERE}:Two"}, {"function": "torch.tanh"},
                  {"record": f"{HERE}:Two", "fields": {"first": {"bytes": ["00ff"]}}}, {"size": [2, 3]},
                  {"OrderedDict": {"a": 1}}, {"defaultdict": {}, "factory": "list"}, {"device": ["cpu"]}]],
    ]}  # fmt: skip
    layout = json.loads(json.dumps(layout).replace('{"dtype": "float16"}', '{"dtype": ["float16"]}'))
    by_hand(path, layout, {"params.w": w})
    got = trees.load(path)
    same(got["params"]["w"], w)
    assert got["params"]["n"] == (1, 2.5, None, True, "s", math.inf)
    assert got[3].value is got["params"]["w"]
    assert (got[3].unit, got[None]) == (torch.float16, Spectral(4, 2))
    assert got["more"][:4] == [Colour.RED, Two, torch.tanh, Two(b"\x00\xff", 3)]
    assert got["more"][4:] == [torch.Size([2, 3]), {"a": 1}, {}, torch.device("cpu")]


def test_records_evolve(path):
    by_hand(path, {"record": f"{HERE}:Length", "fields": {"value": 1}})
    assert trees.load(path) == Length(1, "m")
    by_hand(path, {"record": f"{HERE}:Length", "fields": {"unit": "m"}})
    with pytest.raises(ValueError, match=r"Length: fields \['value'\] are missing.*written by version linmaps 0\.1"):
        trees.load(path)
    by_hand(path, {"record": f"{HERE}:Length", "fields": {"value": 1, "colour": 2}})
    with pytest.raises(
        ValueError, match=r"Length: got fields \['colour'\], which this version .* written by version linmaps 0\.1"
    ):
        trees.load(path)
    by_hand(path, {"record": f"{HERE}:Two", "fields": {"second": 1}})
    with pytest.raises(ValueError, match=r"Two: fields \['first'\] are missing"):
        trees.load(path)
    by_hand(path, {"member": [f"{HERE}:Colour", "BLUE"]})
    with pytest.raises(ValueError, match="got BLUE"):
        trees.load(path)


def test_settings_are_checked_and_completed(path):
    spectral = "linmaps.families.singular_values.spectral:Spectral"
    by_hand(path, {"record": spectral, "fields": {"in_features": 4}})
    assert trees.load(path) == Spectral(4)
    by_hand(path, {"record": spectral, "fields": {"in_features": -4}})
    with pytest.raises(ValueError, match=r"tree\.safetensors: .*in_features"):
        trees.load(path)


def test_a_class_that_moved_within_its_package_is_found(path):
    by_hand(path, {"record": "linmaps.an_old_room.file:Spectral", "fields": {"in_features": 4, "out_features": 2}})
    assert trees.load(path) == Spectral(4, 2)
    assert "linmaps.an_old_room.file:Spectral" not in ENTERED


# --- devices -------------------------------------------------------------------------------------------------------


def test_devices(path):
    trees.save(WILD, path)
    assert trees.load(path, device="meta").device.type == "meta"
    same(trees.load(path, device=torch.device("cpu")), WILD)
    if not torch.cuda.is_available():
        data = path.read_bytes()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        said = header(path)
        text = said["__metadata__"]
        text["tensors"] = text["tensors"].replace('"cpu"', '"cuda:0"')
        text["checksum"] = f"{zlib.crc32((text['tensors'] + text['layout']).encode()):08x}"
        new = json.dumps(said).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + data[start:])
        with pytest.raises(
            ValueError, match="value: got a tensor saved on cuda:0, expected a device that is here; give load"
        ):
            trees.load(path)
        same(trees.load(path, device="cpu"), WILD)
        with pytest.raises(ValueError, match=r"got device='cuda', expected a device that is here"):
            trees.load(path, device="cuda")
    for wrong in ("nonsense", WILD, 2.5):
        with pytest.raises(ValueError, match=r"device: got"):
            trees.load(path, device=wrong)
