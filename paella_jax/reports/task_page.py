"""The page of a run's image tasks: scores beside the sheet, as Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paella_jax.files.atomic import write_atomically
from paella_jax.pipelines.tokens import TokenPipeline
from paella_jax.reports.gathered import as_json
from paella_jax.reports.task_examples import draw_task_examples
from paella_jax.reports.task_scores import Row, score_tasks

COLUMNS = {
    "kept": "source kept",
    "met": "request met",
    "clean": "clean",
    "chance": "kept by chance",
    "forward": "strips that never go back",
}
NOTES = """Of the attributes (background; colour, shape and size in every tile) in which the source
and the request differ, the share that the images have from each. Inpainting: kept are pixels
outside of the mask, met is inside. Outpainting: kept is the source's part, met are the window's new
tiles. Mixing: kept is the one caption in its half, met the other in its own. Mask-free editing, of
one attribute: kept are all the others. Morphing: kept are layouts, met are labels. Variations: what
an image and its source have in common, by chance another source. Clean images look like what was
read of them (docs/results.md 1)."""


def write_tasks(pipe: TokenPipeline, out: Path, count: int = 32, seed: int = 0) -> str:
    """Draws the sheet (task_examples.py), scores the tasks and writes tasks.md and tasks.json.

    Args:
      pipe: a run on the embedded data.
      out: folder of all of it.
      count: pairs per score.
      seed: of pairs and images.

    Returns:
      The page.

    Raises:
      ConfigError: a run on other data.
    """
    files = draw_task_examples(pipe, out)
    rows = score_tasks(pipe, count, seed)
    about: dict[str, Any] = {"pairs": count, "seed": seed, "settings": pipe.defaults}
    page = "\n".join(
        [
            f"# Image tasks: {count} pairs each, seed {seed}",
            "",
            table(rows),
            "",
            NOTES,
            "",
            f"Drawn: {', '.join(file.stem for file in files)}; all on sheet.png.",
            "",
        ]
    )
    write_atomically(out / "tasks.json", as_json(about | {"rows": rows}))
    write_atomically(out / "tasks.md", page)
    return page


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown, with the columns that any of them has."""
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = ["| task | setting | " + " | ".join(COLUMNS[name] for name in names) + " |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for row in rows:
        cells = [f"{row[name]:.2f}" if name in row else "" for name in names]
        lines.append(" | ".join(["| " + row["task"], row["setting"], *cells]) + " |")
    return "\n".join(lines)
