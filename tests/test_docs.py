"""What the code and the pages cite exists: pages, sections, links, paths, modules and presets."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import small

from paella_jax.config import CONFIGS, load_config
from paella_jax.encoders.byte_tokenizer import ByteTokenizer
from paella_jax.encoders.words import WordTokenizer

ROOT = small.ROOT
PACKAGE = ROOT / "paella_jax"
README = ROOT / "README.md"
MAP = "## Map of the house"
PAGES = [*sorted((PACKAGE / "docs").rglob("*.md")), README, ROOT / "CONTRIBUTING.md"]
PATTERNS = ("paella_jax/**/*.py", "configs/*.py", "tests/*.py", "tests/parity/*.py", "launch/*",
            ".ci/*", "pyproject.toml")  # fmt: skip
CODE = [file for pattern in PATTERNS for file in sorted(ROOT.glob(pattern))]
EVERYTHING = [*CODE, *PAGES, ROOT / "CHANGELOG.md"]
NAMES = [str(file.relative_to(ROOT)) for file in EVERYTHING]

NUMBER = r"\d+(?:\.\d+)*"
NUMBERS = rf"{NUMBER}(?:,? (?:and )?{NUMBER})*"
CITATION = re.compile(rf"docs/((?:models/)?[\w-]+\.md)(?:,? (traps?|sections?))?(?: ({NUMBERS}))?")
SECTIONS = re.compile(rf"\b[Ss]ections? ({NUMBERS})")
LINK = re.compile(r"\]\(([^)\s]+)\)|\bsrc=\"([^\"]+)\"")
PLACE = re.compile(r"`((?:[\w-]+/)+\w+\.py|\w+\.py)(?::(\w+))?`")
MODULE = re.compile(r"`(paella_jax(?:\.\w+)+)`")
CHOOSABLE = sorted(f.stem for f in CONFIGS.glob("*.py") if "def get_config" in f.read_text())
PRESET = re.compile(rf"(?<![\w/.])(?:configs/)?({'|'.join(CHOOSABLE)})(?:\.py)?:([a-z0-9]\w*)")
# Composed, so that this file does not hold what it forbids.
FORBIDDEN = ["reference" + "/", "stack" + "-facts", "style" + "-anchors"]


def joined(text: str) -> str:
    """The text with its lines joined, since a citation may go on behind a line's end."""
    return re.sub(r"[ ]*\n[ #]*", " ", text)


def numbers_of(found: str | None) -> list[str]:
    return re.findall(NUMBER, found or "")


@cache
def headings(page: Path) -> dict[str, str]:
    """{section number: title} of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return dict(re.findall(rf"^##+ ({NUMBER})\.? (.*)$", text, flags=re.MULTILINE))


@cache
def traps(page: Path) -> set[str]:
    """Numbers of the items in a page's section of traps."""
    section = re.search(r"^## [\d.]+ Traps.*?(?=^## |\Z)", page.read_text(), re.M | re.S)
    return set(re.findall(r"^(\d+)\. ", section[0], re.M)) if section else set()


def wrong_citations(text: str) -> list[str]:
    """Those of pages that are not there, or that lack the section or trap."""
    wrong = []
    for name, kind, found in CITATION.findall(joined(text)):
        page = PACKAGE / "docs" / name
        if not page.is_file():
            wrong.append(f"no page docs/{name}")
            continue
        known = traps(page) if kind.startswith("trap") else set(headings(page))
        kind = "trap" if kind.startswith("trap") else "section"
        wrong += [f"docs/{name} has no {kind} {n}" for n in numbers_of(found) if n not in known]
    return wrong


def wrong_words(text: str) -> list[str]:
    return [f"cites {word!r}" for word in FORBIDDEN if word in text]


def wrong_presets(text: str) -> list[str]:
    """Those of `--config NAME:preset` or `configs/NAME.py:preset` that cannot be loaded."""
    wrong = []
    for name, preset in PRESET.findall(text):
        try:
            load_config(f"{name}:{preset}")
        except ValueError as error:
            wrong.append(str(error))
    wrong += [f"no {path}" for path in re.findall(r"(?<![\w/])configs/[a-z]\w*\.py", text)
              if not (ROOT / path).is_file()]  # fmt: skip
    return wrong


def wrong_links(text: str, page: Path) -> list[str]:
    targets = [link or image for link, image in LINK.findall(text)]
    inside = [t.partition("#")[0] for t in targets if "://" not in t and not t.startswith("#")]
    return [f"no {target}" for target in inside if not (page.parent / target).exists()]


def defines(file: Path, name: str) -> bool:
    """Whether a module has a class, function or constant of this name, or exports it."""
    text = file.read_text()
    return bool(re.search(rf"^(?:(?:class|def) )?{name}\b", text, re.M)) or f'"{name}"' in text


def wrong_places(text: str) -> list[str]:
    """Files in `backticks`, as seen from the checkout or the package, and names in them."""
    wrong = []
    for path, name in PLACE.findall(text):
        file = next((f for f in (ROOT / path, PACKAGE / path) if f.is_file()), None)
        if file is None:
            wrong.append(f"no {path}")
        elif name and not path.startswith("configs/") and not defines(file, name):
            wrong.append(f"{path} defines no {name}")
    return wrong


def wrong_modules(text: str) -> list[str]:
    """Dotted names in `backticks`, of a module or of something in it."""
    wrong = []
    for dotted in MODULE.findall(text):
        place = ROOT / dotted.replace(".", "/")
        file = next((f for f in (place.parent.with_suffix(".py"), place.parent / "__init__.py")
                     if f.is_file()), None)  # fmt: skip
        there = place.is_dir() or place.with_suffix(".py").is_file()
        if not there and not (file and defines(file, place.name)):
            wrong.append(f"no {dotted}")
    return wrong


def wrong_sections(text: str, page: Path) -> list[str]:
    """A page's mentions of its own sections ("section 2.3")."""
    found = [n for numbers in SECTIONS.findall(joined(text)) for n in numbers_of(numbers)]
    return [f"has no section {n}" for n in found if n not in headings(page)]


def mapped(readme: str) -> list[Path]:
    """Every path that the README's map names: a folder's content is indented below it."""
    found: list[Path] = []
    folder = ROOT
    for line in readme.split(MAP)[1].split("```")[1].strip("\n").splitlines():
        if not line.startswith(" "):
            folder = ROOT
        names = re.split(r" {3,}", line.strip())[0].split()
        found += [folder / name for name in names]
        if not line.startswith(" ") and len(names) == 1:
            folder = ROOT / names[0]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_citations_exist(name):
    text = (ROOT / name).read_text()
    if name != "tests/test_docs.py":
        assert wrong_citations(text) == []
    assert wrong_words(text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_what_exists(page):
    text = page.read_text()
    wrong = [*wrong_links(text, page), *wrong_places(text), *wrong_presets(text)]
    assert wrong + wrong_modules(text) == []
    if PACKAGE in page.parents:
        assert wrong_sections(text, page) == []


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("configs/", "launch/"))])
def test_examples_name_presets_that_exist(name):
    assert wrong_presets((ROOT / name).read_text()) == []


def test_the_changelog_names_what_moved_where():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert wrong_links(text, ROOT / "CHANGELOG.md") == []
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    assert rows and [wrong for row in rows for wrong in wrong_modules(row[2])] == []


def test_the_readme_is_short_and_its_map_true():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    paths = mapped(text)
    assert [path for path in paths if not path.exists()] == []
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms <= {path.name for path in paths if path.parent == PACKAGE}


def test_the_readme_s_prompts_fit_its_small_presets():
    prompts = re.findall(r'"(an? (?:large|small) [^"]+)"', README.read_text())
    assert len(prompts) >= 2
    for preset in ("paella:tiny", "paella:shapes", "muse:tiny", "stage_c:tiny"):
        text = load_config(preset).text
        units = text.get("units", "bytes")
        tokenizer = {"bytes": ByteTokenizer, "words": WordTokenizer}[units](text.max_length)
        tokenizer(prompts)  # refuses those that are longer


def test_sections_are_read():
    muse = PACKAGE / "docs/models/muse.md"
    assert {"1", "1.2", "2.8", "6"} <= set(headings(muse)) and "1.10" not in headings(muse)
    assert {"1", "12"} <= traps(muse)
    assert (
        wrong_citations("(docs/models/muse.md 1.5, 2.8) and docs/models/muse.md, traps 1,\n  #  12")
        == []
    )


@pytest.mark.parametrize(
    "line, wrong",
    [
        ("docs/models/dalle.md 1", "no page docs/models/dalle.md"),
        ("docs/models/muse.md 7.7", "docs/models/muse.md has no section 7.7"),
        ("docs/models/muse.md 1.5, 9.1)", "docs/models/muse.md has no section 9.1"),
        ("docs/models/paella.md 2.3 and\n    # 2.99", "docs/models/paella.md has no section 2.99"),
        ("docs/models/paella.md,\ntraps 1 and 99", "docs/models/paella.md has no trap 99"),
        ("docs/jax.md 7.4", "docs/jax.md has no section 7.4"),
    ],
)
def test_broken_citations_are_found(line, wrong):
    assert wrong_citations(line) == [wrong]


def test_other_broken_names_are_found(tmp_path):
    assert len(wrong_presets("--config paella:huge and configs/muse.py:1b configs/x.py")) == 3
    assert len(wrong_places("`models/nothing.py`, `models/paella.py:Nothing`")) == 2
    assert len(wrong_modules("`paella_jax.nothing`, `paella_jax.pipelines.load.nothing`")) == 2
    assert len(wrong_links('[a](gone.md) <img src="gone.png"> [b](https://x.org)', README)) == 2
    assert wrong_sections("see section 99", PAGES[0]) == ["has no section 99"]
    assert len(wrong_words(" ".join(FORBIDDEN))) == 3
    assert mapped(f"{MAP}\n```\na/\n  b.py  c/   d\ne/  f/\n```") == [
        ROOT / "a/", ROOT / "a/b.py", ROOT / "a/c", ROOT / "e", ROOT / "f",
    ]  # fmt: skip
