"""What a call gives: PIL images that know what they were drawn from."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
from PIL import Image

from paella_jax.images.png import save_png, tiled
from paella_jax.images.write import to_uint8
from paella_jax.outside import expanded
from paella_jax.pipelines.gallery import png_texts
from paella_jax.pipelines.records import is_whole

MOST_SHOWN = 64  # images in a notebook
LEAST_SIDE = 128  # of an image in a notebook; smaller ones are enlarged


class Images(list[Image.Image]):
    """A list of PIL images; in a notebook it shows them.

    Attributes:
      generation: what the pipeline's `generate` returned: arrays, with tokens or latents.
      stopped: whether the callback ended the sampling before its last step.
    """

    def __init__(
        self,
        images: Iterable[Image.Image] = (),
        records: Sequence[dict[str, Any]] = (),
        generation: Any = None,
        stopped: bool = False,
        steps: Callable[[], np.ndarray] | None = None,
    ) -> None:
        """Made by a pipeline.

        Args:
          images: all of one size.
          records: what each was drawn from: prompt, negative_prompt, seed, number, settings.
          generation: with the arrays.
          stopped: by the callback.
          steps: makes the images after every step [steps, count, height, width, 3].
        """
        super().__init__(images)
        self._records = [dict(record) for record in records[: len(self)]]
        self.generation, self.stopped = generation, stopped
        self._steps = steps
        self._strip: np.ndarray | None = None

    @property
    def prompts(self) -> list[str]:
        """The prompt of each image."""
        return [record["prompt"] for record in self._records]

    @property
    def negative_prompts(self) -> list[str]:
        """What each image was steered away from."""
        return [record["negative_prompt"] for record in self._records]

    @property
    def seeds(self) -> list[int]:
        """The seed of each image; with its number among its prompt's images it is drawn again."""
        return [record["seed"] for record in self._records]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the sampler, which all images share."""
        return dict(self._records[0]["settings"]) if self._records else {}

    def records(self) -> list[dict[str, Any]]:
        """What each image was drawn from, as its PNG has it."""
        return [dict(record) for record in self._records]

    @overload
    def __getitem__(self, index: SupportsIndex) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Images: ...
    def __getitem__(self, index: Any) -> Any:
        """An image, or several with their records."""
        if not isinstance(index, slice):
            return super().__getitem__(index)
        return Images(super().__getitem__(index), self._records[index], None, self.stopped)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the pipeline."""
        return self.__dict__ | {"_steps": None}

    def save(self, folder: str | Path, overwrite: bool = False) -> list[Path]:
        """Writes each image as PNG with its prompt, seed and settings in the file's texts.

        Args:
          folder: made if need be; the files are 00000.png, 00001.png ...
          overwrite: takes the place of files of these names.

        Returns:
          The files.

        Raises:
          ValueError: there are such files already.
          OSError: the folder cannot be written.

        Example:
          >>> pipe("a red circle", seed=None).save("circles")
        """
        folder = expanded(folder)
        files = [folder / f"{number:05d}.png" for number in range(len(self))]
        there = [file.name for file in files if file.exists()]
        if there and not overwrite:
            raise ValueError(
                f"{folder} holds {there[0]} already; give another folder, or overwrite=True"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for file, image, record in zip(files, self, self._records, strict=True):
            save_png(file, np.asarray(image), png_texts({"file": file.name} | record))
        return files

    def grid(self, columns: int | None = None) -> Image.Image:
        """All images side by side without gaps; as many columns as rows unless given.

        Raises:
          ValueError: there are no images, or columns below 1.
        """
        if not self:
            raise ValueError("there are no images to put side by side")
        if columns is not None and not (is_whole(columns) and columns >= 1):
            raise ValueError(f"columns {columns!r} must be a whole number of at least 1")
        return Image.fromarray(tiled([np.asarray(image) for image in self], columns))

    def strip(self, steps: int | Sequence[int] | None = None) -> Image.Image:
        """The images after chosen steps: a row for each image, a column for each step.

        The steps are drawn again, unless the call kept them by `trace=True`: the same bits.

        Args:
          steps: how many, evenly spaced up to the last; or their numbers, the first is 1 and the
            last -1; None is all.

        Raises:
          ValueError: no such step, or images that cannot be drawn again.

        Example:
          >>> pipe("a red circle", num_steps=12).strip([1, 2, 4, 12])
        """
        asked: Any = steps
        several = isinstance(asked, list | tuple | range | np.ndarray)
        if asked is not None and not all(map(is_whole, asked if several else [asked])):
            raise ValueError(f"steps={steps!r} must be a whole number, or a list of them")
        shown = self._all_steps()
        count = len(shown)
        numbers: Any = range(1, count + 1) if asked is None else asked
        if asked is not None and not several:
            if not 1 <= asked <= count:
                raise ValueError(f"steps={steps} must be from 1 to {count}, the steps there are")
            numbers = np.round(count / asked * np.arange(1, asked + 1)).astype(int).tolist()
        wrong = [n for n in numbers if not (1 <= n <= count or -count <= n <= -1)]
        if wrong or not len(numbers):
            raise ValueError(f"there is no step {wrong}; there are 1 to {count}")
        chosen = shown[[n - 1 if n > 0 else n for n in numbers]]
        flat = to_uint8(chosen.swapaxes(0, 1).reshape(-1, *chosen.shape[2:]))
        return Image.fromarray(tiled(list(flat), len(numbers)))

    def _all_steps(self) -> np.ndarray:
        if self._strip is None:
            if self._steps is None or self.stopped:
                raise ValueError(
                    "the steps of these images cannot be drawn again: they are a part of a call, "
                    "a copy, or were stopped"
                )
            self._strip = self._steps()
        return self._strip

    def _repr_html_(self) -> str:
        """Figures with their prompts, for notebooks."""
        parts = []
        for image, record in zip(self[:MOST_SHOWN], self._records, strict=False):
            stream = io.BytesIO()
            image.save(stream, format="PNG")
            data = base64.b64encode(stream.getvalue()).decode()
            words = html.escape(f"{record['prompt']} (seed {record['seed']}, {record['number']})")
            width = max(image.width, LEAST_SIDE)
            parts.append(
                '<figure style="display:inline-block;margin:4px;vertical-align:top">'
                f'<img src="data:image/png;base64,{data}" width="{width}" '
                'style="image-rendering:pixelated">'
                f'<figcaption style="width:{width}px;font-size:small">{words}</figcaption></figure>'
            )
        more = len(self) - MOST_SHOWN
        return "".join(parts) + (f"<p>and {more} more</p>" if more > 0 else "")

    def __repr__(self) -> str:
        if not self:
            return "no images"
        what = (
            f"{len(self)} image{'s' if len(self) > 1 else ''} of {self[0].width}x{self[0].height}"
        )
        drawn = [f"{r['prompt']!r} (seed {r['seed']})" for r in self._records[:3]]
        more = ", ..." if len(self) > 3 else ""
        return f"{what}{', stopped' if self.stopped else ''}: {', '.join(drawn)}{more}"
