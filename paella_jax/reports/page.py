"""A page of results, put together once and written as Markdown or as one HTML file.

The HTML holds its images and its style; it has no script and loads nothing.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

NARROWEST = 1000  # pixels that a wide image keeps; it is scrolled on a phone
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 78rem; margin: 0 auto; padding: 0 1rem 3rem; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 .6rem; }
p, ul, figcaption { max-width: 52rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; border-bottom: 2px solid #888; }
th:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
tbody tr:hover > * { background: #f2f6fa; }
figure { margin: 1rem 0; }
img { display: block; width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #555; margin-top: .4rem; }
@media (max-width: 40rem) { body { font-size: 15px; } th, td { padding: .25rem .4rem; }
  th:first-child { max-width: 9rem; white-space: normal; } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the page's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences; nothing where it is empty."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Lines by name, each with a value per column; names have the empty column in front."""

    columns: Sequence[str]
    lines: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A PNG beside the page, by its name, and what it shows."""

    file: str
    caption: str


Block = Heading | Text | Bullets | Table | Figure


def as_markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown, which names the images."""
    parts = [_markdown(block) for block in blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_html(blocks: Sequence[Block], folder: Path) -> str:
    """The blocks as one HTML file with the images of `folder` inside. All text is escaped."""
    title = next((b.text for b in blocks if isinstance(b, Heading)), "Results")
    body = "\n".join(_html(block, folder) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Table(columns, lines):
            rows = [_cells("", *columns), "|---" * (len(columns) + 1) + "|"]
            return "\n".join([*rows, *(_cells(name, *own) for name, own in lines.items())])
        case Figure(file, caption):
            return f"![{caption}]({file})"


def _cells(*values: str) -> str:
    """As "| a | b |"; an empty first one leaves its space out."""
    shown = " | ".join(value.replace("|", "\\|") for value in values)
    return f"| {shown} |" if values[0] else f"|{shown} |"


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Bullets(items):
            return f"<ul>{_tags('li', items)}</ul>" if items else ""
        case Table(columns, lines):
            head = _tags("th", ["", *columns])
            body = "\n".join(
                f"<tr><th>{escape(name)}</th>{_tags('td', own)}</tr>" for name, own in lines.items()
            )
            return (
                f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
                f"<tbody>{body}</tbody></table></div>"
            )
        case Figure(file, caption):
            return _image(folder / file, caption)


def _tags(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)


def _image(file: Path, caption: str) -> str:
    with Image.open(file, formats=["PNG"]) as image:
        width, height = image.size
    limits = f"max-width:{width}px;min-width:{min(width, NARROWEST)}px"
    data, shown = b64encode(file.read_bytes()).decode("ascii"), escape(caption)
    return (
        f'<figure><div class="wide"><img src="data:image/png;base64,{data}" alt="{shown}" '
        f'width="{width}" height="{height}" style="{limits}"></div>'
        f"<figcaption>{shown}</figcaption></figure>"
    )
