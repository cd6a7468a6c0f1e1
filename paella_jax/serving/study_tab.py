"""The tabs of the blind study: two images to choose from, and what all votes say."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from paella_jax.config import UserError
from paella_jax.serving.draw_tab import AT_ONCE, DRAWING, PRIVATE
from paella_jax.serving.sources import kept_file
from paella_jax.serving.study import Study
from paella_jax.serving.tally import in_words

STORAGE = "paella_jax_visitor"  # name of what a browser keeps
# Arrow keys press the buttons while they can be seen and nothing is being typed.
KEYS = """<script>
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, [contenteditable=true]")) return;
  const names = {ArrowLeft: "vote-left", ArrowRight: "vote-right", ArrowDown: "vote-same"};
  const button = document.getElementById(names[event.key]);
  if (button && button.offsetParent && !button.disabled) {
    event.preventDefault();
    button.click();
  }
});
</script>"""
ASKED = "Which image fits the prompt better and looks better? Click it, or press an arrow key."


class StudyTab:
    """Builds the tab of the votes and answers its events.

    A vote is stored by an event of its own, at once: it waits for no drawing.
    """

    def __init__(self, study: Study, secret: str, folder: Path) -> None:
        """Builds the components where it is called.

        Args:
          study: which pairs, and where votes go.
          secret: keeps browsers' names from others.
          folder: for files of the images.
        """
        self._study, self._folder = study, folder
        visitor = gr.BrowserState("", storage_key=STORAGE, secret=secret)
        showing = gr.Textbox("", visible=False)
        gr.Markdown(ASKED)
        prompt = gr.Textbox(label="Prompt", interactive=False, elem_id="study-prompt")
        with gr.Row():
            sides = [
                gr.Image(
                    label=name,
                    format="png",
                    interactive=False,
                    height=420,
                    buttons=[],
                    elem_id=f"study-{name.lower()}",
                    elem_classes="small-images",
                )
                for name in ("Left", "Right")
            ]
        choices = {"left": "← Left", "same": "↓ No difference", "right": "Right →"}
        with gr.Row():
            buttons = {
                choice: gr.Button(text, elem_id=f"vote-{choice}", interactive=False)
                for choice, text in choices.items()
            }
        note = gr.Textbox(label="State", interactive=False, elem_id="study-note")
        begin = gr.Button("Show two images", variant="primary", elem_id="study-begin")
        shown = [visitor, showing, prompt, *sides, *buttons.values(), note]
        ask = {"inputs": [visitor], "outputs": shown, "show_progress": "hidden"} | DRAWING
        begin.click(None, None, note, js="() => 'two images are drawn ...'", **PRIVATE)
        begin.click(self.show, **ask)
        clicks = {"left": sides[0].select, "right": sides[1].select}
        for choice in choices:
            for listen in (buttons[choice].click, clicks.get(choice)):
                if listen is None:
                    continue
                vote = self._voting(choice)
                stored = listen(vote, showing, [showing, note, *buttons.values()], **AT_ONCE)
                stored.success(self.show, **ask)

    def _voting(self, choice: str) -> Any:
        """The event's function for a choice."""
        return lambda showing: self.vote(showing, choice)

    def show(self, visitor: str) -> list[Any]:
        """The next two images for a visitor, whose browser gets a name where it has none."""
        visitor = visitor if isinstance(visitor, str) and visitor else secrets.token_urlsafe(12)
        try:
            pair = self._study.next_pair(visitor)
        except (UserError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from None
        closed, opened = gr.update(interactive=False), gr.update(interactive=True)
        if pair is None:
            note = "You have voted on all pairs there are. Thank you!"
            return [visitor, "", "", None, None, *[closed] * 3, note]
        note = f"{pair.done} of {pair.total} pairs are voted on"
        sides = [kept_file(image, self._folder) for image in (pair.left, pair.right)]
        return [visitor, pair.showing, pair.prompt, *sides, *[opened] * 3, note]

    def vote(self, showing: str, choice: str) -> list[Any]:
        """Stores a vote; where that fails the two images stay, to be voted on again."""
        if not showing:
            raise gr.Error("there are no two images yet: show some", print_exception=False)
        try:
            new = self._study.vote(showing, choice)
        except (UserError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from None
        note = "stored" if new else "you had voted on this prompt: the first vote counts"
        return ["", note, *[gr.update(interactive=False)] * 3]


class ResultsTab:
    """Builds the tab of the results and answers its events."""

    def __init__(self, tab: gr.Tab, study: Study, names: tuple[str, str], folder: Path) -> None:
        """Builds the components where it is called.

        Args:
          tab: which one; the results are counted when it is opened.
          study: whose votes.
          names: of its two runs.
          folder: for the table's file.
        """
        self._study, self._names, self._folder = study, names, folder
        summary = gr.Markdown(elem_id="results")
        headers = ["prompt", *names, "no difference"]
        table = gr.Dataframe(headers=headers, interactive=False, wrap=True)
        with gr.Row():
            again = gr.Button("Count again", elem_id="count-again")
            file = gr.DownloadButton("All votes as CSV", elem_id="votes-csv")
        for listen in (tab.select, again.click):
            listen(self.count, None, [summary, table, file], show_progress="hidden", **PRIVATE)

    def count(self) -> list[Any]:
        """The summary, the table of prompts and the file of all votes."""
        try:
            found, text = self._study.results(), self._study.csv(self._names)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        file = folder / "votes.csv"
        file.write_text(text, encoding="utf-8")
        return [in_words(found, self._names), [list(row) for row in found.rows], str(file)]
