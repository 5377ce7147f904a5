"""The house: floors and the arrows between files, sizes, names, first lines.

FLOORS is the one place where the order is written: from the ground up, rooms on one line share a floor.  A file may import
its own room and what lies below; every import counts, those inside functions and under TYPE_CHECKING too.
"""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FLOORS = """
linmaps.trees
linmaps.trees.files linmaps.trees.graphs
linmaps.checks
linmaps.numerics
linmaps.numerics.orthogonal
linmaps.base
linmaps.families.interval
linmaps.families.entries linmaps.families.symmetries linmaps.families.functions
linmaps.families.singular_values
linmaps.families.eigenvalues linmaps.families.patterns
linmaps.families
linmaps.composed
linmaps.factorized.tensors
linmaps.factorized.kinds
linmaps.factorized.convolutions
linmaps.factorized
linmaps.factorized.regularizers
linmaps.interop linmaps.strategies
linmaps
fisher.checks
fisher.distributed
fisher.collector.rules
fisher.collector.calls
fisher.collector.watching
fisher.collector.blocks
fisher.collector
fisher.derivatives fisher.likelihoods fisher.iterative
fisher.trials
fisher.pmat.contract
fisher.pmat.decompositions
fisher.pmat.whole
fisher.pmat.layered
fisher.pmat.matrix_free
fisher.pmat.algebra
fisher.pmat
fisher.reducers
fisher.passes fisher.function_space
fisher.recipes.optimizers fisher.recipes.posterior fisher.recipes.influences
fisher.recipes
fisher.interop fisher.rules fisher.strategies
fisher
growth.checks
growth.reading
growth.reading.transformers
growth.moments
growth.closed_form
growth.surgery growth.rank
growth.gated
growth.carry
growth.training growth.graph
growth.interop growth.strategies
growth
"""
HEIGHT = {room: floor for floor, line in enumerate(FLOORS.split("\n")) for room in line.split()}
PACKAGES = ("linmaps", "fisher", "growth")
OUTSIDE = {"torch", "optree", "tqdm", "safetensors"}
FOR_CHECKERS = {"typing_extensions"}  # under TYPE_CHECKING alone
LONGEST, MOST = 300, 16  # lines of a file; files of a folder, its __init__ among them


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
each_file = pytest.mark.parametrize("name", FILES)


def room(name):
    """The room that a module is in: the longest listed prefix of its name."""
    while name not in HEIGHT:
        name = name.rpartition(".")[0]
    return name


def imported(source, modules=FILES):
    """The modules of the house that a source imports, anywhere in it; of `from room import file` the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in modules or node.module in modules:
                    yield full if full in modules else node.module
                else:
                    assert node.module.split(".")[0] not in PACKAGES, f"there is no {node.module}"


def upward(name, source):
    """What a module imports that is neither of its room nor below; a face may show the rooms inside, whose files may
    stand on those beside it."""
    own, inside = room(name), f"{name}."
    found = [other for other in imported(source) if room(other) != own and HEIGHT[room(other)] >= HEIGHT[own]]
    return [other for other in found if not other.startswith(inside)]


def circles(arrows):
    """The modules that take part in a circle: what is left when those without arrows to the rest go, one after the other."""
    left = {name: set(others) - {name} for name, others in arrows.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


@each_file
def test_no_arrow_upward(name):
    assert not upward(name, FILES[name].read_text())


def test_no_circle():
    assert not circles({name: imported(path.read_text()) for name, path in FILES.items()})


PLANTED = [
    ("fisher.pmat.whole.dense", "def f():\n    from fisher.passes.information import fim\n"),
    ("fisher.collector.taps", "if TYPE_CHECKING:\n    from fisher.pmat import PMat\n"),
    ("linmaps.trees.algebra", "class A:\n    def f(self):\n        import linmaps.base\n"),
    ("growth.surgery.enlarge", "from growth.rank import scores\n"),
    ("linmaps.numerics.linalg", "def f():\n    import linmaps\n"),
    ("linmaps.base.contract", "from fisher.checks import check\n"),
    ("linmaps.factorized", "from linmaps.interop import conversion\n"),
    ("linmaps.factorized.spec", "from linmaps.factorized.regularizers import dropout\n"),
]


@pytest.mark.parametrize(("name", "source"), PLANTED, ids=[name for name, _ in PLANTED])
def test_a_planted_arrow_is_found(name, source):
    assert upward(name, source)
    assert not upward(name, "from linmaps.trees import keys\n") or name.startswith("linmaps.trees")


def test_a_planted_circle_is_found():
    lazy = "def f():\n    from growth.carry import orders\n"
    arrows = {name: imported(path.read_text()) for name, path in FILES.items()}
    assert "growth.carry.orders" in circles(arrows | {"growth.carry.orders": [*imported(lazy), "growth.carry.state"]})
    assert circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"], "e": []}) == ["a", "b", "c", "d"]


def test_every_room_is_listed_and_every_listed_room_is_there():
    rooms = {
        ".".join(path.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_dir() and path.name != "__pycache__"
    }
    assert rooms <= HEIGHT.keys()
    assert not [name for name in HEIGHT if name not in FILES]


def folders(root):
    return {".".join(p.relative_to(root).parts) for p in root.rglob("*") if p.is_dir() and p.name != "__pycache__"}


def test_tests_mirror_the_rooms():
    """A folder of tests is a room; each room of the first floor of folders has its folder of tests."""
    tested = {name for package in PACKAGES for name in folders(ROOT / "tests") if name.startswith(f"{package}.")}
    rooms = {f"{package}.{name}" for package in PACKAGES for name in folders(ROOT / package)}
    assert tested - rooms == {"linmaps.kinds"}  # the kinds of maps, over which all laws of maps run
    assert {name for name in rooms if name.count(".") == 1} - tested == set()


def test_there_is_a_map_of_the_rooms():
    plan = (ROOT / ".docs" / "contributing.md").read_text().split("```text\n")[1].split("```")[0]
    for name in HEIGHT:
        if FILES[name].name == "__init__.py" and "." in name:
            assert f"{name.rpartition('.')[2]}/" in plan, f"{name}: not in the map of .docs/contributing.md"


AROUND = {
    "__import__",
    "exec",
    "importlib",
    "pkgutil",
    "runpy",
    "__subclasses__",
}  # ways that an import may take unseen


@each_file
def test_imports_are_seen(name):
    """From outside torch and a few alone; from the house by `from ... import`, in no other way."""
    nodes = list(ast.walk(ast.parse(FILES[name].read_text())))
    unseen = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    read = [node for block in unseen for line in block.body for node in ast.walk(line)]
    nodes = [node for node in nodes if not (node in read and getattr(node, "module", None) in FOR_CHECKERS)]
    whole = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    parts = {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    extra = {"hypothesis"} if name.endswith(".strategies") else set()
    assert whole | parts <= set(sys.stdlib_module_names) | OUTSIDE | set(PACKAGES) | extra
    assert not whole & set(PACKAGES), "a room is imported by its files"
    words = {n.id for n in nodes if isinstance(n, ast.Name)} | {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    assert not (words | whole | parts) & AROUND
    assert not [n for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n) == "sys.modules"]


@each_file
def test_classes_are_not_told_by_their_names(name):
    """A name in quotes is an arrow that no import shows; other libraries' modules are told by it, without an import."""
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        sides += [node.slice] if isinstance(node, ast.Subscript) else []
        told = [s for s in sides if isinstance(s, ast.Attribute) and s.attr in ("__name__", "__qualname__")]
        assert not told or name.startswith("linmaps.interop"), f"line {node.lineno}: {ast.unparse(node)}"


def test_work_that_is_handed_down_has_one_doer_above_those_who_ask():
    """The one registry that rooms above fill for methods of rooms below: who asks for what, and who does it."""
    asked, done = {}, {}
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("handed", "hands_over")
            ):
                where = asked if node.func.id == "handed" else done
                where.setdefault(node.args[0].value, []).append(name)
    assert asked.keys() == done.keys() == {"add", "multiply", "update_diag"}
    assert all(len(doers) == 1 for doers in done.values())
    assert all(HEIGHT[room(done[work][0])] > HEIGHT[room(name)] for work, names in asked.items() for name in names)


def test_the_pytree_library_is_known_to_trees_alone():
    users = {
        name for name, path in FILES.items() if "import optree" in path.read_text() or "from optree" in path.read_text()
    }
    assert all(room(name) == "linmaps.trees" for name in users), users


@each_file
def test_a_file_is_one_idea_long(name):
    lines = FILES[name].read_text().splitlines()
    assert len(lines) <= LONGEST, f"{len(lines)} lines: split it by idea"
    assert lines[0].startswith('"""'), "the first line says the idea"
    first = ast.get_docstring(ast.parse(FILES[name].read_text())).split("\n")[0]
    assert first.endswith((".", ":", "?")), f"the first line is a sentence, got {first!r}"


@pytest.mark.parametrize("name", HEIGHT)
def test_a_folder_is_small_enough_to_be_read(name):
    path = FILES[name]
    if path.name == "__init__.py":
        assert len(list(path.parent.glob("*.py"))) <= MOST


def listed(name):
    """The files and rooms inside that a room names, in its order."""
    doc = ast.get_docstring(ast.parse(FILES[name].read_text()), clean=False)
    return [line.split()[0].rstrip("/") for line in doc.split("\n") if line.startswith("    ") and line.strip()]


ROOMS = [name for name, path in FILES.items() if path.name == "__init__.py"]


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_names_its_files_in_reading_order(name):
    """Each file and each room inside is named once, at the start of a line, after the idea of the room."""
    inside = {
        p.stem if p.is_file() else p.name
        for p in FILES[name].parent.iterdir()
        if p.name not in ("__init__.py", "__pycache__") and (p.is_dir() or p.suffix == ".py")
    }
    assert inside <= set(listed(name)), f"not named: {sorted(inside - set(listed(name)))}"
    assert len([n for n in listed(name) if n in inside]) == len(inside), "named twice"


def forward(name, order):
    """The arrows inside a room from what is named earlier to what is named later."""
    place = {f"{name}.{n}": k for k, n in enumerate(order)}

    def part(other):
        return next((place[p] for p in place if other == p or other.startswith(f"{p}.")), -1)

    inside = [other for other in FILES if other.startswith(f"{name}.")]
    arrows = [(file, other) for file in inside for other in imported(FILES[file].read_text())]
    return [(file, other) for file, other in arrows if part(other) > part(file)]


@pytest.mark.parametrize("name", ROOMS)
def test_reading_order_is_an_order_of_imports(name):
    """A file imports none that its room names after it: who reads from the top knows what a file stands on."""
    assert not forward(name, listed(name))


def test_a_planted_order_is_found():
    assert forward("linmaps.trees", listed("linmaps.trees")[::-1])


def faces():
    """The modules that say what is public."""
    return [n for n in FILES if "__all__" in FILES[n].read_text() and not n.endswith(".strategies")]


@pytest.mark.parametrize("name", faces())
def test_dir_is_all(name):
    module = importlib.import_module(name)
    assert dir(module) == sorted(module.__all__)
    assert module.__all__ == sorted(set(module.__all__), key=module.__all__.index)


@pytest.mark.parametrize("name", faces())
def test_no_function_bears_the_name_of_a_module(name):
    """Neither of the one that it lives in, nor of one beside that, nor of one beside the face that shows it."""
    module = importlib.import_module(name)
    for key in module.__all__:
        thing = getattr(module, key)
        if inspect.ismodule(thing):
            continue
        assert f"{name}.{key}" not in FILES, f"{name}.{key} is a module too"
        home = getattr(thing, "__module__", None) or ""
        if home.split(".")[0] in PACKAGES:
            beside = {n.rpartition(".")[2] for n in FILES if n.rpartition(".")[0] == home.rpartition(".")[0]}
            assert key not in beside | set(home.split(".")), f"{key} lives in {home}"


@each_file
def test_a_file_holds_no_function_of_its_own_name_nor_of_the_one_beside_it(name):
    house, _, own = name.rpartition(".")
    beside = {n.rpartition(".")[2] for n in FILES if n.rpartition(".")[0] == house}
    functions = {node.name for node in ast.parse(FILES[name].read_text()).body if isinstance(node, ast.FunctionDef)}
    assert not functions & beside
    folder = house.rpartition(".")[2]
    assert not own.startswith(f"{folder}_"), "the folder says it already"


def test_every_module_can_be_imported():
    for package in PACKAGES:
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            assert importlib.import_module(found.name).__doc__
