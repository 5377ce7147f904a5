"""The pages made of the docstrings: every public name is there, and no character of what it says is lost on the way."""

import importlib
import inspect
import pathlib
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

pytest.importorskip("pdoc", reason="the pages need pdoc: pip install torchgrove[docs]")
pytest.importorskip("hypothesis", reason="the pages of strategies need hypothesis: pip install torchgrove[docs]")
ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("linmaps", "fisher", "growth")
INSIDE = (
    "linmaps.factorized",
    "linmaps.trees",
    "fisher.likelihoods",
    "fisher.recipes",
    "fisher.rules",
    "fisher.distributed",
)
PAGES = (*PACKAGES, *INSIDE, *(f"{p}.{name}" for p in PACKAGES for name in ("interop", "strategies")))
VOID = {"br", "hr", "img", "input", "link", "meta", "wbr"}


class Page(HTMLParser):
    """Anchors, links, and the docstring under each anchor ("" for the page itself): all text, and that kept as it stands."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.docs, self.kept, self.plain = [], set(), [], {}, {}, {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        self.links += [attrs["href"]] if "href" in attrs else []
        if tag not in VOID:
            self.open.append((tag, attrs.get("id"), (attrs.get("class") or "").split()))

    def handle_endtag(self, tag):
        while tag not in VOID and self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if any("docstring" in classes for _, _, classes in self.open):
            anchor = next((name for _, name, _ in reversed(self.open) if name), "")
            tags = {tag for tag, _, _ in self.open}
            parts = [self.docs, *([self.kept] if "pre" in tags else [] if "code" in tags else [self.plain])]
            for part in parts:
                part[anchor] = part.get(anchor, "") + data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("pages")
    done = subprocess.run([sys.executable, ROOT / ".docs/make.py", out], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pdoc" not in done.stderr, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(made):
    return {name: Page((made / f"{name.replace('.', '/')}.html").read_text("utf-8")) for name in PAGES}


def public(name):
    """Anchor and object of all that a page is to show, in the words of the module alone."""
    module = importlib.import_module(name)
    own = [n for n, thing in vars(module).items() if getattr(thing, "__module__", None) == name and n[0] != "_"]
    for key in getattr(module, "__all__", own):
        thing = getattr(module, key)
        if not inspect.ismodule(thing):
            yield key, thing
        if inspect.isclass(thing) and thing.__name__ == key:
            owners = [cls for cls in thing.__mro__ if cls.__module__.split(".")[0] in PACKAGES]
            names = {n for cls in owners for n in (*vars(cls), *inspect.get_annotations(cls)) if n[0] != "_"}
            yield from ((f"{key}.{n}", inspect.getattr_static(thing, n, None)) for n in sorted(names))


def said_of(thing):
    """What a thing says itself: a number or a name has the words of its type alone."""
    doc = inspect.getdoc(thing)
    return None if type(thing).__module__ == "builtins" and doc == inspect.getdoc(type(thing)) else doc


def letters(doc):
    """A docstring without what is markup in it: backticks, marks of items, the lines of tables; and without spaces."""
    lines = [re.sub(r"^ *(\*|\d+\.) (?=\S)", "", line) for line in doc.split("\n")]
    lines = [line.strip("|").replace(" | ", "") if line[:1] == line[-1:] == "|" else line for line in lines]
    return re.sub(r"[\s`]", "", "".join(line for line in lines if not re.fullmatch(r"[-|]+", line)))


@pytest.mark.parametrize("name", PAGES)
def test_every_public_name_has_its_place(name, pages):
    assert not [anchor for anchor, _ in public(name) if anchor not in pages[name].ids]
    assert pages[name].docs[""], "the page says what it is about"


@pytest.mark.parametrize("name", PAGES)
def test_no_character_is_lost(name, pages):
    said, compared = pages[name].docs, set()
    for anchor, thing in [("", importlib.import_module(name)), *public(name)]:
        doc = said_of(thing)
        if anchor in said and doc and not said[anchor].startswith("Another name of"):
            got, expected = re.sub(r"[\s`]", "", said[anchor]), letters(doc)
            assert got == expected or (anchor == "maps" and got.startswith(expected)), anchor
            compared.add(anchor)
    assert len(compared) >= 0.9 * len(said), said.keys() - compared


@pytest.mark.parametrize("name", PAGES)
def test_examples_are_code_and_no_markup_is_left(name, pages):
    page = pages[name]
    assert not [anchor for anchor, text in page.plain.items() if ">>>" in text or "`" in text]
    assert (
        sum(text.count(">>> ") for text in page.kept.values()) == sum(t.count(">>> ") for t in page.docs.values()) > 0
    )


def test_links_lead_somewhere(made, pages):
    ids = {made / f"{name.replace('.', '/')}.html": page.ids for name, page in pages.items()}
    index = Page((made / "index.html").read_text("utf-8"))
    for file, page in {**dict(zip(ids, pages.values())), made / "index.html": index}.items():
        for link in set(page.links):
            if "://" not in link:
                path, _, anchor = link.partition("#")
                target = (file.parent / path).resolve() if path else file
                assert target.exists(), (file, link)
                assert not anchor or anchor in ids[target], (file, link)


def test_index_and_search(made):
    index, search = ((made / name).read_text("utf-8") for name in ("index.html", "search.js"))
    assert importlib.import_module("linmaps").__version__ in index
    for name in PAGES:
        assert f'href="{name.replace(".", "/")}.html"' in index
    for name in PACKAGES:
        first = importlib.import_module(name).__doc__.split("\n")[0]
        assert first in re.sub("<.*?>", "", index).replace("`", "") or "`" in first
        assert not [key for key, thing in public(name) if inspect.getdoc(thing) and f'"{name}.{key}"' not in search
                    and inspect.isroutine(thing) and "." not in key]  # fmt: skip


HARD = ["W*W", "*y.shape, **kw", "x * y * z", "__init__ _a_", "|u| + |v| |", "[B, C](x) ![a]", "p < q <p, u> & &lt;", "~~a~~",
        "# b", "1) c", "- sigma) / 2", "a -> b", "a\\*b \\[", "$x$", "http://a.b", "`a", ".. note::", ":param x: y"]  # fmt: skip


@pytest.mark.parametrize("text", HARD)
def test_plain_text_stays_as_it_is(text, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / ".docs")
    convention = importlib.import_module("convention")
    assert convention.to_html("a\n* b") == "<p>a\n* b</p>"
    page = Page(f'<div class="docstring">{convention.to_html(f"A{chr(10)}{text}{chr(10)}{chr(10)}{text}")}</div>')
    assert page.docs[""].split() == ["A", *text.split(), *text.split()]
