"""Documentation objects of pdoc under their public names, in place of the rooms that they live in."""

import inspect

from pdoc.doc import Class, Doc, Function, Module, Variable

KEPT = ("@classmethod", "@staticmethod", "@dataclass")  # decorators that a caller sees the effect of


def publish(pages: dict[str, Module]) -> dict[tuple[str, str], tuple[str, str]]:
    """Where the names of each page are at home: (room, name) -> (page, name); what pages show is changed to it."""
    house, homes = {name.split(".")[0] for name in pages}, {}
    for page in pages.values():
        for member in page.members.values():
            homes.setdefault(member.taken_from, (page.modulename, member.qualname))
    for name, page in pages.items():
        if not hasattr(page.obj, "__all__"):
            page.members = {key: m for key, m in page.members.items() if m.docstring}
        page.submodules = [inside for other, inside in pages.items() if other.rpartition(".")[0] == name]
        for member in page.members.values():
            if isinstance(member, Class):
                show(member, homes, house)
            elif isinstance(member, Function):
                member.decorators = []
            elif isinstance(member, Variable):
                describe(member, house)
            member.taken_from = homes[member.taken_from]
    return homes


def show(cls: Class, homes: dict, house: set[str]) -> None:
    """Public bases, decorators that matter, and each member as its own or as that of a public base.

    What a class has from one that is not public is shown as its own; what it has from torch is not shown."""
    for member in cls.members.values():
        origin = (member.taken_from[0], member.taken_from[1].rpartition(".")[0])
        if origin in homes:
            page, name = homes[origin]
            member.taken_from = (page, f"{name}.{member.name}")
        elif origin[0].split(".")[0] in house:
            member.taken_from = (cls.modulename, member.qualname)
        if isinstance(member, Function):
            member.decorators = [d for d in member.decorators if d.startswith(KEPT)]
            if member.name == "__init__" and member.docstring.startswith("Create new instance of"):
                member.docstring = ""
        elif member.docstring.startswith("Alias for field number"):
            member.docstring = ""
    cls.decorators = [d for d in cls.decorators if d.startswith(KEPT)]
    bases = []
    for base in cls.obj.__bases__:
        line = [c for c in base.__mro__ if (c.__module__, c.__qualname__) in homes]
        if line:
            page, name = homes[line[0].__module__, line[0].__qualname__]
            bases.append((page, name, name if page == cls.modulename else f"{page}.{name}"))
    cls.bases = list(dict.fromkeys(bases))


def room(doc: Doc) -> str:
    """The file in which something is written; nothing for what is written outside of the house, or no class or function."""
    where = getattr(doc.obj, "__module__", None) or ""
    return f"{where.replace('.', '/')}.py" if f"{where}.".startswith(("linmaps.", "fisher.", "growth.")) else ""


def describe(variable: Variable, house: set[str]) -> None:
    """A value that is a name for another one, or that says itself what it is."""
    value = variable.default_value
    if inspect.isclass(value):
        variable.docstring = f"Another name of `{value.__name__}`."
        variable.default_value_str = value.__name__
    elif type(value).__module__.split(".")[0] in house:
        table = "\n".join(f"    {line}" for line in repr(value).split("\n"))
        variable.docstring = f"{inspect.getdoc(value)}\n\n{table}"
        variable.default_value_str = ""
