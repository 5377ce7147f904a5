"""Docstrings as HTML, as this house writes them: plain text in which no character but a backtick is markup.

    paragraphs     end at an empty line; a line that could have been longer, or that starts with `name:`, is one by itself
    >>> examples   to the next empty line
    indented       lines are kept as they stand
    * items        and 1. items, after an empty line, with what hangs under them by as many spaces
    | tables |     with |---| under the head

So `W*W`, `*y.shape`, `<p, u>`, `|u| + |v|` and `[B, C]` come out as they went in.
"""

import html
import re
import textwrap

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonConsoleLexer

ITEM = re.compile(r"(\*|\d+\.) (?=\S)")
RULE = re.compile(r"\|[-| ]+\|$")
NAMES = r"(?!None:)((?:[A-Za-z_]\w*(?:=\S+)?, )*[A-Za-z_]\w*(?:=\S+)?:)(?=\s)"
LABEL, LABEL_ON = re.compile(rf"(\A|  ){NAMES}"), re.compile(rf"(  ){NAMES}")  # at the start of a line, and behind code
LABELS, LABELS_ON = re.compile(rf"(\A|  |; ){NAMES}"), re.compile(rf"(  |; ){NAMES}")  # where the line starts with one
PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
WIDTH = 108  # a line that ends a sentence, and would have held the next word within this, was ended on purpose


def to_html(doc: str) -> str:
    """The HTML of a docstring without its common indentation."""
    lines, out = doc.expandtabs().split("\n"), []
    while lines:
        if not lines[0].strip():
            lines.pop(0)
        elif lines[0].startswith(">>> "):
            out.append(example(taken(lines, lambda line: bool(line.strip()))))
        elif lines[0].startswith("  "):
            out.append(kept(taken(lines, lambda line: not line.strip() or line.startswith("  "))))
        elif ITEM.match(lines[0]):
            out.append(items(lines))
        elif len(lines) > 1 and lines[0].startswith("|") and RULE.match(lines[1]):
            out.append(table(taken(lines, lambda line: line.startswith("|"))))
        else:
            first = lines.pop(0)
            out.append(paragraph([first, *taken(lines, goes_on)]))
    return "\n".join(out)


def summary(doc: str) -> str:
    """The first sentence, as HTML."""
    first = doc.split("\n\n")[0]
    return re.sub("</?b>", "", inline(re.split(r"(?<=[.:])(?:  |\n(?= {4})|$)", first)[0].rstrip(":,")))


def taken(lines: list[str], belongs) -> list[str]:
    """The lines in front that belong, taken out of the list."""
    end = next((i for i, line in enumerate(lines) if not belongs(line)), len(lines))
    block = lines[:end]
    del lines[:end]
    return block


def goes_on(line: str) -> bool:
    return bool(line.strip()) and not line.startswith((">>> ", "    "))


def example(block: list[str]) -> str:
    return highlight("\n".join(block), PythonConsoleLexer(), HtmlFormatter(cssclass="pdoc-code codehilite"))


def kept(block: list[str]) -> str:
    text = textwrap.dedent("\n".join(block)).strip("\n")
    return example(text.split("\n")) if text.startswith(">>> ") else f"<pre>{html.escape(text, quote=False)}</pre>"


def items(lines: list[str]) -> str:
    kind, out = "ul" if lines[0].startswith("*") else "ol", []
    while lines and (mark := ITEM.match(lines[0])):
        first, width = lines.pop(0), mark.end()
        rest = taken(lines, lambda line, width=width: not line[:width].strip())
        out.append(f"<li>{to_html(chr(10).join(line[width:] for line in [first, *rest]))}</li>")
    return f"<{kind}>{''.join(out)}</{kind}>"


def table(rows: list[str]) -> str:
    head, _, *body = ([cell.strip() for cell in row.strip("|").split(" | ")] for row in rows)
    line = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{inline(cell)}</{tag}>" for cell in cells) + "</tr>"
    return f"<table>{line(head, 'th')}{''.join(line(cells, 'td') for cells in body)}</table>"


def paragraph(block: list[str]) -> str:
    parts = [[block[0]]]
    for line in block[1:]:
        last = parts[-1][-1]
        ended = last.endswith((".", ";")) and len(last) + 1 + len(line.split()[0]) <= WIDTH
        if ended or (last.endswith((".", ";", ":")) and LABEL.match(line)):
            parts.append([])
        parts[-1].append(line)
    return f"<p>{'<br>'.join(inline(chr(10).join(part)) for part in parts)}</p>"


def inline(text: str) -> str:
    """Text with its `code`, its labels in bold and its papers as links."""
    pieces = re.split(r"`([^`]+)`", text)
    code = (f"<code>{html.escape(piece, quote=False)}</code>" for piece in pieces[1::2])
    plain = [html.escape(piece, quote=False) for piece in pieces[::2]]
    first, more = (LABELS, LABELS_ON) if LABEL.match(text) else (LABEL, LABEL_ON)
    plain = [(more if i else first).sub(r"\1<b>\2</b>", piece) for i, piece in enumerate(plain)]
    plain = [PAPER.sub(r'<a href="https://arxiv.org/abs/\1">\g<0></a>', piece) for piece in plain]
    return "".join(a + b for a, b in zip(plain, [*code, ""]))
