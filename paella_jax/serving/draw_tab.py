"""The tab that draws and edits: what is asked for on the left, each run's images on the right."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from paella_jax.config import UserError
from paella_jax.serving.limits import (
    IMAGE,
    INPAINT,
    OUTPAINT,
    SIDES,
    TASKS,
    TEXT,
    Ask,
    as_number,
)
from paella_jax.serving.sources import for_editor, mask_of, read_upload
from paella_jax.serving.studio import Run, Studio, Views, in_words, strip_image

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
DRAWING: dict[str, Any] = {"concurrency_id": "drawing", "concurrency_limit": 1} | PRIVATE
SENT = "sent: others may be before you"
SHOWN: dict[str, Any] = {
    "format": "png",
    "interactive": False,
    "elem_classes": "small-images",
    "buttons": ["download", "fullscreen"],
}
PAINT = "#e0218a"
PAINT_OVER = (
    "Upload an image, or take one that was drawn. To inpaint, paint over it with the brush."
)
ONE_LAYER = "the editor sent more than one layer of paint; upload the image again and paint anew"
TOO_LARGE = "the editor sent an image that is too large; upload a smaller one"
SECONDS_KEPT = 3600  # of a visitor's image after the last event
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden"} | PRIVATE


class Fields(NamedTuple):
    """The components that say what is asked for, in the order that `Tab.ask` reads them."""

    prompt: gr.Textbox
    negative: gr.Textbox
    task: gr.Radio
    seed: gr.Number
    count: gr.Number
    steps: gr.Textbox
    guidance: gr.Textbox
    height: gr.Textbox
    width: gr.Textbox
    strength: gr.Slider
    top: gr.Slider
    bottom: gr.Slider
    left: gr.Slider
    right: gr.Slider
    editor: gr.ImageEditor
    source: gr.State
    chosen: gr.CheckboxGroup


class DrawTab:
    """Builds the tab and answers its events; one visitor has one drawing at a time."""

    def __init__(self, studio: Studio, defaults: dict[str, str]) -> None:
        """Builds the components where it is called; `status` is the line about the drawing.

        Args:
          studio: draws.
          defaults: what empty fields mean, by name, as visitors are told.
        """
        self._studio = studio
        self._stops: dict[str, threading.Event] = {}
        names = [run.name for run in studio.runs]
        with gr.Row():
            with gr.Column(scale=2, min_width=360):
                self._fields = self._build_fields(names, defaults)
                with gr.Row():
                    draw = gr.Button("Draw", variant="primary", elem_id="draw")
                    stop = gr.Button("Stop", variant="stop", elem_id="stop")
                status = gr.Textbox(label="State", interactive=False, elem_id="status", lines=2)
            views = []
            with gr.Column(scale=3), gr.Row():
                for number, run in enumerate(studio.runs):
                    with gr.Column(min_width=240):
                        views += self._build_view(number, run)
        self.status, outputs = status, [status, *views]
        click: dict[str, Any] = {"inputs": list(self._fields), "outputs": outputs}
        # As one event, of which a browser has one at a time.
        pressed: list[Any] = [draw.click, self._fields.prompt.submit]
        gr.on(pressed, None, None, status, js=f"() => '{SENT}'", **PRIVATE)
        taken = gr.on(pressed, self.press, None, None, **AT_ONCE)
        taken.then(self.draw, show_progress_on=status, **click, **DRAWING)
        stop.click(self.stop, None, status, **AT_ONCE)

    def _build_fields(self, names: list[str], defaults: dict[str, str]) -> Fields:
        """What a visitor fills in; of images only what the chosen task needs is shown."""
        prompt = gr.Textbox(label="Prompt", lines=2, max_lines=6, elem_id="prompt")
        negative = gr.Textbox(label="Negative prompt", elem_id="negative")
        chosen = gr.CheckboxGroup(names, value=names, label="Runs", visible=len(names) > 1)
        task = gr.Radio(self._tasks(), value=TEXT, label="Task", elem_id="task")
        source, editor, *others = self._build_image_part(task)
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, min_width=110, elem_id="seed")
            count = gr.Number(
                self._studio.limits.usual,
                label="Images",
                precision=0,
                min_width=110,
                elem_id="count",
            )
            steps, guidance, height, width = (
                gr.Textbox(
                    label=name.capitalize(),
                    placeholder=defaults.get(name, "the run's own"),
                    min_width=110,
                    elem_id=name,
                )
                for name in ("steps", "guidance", "height", "width")
            )
        numbers = (seed, count, steps, guidance, height, width)
        fields: list[Any] = [prompt, negative, task, *numbers, *others, editor, source, chosen]
        return Fields(*fields)

    def _build_image_part(self, task: gr.Radio) -> list[Any]:
        """The image with its editor, the strength and the margins: shown where a task has them."""
        source = gr.State(None, time_to_live=SECONDS_KEPT)
        with gr.Column(visible=False) as about_image:
            gr.Markdown(PAINT_OVER)
            upload = gr.UploadButton("Upload an image", elem_id="upload", size="sm")
            editor = gr.ImageEditor(
                label="Image",
                type="pil",
                format="png",
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=48, colors=[PAINT], color_mode="fixed"),
                height=460,
                interactive=True,
                buttons=[],
                elem_id="editor",
            )
            refuse_before_decoding(editor)
        with gr.Column(visible=False) as about_strength:
            strength = gr.Slider(0.05, 1.0, 0.6, step=0.05, label="Strength: 1 draws all anew")
        with gr.Row(visible=False) as about_margins:
            margins = [
                gr.Slider(0.0, 1.0, 0.0, step=0.125, label=f"Add at the {side}", min_width=150)
                for side in SIDES
            ]
        groups = {about_image: TASKS[1:], about_strength: (IMAGE,), about_margins: (OUTPAINT,)}
        show = lambda name: [gr.update(visible=name in tasks) for tasks in groups.values()]
        task.change(show, task, list(groups), **AT_ONCE)
        self._sources = [source, editor]
        upload.upload(self.upload, upload, self._sources, show_progress="minimal", **PRIVATE)
        return [source, editor, strength, *margins]

    def _tasks(self) -> list[str]:
        return [task for task in TASKS if any(task in run.tasks for run in self._studio.runs)]

    def _build_view(self, number: int, run: Run) -> list[Any]:
        """A run's images and the steps of the first one."""
        gallery = gr.Gallery(
            label=run.name,
            type="filepath",
            columns=4 if len(self._studio.runs) == 1 else 2,
            object_fit="contain",
            height=380,
            elem_id=f"images-{number}",
            **SHOWN,
        )
        picked = gr.State(0)
        take = gr.Button("Edit the selected image", size="sm", elem_classes="take")
        gallery.select(self.pick, None, picked, **AT_ONCE)
        task = self._fields.task
        take.click(self.take, [gallery, picked, task], [*self._sources, task], **AT_ONCE)
        strip = gr.Image(label="Steps of the first image", type="pil", height=110, **SHOWN)
        return [gallery, strip]

    # --- events

    def at_first(self) -> str:
        """What a visitor reads who opens the page."""
        run = self._studio.warming
        return f"compiling for {run}: a first drawing waits until that is done" if run else ""

    def upload(self, file: str) -> tuple[Image.Image, Any]:
        """An uploaded file -> the image and what the editor shows. Errors are shown as such."""
        try:
            image = read_upload(file, self._studio.limits)
        except (UserError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from None
        return image, for_editor(image)

    def pick(self, event: gr.SelectData) -> int:
        """The number of the image that was clicked."""
        return event.index

    def take(self, gallery: Sequence[Any] | None, picked: int, task: str) -> tuple[Any, Any, str]:
        """An image of a gallery -> the image, what the editor shows, and a task that needs it."""
        if not gallery:
            raise gr.Error("there is no image yet: draw some", print_exception=False)
        image, shown = self.upload(gallery[min(picked, len(gallery) - 1)][0])
        editing = [name for name in (INPAINT, IMAGE) if name in self._tasks()]
        return image, shown, editing[0] if task == TEXT and editing else task

    def press(self, request: gr.Request) -> None:
        """Takes a press of the button, so that Stop can end a drawing that waits in the queue."""
        event = self._stops.get(str(request.session_hash))
        if event is None or event.is_set():
            self._stops[str(request.session_hash)] = threading.Event()

    def stop(self, request: gr.Request) -> str:
        """Ends this visitor's drawing at its next step."""
        event = self._stops.get(str(request.session_hash))
        if event is None or event.is_set():
            return "nothing is being drawn"
        event.set()
        return "stopping at the next step ..."

    def gone(self, request: gr.Request) -> None:
        """Ends the drawing of a visitor who has closed the page."""
        event = self._stops.pop(str(request.session_hash), None)
        if event is not None:
            event.set()

    def draw(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        """Draws what the fields ask for and shows what there is meanwhile."""
        runs = self._studio.runs
        nothing = [gr.skip()] * (2 * len(runs))
        session = str(request.session_hash)
        event = self._stops.setdefault(session, threading.Event())
        try:
            ask, chosen = self.ask(Fields(*values))
            before: Views = ()
            for views in self._studio.stream(ask, chosen, event):
                lines = in_words(views, [runs[number].name for number in chosen])
                yield [lines, *shown_views(views, before, chosen, len(runs))]
                before = views
        except (UserError, ValueError) as error:
            yield [f"error: {error}", *nothing]
        except Exception as error:  # the server goes on whatever one request met
            traceback.print_exc()
            reason = str(error).partition("\n")[0]
            yield [f"error: drawing failed ({type(error).__name__}: {reason})", *nothing]
        finally:
            event.set()
            if self._stops.get(session) is event:
                del self._stops[session]

    def ask(self, given: Fields) -> tuple[Ask, list[int]]:
        """Values of the fields -> the request, and the numbers of the runs to draw it."""
        names = [run.name for run in self._studio.runs]
        chosen = [number for number, name in enumerate(names) if name in (given.chosen or ())]
        mask = None
        if given.task == INPAINT and given.source is not None:
            mask = mask_of(given.editor, given.source.size)
        ask = Ask(
            prompt=given.prompt or "",
            task=given.task,
            negative=given.negative or "",
            seed=given.seed,
            count=given.count,
            steps=as_number("steps", given.steps, int),
            guidance=as_number("guidance", given.guidance, float),
            height=as_number("height", given.height, int),
            width=as_number("width", given.width, int),
            strength=given.strength,
            image=given.source,
            mask=mask,
            margins=(given.top, given.bottom, given.left, given.right),
        )
        return ask, chosen if len(names) > 1 else [0]


def refuse_before_decoding(editor: gr.ImageEditor) -> None:
    """Has an editor refuse what the page never sends, before it takes memory for it.

    Its method is replaced in place: gradio writes a file beside the source of a class that
    inherits from a component.
    """
    decode = editor.preprocess

    def preprocess(payload: Any) -> Any:
        sent = payload if payload is None or payload.id is None else None
        sent = sent or (payload and editor.blob_storage.get(payload.id))
        if sent is not None and len(sent.layers or ()) > 1:
            raise gr.Error(ONE_LAYER, print_exception=False)
        try:
            return decode(payload)
        except Image.DecompressionBombError:
            raise gr.Error(TOO_LARGE, print_exception=False) from None

    editor.preprocess = preprocess  # type: ignore[method-assign]


def shown_views(views: Views, before: Views, chosen: Sequence[int], count: int) -> list[Any]:
    """Values of all galleries and strips; those of runs that were not chosen are emptied.

    What is as `before` is not sent again: its files would be written anew while they are read.
    """
    values: list[Any] = [gr.skip() if before else None] * (2 * count)
    for place, (view, number) in enumerate(zip(views, chosen, strict=True)):
        old = before[place] if before else None
        if old is None or view.images is not old.images:
            values[2 * number] = list(view.images)
        if old is None or view.strip is not old.strip:
            values[2 * number + 1] = strip_image(view.strip) if view.strip else None
    return values
