"""The comparison's page: one source for both texts, images of the same prompts, kept images."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from test_comparison_report import make_row

from paella_jax.comparison.embedded import EmbeddedShapes
from paella_jax.comparison.grids import draw_samples, titles
from paella_jax.comparison.pictures import (
    SHOWN,
    Drawn,
    keep_drawn,
    read_drawn,
    write_drawn,
)
from paella_jax.comparison.report import page, write_report
from paella_jax.data.sources import ShapesSource
from paella_jax.images.write import save_table, to_uint8
from paella_jax.reports.page import Figure, Heading, Table, as_html, as_markdown

MASK = ("mask", "unet", "confidence")
SPEC = "single"
SUBJECT = EmbeddedShapes(SPEC, ConfigDict(), Path("none"))


def captions_of(split, count=12):
    source = ShapesSource(SPEC, split, 400, 3)
    return list(dict.fromkeys(source[i]["caption"] for i in range(400)))[:count]


@pytest.fixture(scope="module")
def drawn():
    """What two cells could have drawn: the truth, and of the second cell every other one wrong."""
    captions = captions_of("validation", 3) + captions_of("heldout", 2)
    truth = SUBJECT.true_images(captions)
    steps = np.stack([truth[0] // (4 - i) for i in range(4)])
    splits, right = ["seen"] * 3 + ["heldout"] * 2, np.ones(5, bool)
    odd = np.arange(5) % 2 == 1
    turned = np.where(odd[:, None, None, None], np.roll(truth, 1, axis=0), truth)
    return [
        Drawn("uniform-unet-random", splits, captions, truth, truth, right, steps),
        Drawn("mask-unet-confidence", splits, captions, turned, truth, ~odd, steps),
    ]


def keep(folder, drawn):
    (folder / "measured").mkdir()
    for number, one in enumerate(drawn):
        write_drawn(folder / "measured" / f"{number}.npz", one)


class Reader(HTMLParser):
    """Tags, attributes and the text of table cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.lines, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.lines.append([])
        self.text = ""

    def handle_data(self, data):
        self.text += data

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.lines[-1].append(self.text)
        self.text = ""


def test_both_texts_have_the_same_tables():
    rows = [make_row(exact=x, seed=i) for i, x in enumerate((0.5, 0.7))] + [make_row(MASK)]
    blocks = page(rows, ["a note"])
    of_markdown = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in as_markdown(blocks).splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]
    lines = Reader(as_html(blocks, None)).lines
    assert lines == of_markdown and len(lines) == 3 * 3 + 3
    assert any("0.600 ± 0.141" in line for line in lines)


def test_the_page_is_escaped_and_stands_alone(tmp_path):
    Image.fromarray(np.full((5, 7, 3), 9, np.uint8)).save(tmp_path / "a.png")
    bad = '<script src="http://x">'
    blocks = [Heading(bad, 1), Table([bad], {bad: [bad]}), Figure("a.png", bad)]
    text = as_html(blocks, tmp_path)
    reader = Reader(text)
    tags = [tag for tag, _ in reader.tags]
    assert not {"script", "link", "iframe"} & set(tags)
    assert reader.lines == [["", bad], [bad, bad]]
    (image,) = [attributes for tag, attributes in reader.tags if tag == "img"]
    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64" and image["alt"] == bad
    assert Image.open(io.BytesIO(b64decode(data))).size == (7, 5)
    metas = [a.get("content", "") for tag, a in reader.tags if tag == "meta"]
    assert "width=device-width, initial-scale=1" in metas
    assert any("default-src 'none'" in content for content in metas)
    assert "a \\| b" in as_markdown([Table(["a | b"], {})])


def test_a_report_shows_what_was_kept(tmp_path, drawn):
    """Images are kept of two cells of three; test_report_files has a folder without any."""
    keep(tmp_path, drawn)
    write_report([make_row(), make_row(MASK), make_row(("mask", "uvit", "random"))], tmp_path)
    html, text = ((tmp_path / f"comparison.{end}").read_text() for end in ("html", "md"))
    images = [a for tag, a in Reader(html).tags if tag == "img"]
    assert len(images) == 3
    for name in ("comparison.png", "comparison_samples.png", "comparison_steps.png"):
        assert f"]({name})" in text and (tmp_path / name).stat().st_size > 1000
    assert not re.search(r"https?:|url\(|<script", re.sub(r"base64,[^\"]*", "", html))
    for page_text in (html, text):
        assert "No images were kept of mask-uvit-random." in page_text


def test_the_grid_has_the_true_images_first_and_marks_the_cells(tmp_path, drawn):
    rows = [make_row(), make_row(MASK)]
    by_cell = {one.cell: one for one in drawn}
    caption = draw_samples(tmp_path / "grid.png", by_cell, rows)
    assert "The same 5 prompts" in caption
    assert titles(rows)["mask-unet-confidence"] == "unet\nmask\nconfidence"
    grid = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)
    size = 32 * 3
    lines, columns = 5, 3
    top, left = grid.shape[0] - lines * (size + 6), grid.shape[1] - columns * (size + 6)
    tile = lambda row, column: grid[top + row * (size + 6) :, left + column * (size + 6) :][
        :size, :size
    ]
    for row in range(lines):
        true = np.repeat(np.repeat(drawn[0].truth[row], 3, 0), 3, 1)
        assert np.array_equal(tile(row, 0), true), "no mark on the truth"
        below = slice(20, None)  # under the mark
        assert np.array_equal(tile(row, 1)[below], true[below])
        assert np.array_equal(tile(row, 2)[below], true[below]) == (row % 2 == 0)
        red = [(tile(row, c) == (0xCC, 0, 0)).all(-1).sum() > 10 for c in (1, 2)]
        green = [(tile(row, c) == (0, 0xAA, 0)).all(-1).sum() > 5 for c in (1, 2)]
        assert red == [False, row % 2 == 1] and green == [True, row % 2 == 0]


def test_long_titles_are_wrapped_and_stay_in_the_image(tmp_path):
    images = np.zeros((2, 2, 8, 8, 3), np.float32)
    save_table(tmp_path / "a.png", images, ["x", "word " * 20], ["y", "word " * 60])
    save_table(tmp_path / "b.png", images, ["x", "x"], ["y", "y"])
    long, short = (Image.open(tmp_path / name).size for name in ("a.png", "b.png"))
    assert long[0] == short[0] and long[1] > short[1]


# --- what is kept --------------------------------------------------------------------------------


class FakePipeline:
    """Draws the truth of captions, and notes what it was asked."""

    def generate(self, captions, **options):
        self.captions, self.options = captions, options
        images = SUBJECT.true_images(captions).astype(np.float32) / 255
        images[0] = 1 - images[0]  # wrong
        trace = np.arange(3)[:, None, None, None] * np.ones((1, len(captions), 2, 2), int)
        return SimpleNamespace(images=images, trace=trace)

    def decode(self, tokens):
        return np.broadcast_to(tokens[:, :1, :1, None] / 2, (len(tokens), 32, 32, 3))


def test_different_captions_are_drawn_with_the_seeds_they_were_measured_with(tmp_path):
    seen, heldout = captions_of("validation"), captions_of("heldout", 2)
    seen.insert(1, seen[0])  # a caption may come twice
    row = make_row() | {"guidance_scale": [1.0, 3.0], "temperature": [0.7, 0.3]}
    pipeline, file = FakePipeline(), tmp_path / "measured" / "one.npz"
    file.parent.mkdir()
    keep_drawn(file, pipeline, row, {"seen": seen, "heldout": heldout}, SUBJECT, 3)
    assert pipeline.options == {
        "seed": [0, *range(2, SHOWN + 1), 0, 1], "trace": True, "num_steps": 3,
        "sampler": "random", "batch_size": SHOWN + 2,
        "guidance_scale": (1.0, 3.0), "temperature": (0.7, 0.3),
    }  # fmt: skip
    (found,) = read_drawn(tmp_path, [row["cell"]]).values()
    assert found.captions == [seen[0], *seen[2 : SHOWN + 1], *heldout]
    assert found.splits == ["seen"] * SHOWN + ["heldout"] * 2
    assert found.exact.tolist() == [False] + [True] * (SHOWN + 1)
    assert np.array_equal(found.images[1:], found.truth[1:]) and found.images.dtype == np.uint8
    assert found.steps[:, 0, 0, 0].tolist() == to_uint8(np.array([0, 0.5, 1])).tolist()
    assert [f.name for f in file.parent.iterdir()] == ["one.npz"]


def test_only_the_same_prompts_are_set_side_by_side(tmp_path, drawn):
    first, second = drawn
    keep(tmp_path, [first, second._replace(captions=[*second.captions[:4], "another"])])
    cells = [second.cell, first.cell]
    assert list(read_drawn(tmp_path, [first.cell, "unknown", second.cell])) == [first.cell]
    keep_again = tmp_path / "measured" / "1.npz"
    write_drawn(keep_again, second)
    assert list(read_drawn(tmp_path, cells)) == cells


def test_damaged_images_are_named(tmp_path, drawn):
    keep(tmp_path, drawn)
    file = tmp_path / "measured" / "1.npz"
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"1\.npz is damaged .*; delete it and 1\.json"):
        write_report([make_row(), make_row(MASK)], tmp_path)
    assert not (tmp_path / "comparison.md").exists()
