"""Pages of the public names, with a search, made of their docstrings: python .docs/make.py [folder, .docs/out if none]."""

import pathlib
import re
import sys
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the packages of this checkout, not those that are installed

import pdoc.render  # noqa: E402
import pdoc.search  # noqa: E402
from convention import summary, to_html  # noqa: E402
from public import publish, room  # noqa: E402
from signatures import linked, signature, written  # noqa: E402

import linmaps  # noqa: E402

PACKAGES = ("linmaps", "fisher", "growth")


def main(out: pathlib.Path) -> None:
    written()
    names = [name for p in PACKAGES for name in pdoc.extract.walk_specs([p, f"{p}.strategies"])]
    pages = {name: pdoc.doc.Module.from_name(name) for name in names}
    homes = publish(pages)
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    project["version"] = linmaps.__version__
    pdoc.render.configure(docformat="markdown", show_source=False, template_directory=HERE / "templates")
    pdoc.render.env.globals |= {"project": project, "packages": PACKAGES}
    pdoc.render.env.filters |= {
        "to_html": to_html,
        "summary": summary,
        "room": room,
        "linkify": linked,
        "format_signature": signature,
    }
    pdoc.search.to_html, pdoc.search.format_signature = to_html, signature
    indexed = pdoc.render.make_index
    pdoc.render.make_index = lambda *args: [found(d) for d in indexed(*args) if at_home(d, homes)]

    for name, page in pages.items():
        write(out / f"{name.replace('.', '/')}.html", pdoc.render.html_module(page, pages))
    write(out / "index.html", pdoc.render.html_index(pages))
    write(out / "search.js", pdoc.render.search_index(pages))
    print(f"{len(pages)} pages: {out / 'index.html'}")


def at_home(entry: dict, homes: dict) -> bool:
    """Whether an entry of the search says something, and that here: a name on two pages is found once."""
    name = entry.get("qualname", "").split(".")[0]
    return "doc" in entry and (not name or (entry["modulename"], name) in homes.values())


def found(entry: dict) -> dict:
    """The entry of a class, which is found by the parts of its name too: Block of PMatBlockDiag."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", entry["qualname"]) if entry["kind"] == "class" else []
    return entry | ({"annotation": " ".join(parts)} if len(parts) > 1 else {})


def write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else HERE / "out").resolve())
