"""The page's components without a browser: what they refuse, and stopping what waits."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
from PIL import Image

from paella_jax.serving.draw import Drawn
from paella_jax.serving.limits import TEXT, Limits
from paella_jax.serving.sources import bound_decoding
from paella_jax.serving.studio import Run, Studio

gr = pytest.importorskip("gradio")
VALUES = ["a cat", "", TEXT, 0, 1, "", "", "", "", 0.6, 0, 0, 0, 0, None, None, ["run"]]


@pytest.fixture
def limits(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back afterwards
    limits = Limits(pixels=1000)
    with warnings.catch_warnings():
        bound_decoding(limits)
        yield limits


@pytest.fixture
def drawn():
    """What was drawn to its end, by a pipe that asks before it draws."""
    return []


@pytest.fixture
def tab(limits, drawn):
    from paella_jax.serving.draw_tab import DrawTab

    def drawing(pipe, ask, on_step):
        going_on = on_step(1, 1, [Image.new("RGB", (8, 8))])
        drawn.append(ask.prompt)
        return Drawn([Image.new("RGB", (8, 8))], not going_on)

    studio = Studio([Run("run", SimpleNamespace(), [TEXT])], limits, drawing)
    with gr.Blocks() as page:
        tab = DrawTab(studio, {})
    tab.page = page
    return tab


def sent(tmp_path, size, layers=1):
    """What the editor sends: files that the visitor chose."""
    from gradio.components.image_editor import EditorData
    from gradio.data_classes import FileData

    file = tmp_path / "sent.png"
    Image.new("RGBA", size).save(file)
    one = FileData(path=str(file))
    return EditorData(background=one, layers=[one] * layers, composite=None)


def test_a_large_image_in_the_editor_is_refused_by_its_header(tab, tmp_path):
    editor = tab._fields.editor
    shown = editor.preprocess(sent(tmp_path, (30, 33)))  # above PIL's limit, within ours
    assert shown["background"].size == (30, 33) and len(shown["layers"]) == 1
    with pytest.raises(gr.Error, match="too large; upload a smaller one"):
        editor.preprocess(sent(tmp_path, (40, 40)))


def test_the_editor_has_one_layer(tab, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("it was decoded first"))
    with pytest.raises(gr.Error, match="more than one layer"):
        tab._fields.editor.preprocess(sent(tmp_path, (4, 4), layers=2))


def test_a_drawing_that_waits_in_the_queue_can_be_stopped(tab, drawn):
    """The press is taken at once, the drawing begins when those before it have ended."""
    me, other = SimpleNamespace(session_hash="me"), SimpleNamespace(session_hash="other")
    assert tab.stop(me) == "nothing is being drawn"
    tab.press(me)
    tab.press(other)
    assert tab.stop(me).startswith("stopping")
    assert [lines[0] for lines in tab.draw(me, *VALUES)][-1] == "run: stopped" and not drawn
    assert [lines[0] for lines in tab.draw(other, *VALUES)][-1] == "run: done"
    assert drawn == ["a cat"] and tab.stop(other) == "nothing is being drawn"
    tab.press(me)  # a stop is of one drawing
    assert [lines[0] for lines in tab.draw(me, *VALUES)][-1] == "run: done"


def test_a_press_is_taken_outside_of_the_queue_and_before_the_drawing(tab):
    events = list(tab.page.fns.values())
    (press,) = [event for event in events if event.name == "press"]
    (draw,) = [event for event in events if event.name == "draw"]
    assert not press.queue and draw.queue and draw.trigger_after == press._id
