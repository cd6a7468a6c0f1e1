"""Serve a web page to draw, edit and compare: `python -m paella_jax.serve --checkpoint RUN`.

The page draws from prompts with live previews, edits images with a mask painted on
the page, and shows two runs (--checkpoint RUN --checkpoint RUN2) side by side on the same prompt
and seed. With --prompts FILE it also asks visitors which of two images they prefer, without saying
whose they are, and keeps the votes in --study FILE (docs/serving.md).

It is reached from this machine alone, unless --host says otherwise.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import threading
from itertools import zip_longest
from pathlib import Path
from typing import Any

from paella_jax.cli import Parser, path, run, setup_jax
from paella_jax.config import UserError
from paella_jax.outside import say

MOST_RUNS = 2
LARGEST = {"most_images": 256, "most_steps": 10_000, "most_side": 8192, "most_waiting": 10_000}


def parse() -> argparse.Namespace:
    """The flags."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=path, action="append", required=True,
        help="run folder, published folder, or OWNER/NAME on the hub; twice for two")  # fmt: skip
    add("--super_resolution", type=path, action="append", default=[],
        help="run that enlarges what the checkpoint draws; a second one, given second")  # fmt: skip
    add("--host", default="127.0.0.1", help="0.0.0.0 lets everybody draw who reaches this machine")
    add("--port", type=int, default=7860, help="0 takes one that is free")
    add(
        "--prompts",
        type=path,
        help="of the blind study: a line each, or a table (docs/sampling.md)",
    )
    add("--study", type=path, default="study.sqlite", help="file of the blind study's votes")
    add("--seed", type=int, default=0, help="of the blind study's images")
    add("--most_images", type=int, default=16, help="in one request")
    add("--most_steps", type=int, default=100, help="in one request")
    add("--most_side", type=int, default=1024, help="of an image, in pixels")
    add("--most_waiting", type=int, default=32, help="requests in the queue")
    return parser.parse_args()


def has_gradio() -> bool:
    """Whether the page can be shown; nothing is imported."""
    return importlib.util.find_spec("gradio") is not None


def check(flags: argparse.Namespace) -> None:
    """Checks what can be told before anything is loaded.

    Raises:
      UserError, ValueError: naming the flag and the fix.
    """
    from paella_jax.runs.folder import read_config
    from paella_jax.sharing.hub import is_name

    if not has_gradio():
        raise UserError("the page needs gradio, which is not here: pip install 'paella_jax[demo]'")
    runs, larger = flags.checkpoint, flags.super_resolution
    if len(runs) > MOST_RUNS or len(larger) > len(runs):
        raise ValueError(f"give one --checkpoint or two (got {len(runs)}), and no more enlargers")
    for name, most in LARGEST.items():
        if not 1 <= getattr(flags, name) <= most:
            raise ValueError(f"--{name} must be from 1 to {most}, got {getattr(flags, name)}")
    if not 0 <= flags.seed < 2**32:
        raise ValueError(f"--seed must be from 0 to {2**32 - 1}, got {flags.seed}")
    if flags.prompts and len(runs) != MOST_RUNS:
        raise ValueError("--prompts is for a blind study of two runs: give --checkpoint twice")
    for folder in (*runs, *larger):
        if not is_name(folder) and not Path(folder).is_dir():
            read_config(folder)  # says what is missing


def find_runs(flags: argparse.Namespace) -> None:
    """What the flags name -> run folders, downloaded or converted where they must be.

    Raises:
      UserError: what cannot be found, downloaded or converted, or is no run.
    """
    from paella_jax.convert.found import run_folder
    from paella_jax.runs.folder import read_config
    from paella_jax.serving.studio import names_of

    flags.names = names_of(flags.checkpoint)
    for flag in ("checkpoint", "super_resolution"):
        folders = [str(run_folder(name)[0]) for name in getattr(flags, flag)]
        setattr(flags, flag, folders)
        for folder in folders:
            read_config(folder)


def load_runs(flags: argparse.Namespace) -> list[Any]:
    """The runs, in the order they were named."""
    from paella_jax.pipelines.load import load
    from paella_jax.serving.draw import tasks_of
    from paella_jax.serving.studio import Run

    runs = []
    for name, folder, larger in zip_longest(flags.names, flags.checkpoint, flags.super_resolution):
        say(f"loading {folder}")
        pipe = load(folder, **({"super_resolution": larger} if larger else {}))
        try:
            runs.append(Run(name, pipe, tasks_of(pipe)))
        except UserError as error:
            raise UserError(f"--checkpoint {folder}: {error}") from None
    return runs


def read_prompts(flags: argparse.Namespace) -> list[str]:
    """The blind study's prompts. Raises PromptError for a file that cannot be read."""
    from paella_jax.pipelines.prompt_file import Defaults, read_prompt_file

    return [row.prompt for row in read_prompt_file(Path(flags.prompts), Defaults())]


def make_study(flags: argparse.Namespace, studio: Any, store: Any, prompts: list[str]) -> Any:
    """The blind study, once both runs have taken every prompt. Raises PromptError, ValueError."""
    from paella_jax.pipelines.run_digests import run_digest
    from paella_jax.serving.study import Study

    for prompt in prompts:
        for one in studio.runs:
            one.pipe.text_lengths([prompt])
    first, second = (run_digest(one.pipe.parts()) for one in studio.runs)
    return Study(store, (first, second), prompts, studio.draw_one, seed=flags.seed)


def main() -> int:
    """Parses the flags, loads the runs and serves until it is stopped."""
    flags = parse()
    setup_jax()
    check(flags)
    from paella_jax.serving.address import LOCAL, address_of, listen
    from paella_jax.serving.limits import Limits
    from paella_jax.serving.sources import bound_decoding
    from paella_jax.serving.store import Store
    from paella_jax.serving.studio import Studio, defaults_of

    most = (flags.most_images, flags.most_steps, flags.most_side)
    with (
        tempfile.TemporaryDirectory(prefix="paella_jax_page_") as folder,
        listen(flags.host, flags.port) as listening,
    ):
        prompts = read_prompts(flags) if flags.prompts else []
        store = Store(flags.study) if prompts else None
        find_runs(flags)  # may be a long download, so it comes after all that can be told without
        limits = Limits(*most, waiting=flags.most_waiting)
        bound_decoding(limits)
        studio = Studio(load_runs(flags), limits)
        study = make_study(flags, studio, store, prompts) if store else None
        # Read when gradio is imported: its files go where they are cleaned up, and it calls nobody.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        from paella_jax.serving import page

        defaults = defaults_of(studio.runs)
        secret = store.secret if store else ""
        blocks = page.build(studio, defaults, study, secret, Path(folder))
        told = "" if flags.host == LOCAL else "; whoever reaches this machine can draw"
        say(f"serving at {address_of(listening)} (Ctrl-C ends it{told})")
        # The study draws its images one by one.
        counts = [studio.limits.usual, *([1] if study else [])]
        threading.Thread(target=studio.warm_up, args=(counts,), daemon=True).start()
        page.serve(page.application(blocks, studio), listening)
    return 0


if __name__ == "__main__":
    run(main)
