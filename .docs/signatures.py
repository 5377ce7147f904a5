"""Signatures as they are written: annotations in the words of the source, defaults by their names."""

import inspect
import re

import pdoc.doc
import pdoc.render_helpers
from jinja2 import pass_context
from markupsafe import Markup

CLASS = re.compile(r'(?<!<span class="o">\.</span>)<span class="n">([A-Z]\w*)</span>')


class Written(str):
    """Text whose representation is itself."""

    __repr__ = str.__str__


def as_written(annotation, *_):
    if annotation is inspect.Parameter.empty:
        return annotation
    if isinstance(annotation, str):
        return Written(annotation)
    text = re.sub(r"ForwardRef\('(.*?)'\)", r"\1", inspect.formatannotation(annotation))
    return Written(re.sub(r"\b(\w+\.)+(?=[A-Z])", "", text))


def written() -> None:
    """Let pdoc keep the text of annotations, which it otherwise resolves to where things are defined."""
    pdoc.doc.safe_eval_type = as_written
    pdoc.doc.resolve_annotations = lambda annotations, *_: {k: as_written(v) for k, v in annotations.items()}


def signature(sig: inspect.Signature, colon: bool) -> Markup:
    """A signature as HTML, without self, a parameter a line where it is long."""
    named = lambda v: Written(v.__name__) if v is not inspect.Parameter.empty and hasattr(v, "__name__") else v
    parameters = [p.replace(default=named(p.default)) for p in sig.parameters.values()]
    parameters = [p for i, p in enumerate(parameters) if i or p.name not in ("self", "cls")]
    return pdoc.render_helpers.format_signature(sig.replace(parameters=parameters), colon)


@pass_context
def linked(context, code: str, namespace: str = "", shorten: bool = True) -> Markup:
    """pdoc's links, and in signatures those of classes by their bare names: of this page, its package, linmaps.trees."""
    here, pages = context["module"].modulename, context["all_modules"]
    text = pdoc.render_helpers.linkify(context, code, namespace, shorten)
    if not shorten:
        return text
    package = here.split(".")[0]
    near = [here, *(name for name in pages if name.split(".")[0] == package), "linmaps.trees"]

    def link(m: re.Match) -> str:
        for name in near:
            if isinstance(pages[name].get(m[1]), pdoc.doc.Class):
                href = f"{pdoc.render_helpers.relative_link(here, name)}#{m[1]}"
                return m[0].replace(m[1], f'<a href="{href}">{m[1]}</a>')
        return m[0]

    return Markup(CLASS.sub(link, text))
