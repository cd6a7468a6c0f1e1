"""What stands behind the page, without the page: limits, one drawing at a time, previews, stop."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

from paella_jax.config import UserError
from paella_jax.pipelines.drawn_images import Images
from paella_jax.serving import draw as drawing
from paella_jax.serving.draw import Drawn
from paella_jax.serving.limits import (
    IMAGE,
    INPAINT,
    OUTPAINT,
    TASKS,
    TEXT,
    VARIATIONS,
    Ask,
    Limits,
    as_number,
    check,
)
from paella_jax.serving.studio import (
    COMPILING,
    Run,
    Studio,
    View,
    defaults_of,
    in_words,
    names_of,
    strip_image,
)

WHITE, BLACK = Image.new("RGB", (8, 8), "white"), Image.new("L", (8, 8), 0)
STEPS = 4


def plain(value=0):
    image = Image.new("RGB", (8, 8), (value, value, value))
    image.info["record"] = "what drew it"
    return image


def slow_pipe(pipe, ask, on_step):
    """Draws in steps; a step begins when the pipe's gate lets it, and asks whether to go on."""
    pipe.running.append(threading.get_ident())
    assert len(pipe.running) == 1, "two drawings at once"
    try:
        images = []
        for step in range(1, STEPS + 1):
            assert pipe.gate.acquire(timeout=30)
            images = [plain(step)] * ask.count
            if not on_step(step, STEPS, images):
                return Drawn(images, True)
        return Drawn(images, False)
    finally:
        pipe.running.pop()


def studio_of(count=1, open_gate=True, tasks=TASKS):
    gate, running = threading.Semaphore(10_000 if open_gate else 0), []
    pipe = SimpleNamespace(gate=gate, running=running)
    runs = [Run(f"run{n}", pipe, tasks) for n in range(count)]
    return Studio(runs, Limits(), slow_pipe), gate


def test_views_end_with_everything():
    studio, _ = studio_of()
    views = list(studio.stream(Ask("a cat", count=3), [0]))
    (last,) = views[-1]
    assert (last.state, last.step, last.total) == ("done", STEPS, STEPS)
    assert len(last.images) == 3 and len(last.strip) == STEPS
    assert [image.getpixel((0, 0))[0] for image in last.strip] == [1, 2, 3, 4]


def test_previews_come_while_it_draws():
    studio, gate = studio_of(open_gate=False)
    stream = studio.stream(Ask("a cat"), [0])
    seen = []
    for (view,) in stream:
        seen.append((view.step, view.state))
        gate.release()
    assert seen[-1] == (STEPS, "done") and {step for step, _ in seen} == {0, 1, 2, 3, 4}


def test_a_stop_ends_at_the_next_step_and_keeps_what_there_is():
    studio, gate = studio_of(open_gate=False)
    stop = threading.Event()
    gate.release(2)
    for (view,) in studio.stream(Ask("a cat"), [0], stop):
        if view.step == 2 and not stop.is_set():
            stop.set()
            gate.release()
    assert (view.state, view.step) == ("stopped", 3) and view.images


def test_a_visitor_who_goes_away_stops_the_drawing():
    studio, gate = studio_of(open_gate=False)
    stream = studio.stream(Ask("a cat"), [0])
    next(stream)
    stream.close()
    gate.release()  # one step more, and the next visitor's four
    gate.release(STEPS)
    (last,) = list(studio.stream(Ask("a dog"), [0]))[-1]
    assert last.state == "done"


def test_visitors_wait_for_each_other():
    """`slow_pipe` fails where two draw at once; a stop while waiting draws nothing."""
    studio, gate = studio_of(open_gate=False)
    first = studio.stream(Ask("a cat"), [0])
    while next(first)[0].state != "drawing":
        pass  # with the gate closed there is no news behind it
    stop = threading.Event()
    second, third = studio.stream(Ask("a dog"), [0]), studio.stream(Ask("a fox"), [0], stop)
    assert next(second)[0].state == next(third)[0].state == "waiting"
    stop.set()
    gate.release(2 * STEPS)
    assert list(first)[-1][0].state == list(second)[-1][0].state == "done"
    assert list(third)[-1][0].state == "stopped"


def test_programs_are_compiled_before_the_first_request_which_is_told_to_wait():
    studio, _ = studio_of(2)
    said, compiled, began, go_on = [], [], threading.Event(), threading.Event()

    def warm_up(count):
        compiled.append(count)
        began.set()
        assert go_on.wait(30)
        return 1.0

    def broken(count):
        raise RuntimeError("out of memory\nby so much")

    studio.runs[0].pipe.warm_up, both = warm_up, [run.pipe for run in studio.runs]
    studio.runs[1] = studio.runs[1]._replace(pipe=SimpleNamespace(**vars(both[1])))
    studio.runs[1].pipe.warm_up = broken
    worker = threading.Thread(target=studio.warm_up, args=([4, 1], said.append))
    worker.start()
    assert began.wait(30) and studio.warming == "run0"
    stream = studio.stream(Ask("a cat"), [1])
    (waiting,) = next(stream)
    assert waiting.state == COMPILING and "as the server starts" in in_words((waiting,), ["run1"])
    go_on.set()
    assert list(stream)[-1][0].state == "done", "a run that cannot be compiled for ahead"
    worker.join(30)
    assert compiled == [4, 1] and studio.warming == ""
    assert said[1] == "compiled for run0 in 2 s" and said[-1].endswith(
        "(RuntimeError: out of memory)"
    )


def test_two_runs_draw_the_same_request():
    studio, _ = studio_of(2)
    views = list(studio.stream(Ask("a cat"), [0, 1]))
    assert [view.state for view in views[-1]] == ["done", "done"]
    assert all(len(view) == 2 for view in views)


def test_an_image_of_the_study_does_not_say_who_drew_it():
    image = studio_of(2)[0].draw_one(1, "a cat", 5)
    assert image.getpixel((0, 0))[0] == STEPS and image.info == {}


def test_what_goes_wrong_reaches_the_visitor_and_the_next_one_draws():
    studio, _ = studio_of()

    def broken(*_):
        raise RuntimeError("out of memory")

    working, studio._drawing = studio._drawing, broken
    with pytest.raises(RuntimeError, match="out of memory"):
        list(studio.stream(Ask("a cat"), [0]))
    studio._drawing = working
    assert list(studio.stream(Ask("a cat"), [0]))[-1][0].state == "done"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": "a" * 1001}, "1001 characters; give 1000"),
        ({"negative": "a" * 1001}, "the negative prompt has 1001"),
        ({"task": "paint"}, "none of text to image, image to image"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"count": 17}, "number of images must be a whole number from 1 to 16, got 17"),
        ({"steps": 0}, "number of steps must be a whole number from 1 to 100"),
        ({"height": 2000}, "height must be a whole number from 1 to 1024"),
        ({"guidance": float("nan")}, "guidance must be from 0 to 100"),
        ({"task": IMAGE}, "image to image needs an image"),
        ({"task": IMAGE, "image": WHITE, "strength": 0.0}, "strength must be from 0.01 to 1"),
        ({"task": INPAINT, "image": WHITE}, "nothing is marked"),
        ({"task": INPAINT, "image": WHITE, "mask": BLACK}, "nothing is marked"),
        ({"task": OUTPAINT, "image": WHITE}, "needs a margin"),
        ({"task": OUTPAINT, "image": WHITE, "margins": (0, 0, 0, 2.0)}, "margin at the right"),
    ],
)
def test_requests_over_the_limits(changes, message):
    with pytest.raises(ValueError, match=message):
        check(replace(Ask("a cat"), **changes), Limits())


def test_a_run_says_what_it_cannot_do():
    studio, _ = studio_of(tasks=[TEXT])
    with pytest.raises(ValueError, match="run0 cannot do variations"):
        next(studio.stream(Ask("", VARIATIONS, image=WHITE), [0]))
    with pytest.raises(ValueError, match="no run is chosen"):
        next(studio.stream(Ask("a cat"), []))


# --- sizes of images


class FakePipe:
    """Takes calls as pipelines do, draws three steps of grey and keeps what it was asked."""

    def __init__(self, sizes=None, side=32):
        self.sizes, self._side = sizes or SimpleNamespace(divisor=8, only_side=0), side
        self.defaults = {"num_steps": 40}

    def size_of(self, height, width):
        return height or self._side, width or self._side

    def __call__(self, *, callback, callback_every, **asked):
        self.asked, self.every = asked, callback_every
        records = [{"prompt": asked["prompt"], "seed": asked["seed"], "number": 0}]
        for step in range(1, 4):
            if callback(step, 3, [plain(step)]) is False:
                return Images([plain(step)], records, stopped=True)
        return Images([plain(3)], records)


def test_a_request_becomes_a_call():
    pipe = FakePipe()
    ask = Ask("a cat", negative="a dog", seed=5, count=2, steps=20, guidance=1.5, height=64)
    drawn = drawing.draw(pipe, ask, lambda *_: True)
    assert pipe.asked == {
        "prompt": "a cat", "negative_prompt": "a dog", "seed": 5, "num_images_per_prompt": 2,
        "num_steps": 20, "guidance_scale": 1.5, "height": 64, "width": None,
    }  # fmt: skip
    assert not drawn.stopped and drawn.images[0].info["seed"] == "5"
    assert pipe.every == 2
    assert drawing.draw(pipe, Ask("a cat"), lambda step, *_: step < 2).stopped and pipe.every == 3


def test_image_tasks_become_calls():
    pipe, mask = FakePipe(), Image.new("L", (8, 8), 255)
    call = lambda ask: drawing.arguments(pipe, ask)
    asked = call(Ask("a cat", IMAGE, image=WHITE, strength=0.3))
    assert asked["image"] is WHITE and asked["strength"] == 0.3 and "mask" not in asked
    asked = call(Ask("a cat", INPAINT, image=WHITE, mask=mask))
    assert asked["mask"] is mask and "strength" not in asked
    asked = call(Ask("a cat", VARIATIONS, image=WHITE))["prompt"]
    assert asked.prompt == "a cat" and asked.images == (WHITE,)
    asked = call(Ask("a cat", OUTPAINT, image=WHITE, margins=(0, 1.0, 0, 0)))
    assert (asked["height"], asked["width"]) == (64, 32) == asked["mask"].shape


def test_runs_say_what_they_can_do():
    networks = SimpleNamespace(low_vqgan=None, image_encoder=None)
    token = SimpleNamespace(networks=networks)
    assert drawing.tasks_of(token) == [TEXT, IMAGE, INPAINT, OUTPAINT]
    without = SimpleNamespace(stage_b=object(), stage_c=object(), can_encode=False)
    assert drawing.tasks_of(without) == [TEXT], "no image can be read without a compressor"
    networks.image_encoder = object()
    assert drawing.tasks_of(token)[-1] == VARIATIONS
    networks.low_vqgan = object()
    with pytest.raises(UserError, match="--super_resolution of its base"):
        drawing.tasks_of(token)
    with pytest.raises(UserError, match="Stage B"):
        drawing.tasks_of(SimpleNamespace(stage_b=object(), stage_c=None))


def test_a_larger_canvas():
    pipe = FakePipe()
    ask = Ask("a cat", OUTPAINT, image=plain(9).resize((50, 50)), margins=(0.0, 0.5, 0.3, 0.0))
    image, marked = drawing.canvas(pipe, ask)
    assert image.size == (32 + 8, 32 + 16) and marked.shape == (48, 40)
    assert not marked[:32, 8:].any() and marked.sum() == 48 * 40 - 32 * 32


@pytest.mark.parametrize("sizes", [SimpleNamespace(divisor=8, only_side=32),
                                   SimpleNamespace(side=32)])  # fmt: skip
def test_the_only_canvas_there_is(sizes):
    ask = Ask("a cat", OUTPAINT, image=plain(9), margins=(0.0, 0.0, 0.5, 0.5))
    image, marked = drawing.canvas(FakePipe(sizes), ask)
    assert image.size == (32, 32) and (~marked).sum() == 16 * 16
    assert not marked[8:24, 8:24].any()


def test_a_strip_of_two_scales():
    row = strip_image([plain(1).resize((4, 4)), plain(2)])
    assert row.shape == (8, 16, 3) and row[0, 0, 0] == 1 and row[0, 8, 0] == 2


# --- words


def test_how_far_it_is():
    views = (
        View(),
        View(state="drawing"),
        View(step=3, total=12, state="drawing"),
        View(step=3, total=12, state="stopped"),
        View(step=12, total=12, state="done"),
    )
    assert in_words(views, "abcde").splitlines() == [
        "a: waiting",
        "b: begins (the first drawing of its kind is compiled before)",
        "c: step 3 of 12",
        "d: stopped at step 3 of 12",
        "e: done",
    ]


def test_runs_have_names_that_differ():
    assert names_of(["/x/runs/one"]) == ["one"]
    assert names_of(["/x/runs/one", "/y/runs/one"]) == ["x/runs/one", "y/runs/one"]
    assert names_of(["/x/one", "/x/one"]) == ["/x/one (1)", "/x/one (2)"]


def test_empty_fields_are_told_where_all_runs_agree():
    def run(**sampler):
        return Run("run", SimpleNamespace(defaults={"height": 32, "width": 32} | sampler), [TEXT])

    first = run(num_steps=12, guidance_scale=(1.0, 2.5))
    assert defaults_of([first]) == {
        "steps": "12", "guidance": "1 to 2.5", "height": "32", "width": "32",
    }  # fmt: skip
    assert "steps" not in defaults_of([first, run(num_steps=8, guidance_scale=(1.0, 2.5))])


@pytest.mark.parametrize(
    "text, kind, value", [("", int, None), (" 8 ", int, 8), ("2.5", float, 2.5)]
)
def test_fields_are_numbers_or_empty(text, kind, value):
    assert as_number("steps", text, kind) == value


def test_fields_that_are_no_numbers():
    with pytest.raises(ValueError, match="steps must be a whole number, or empty"):
        as_number("steps", "2.5", int)


def test_a_canvas_with_its_margins_is_held_to_the_limit():
    """The margins ask for sizes as height and width do; a run's own size is always drawn."""
    sizes = SimpleNamespace(divisor=4, only_side=0)
    pipe = SimpleNamespace(sizes=sizes, size_of=lambda *_: (32, 32))
    studio = Studio([Run("run", pipe, TASKS)], Limits(side=48), slow_pipe)
    ask = Ask("a cat", OUTPAINT, image=WHITE, margins=(0.0, 0.5, 0.0, 0.0))
    studio.check(ask, [0])
    for margins, said in (((1.0, 1.0, 0.0, 0.0), "96x32"), ((0.0, 0.0, 0.25, 0.5), "32x56")):
        with pytest.raises(ValueError, match=f"make {said} pixels, the most is 48 a side"):
            studio.check(replace(ask, margins=margins), [0])
    sizes.only_side = 32  # the canvas is drawn smaller, in the one size
    studio.check(replace(ask, margins=(1.0, 1.0, 1.0, 1.0)), [0])
