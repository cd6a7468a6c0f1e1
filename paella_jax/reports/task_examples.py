"""One example of every image task, drawn by a run of `configs/paella.py:shapes_tasks`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from paella_jax.config import ConfigError
from paella_jax.data.shapes_maps import ShapesWithMaps
from paella_jax.data.sources import ShapesSource
from paella_jax.images.write import pad_to_same_size, save_gif, save_grid
from paella_jax.pipelines import editing, variations
from paella_jax.pipelines.prompts import Condition
from paella_jax.pipelines.tokens import TokenPipeline

RED = "a large red circle at the top left on a white background"
BLUE = "a large blue triangle at the bottom right on a black background"
TWO = (
    "a large red circle at the top left and a large blue triangle at the bottom right "
    "on a white background"
)


class Example(NamedTuple):
    """Images of one task; they may differ in size."""

    images: list[np.ndarray]
    titles: list[str]


def draw_task_examples(pipe: TokenPipeline, out: Path) -> list[Path]:
    """Writes `<task>.png` for every task into `out`, `interpolation.gif`, and one sheet of all.

    Args:
      pipe: a run with images, labels and maps as conditions.
      out: folder.

    Raises:
      ConfigError: the run was not trained with these conditions on the embedded data.
    """
    networks = pipe.networks
    trained = networks.image_encoder and networks.num_classes and networks.num_segments
    if pipe.config.data.source != "shapes" or not trained:
        raise ConfigError("the task examples need a run of configs/paella.py:shapes_tasks")
    out.mkdir(parents=True, exist_ok=True)
    files, sheet = [], Example([], [])
    for name, draw in TASKS.items():
        example = draw(pipe)
        file = out / f"{name}.png"
        save_grid(file, pad_to_same_size(example.images), example.titles)
        files.append(file)
        shown = 5
        sheet.images.extend(example.images[:shown])
        titles = [f"{name.replace('_', ' ')}: {example.titles[0]}", *example.titles[1:shown]]
        sheet.titles.extend(titles)
        blanks = shown - len(titles)
        sheet.images.extend([np.ones((8, 8, 3), np.float32)] * blanks)
        sheet.titles.extend([""] * blanks)
        if name == "interpolation":
            save_gif(out / "interpolation.gif", np.stack(example.images))
    save_grid(out / "sheet.png", pad_to_same_size(sheet.images), sheet.titles, columns=5)
    return files


def _images(pipe: TokenPipeline) -> tuple[np.ndarray, np.ndarray]:
    """Two validation images with their segmentation maps."""
    source = ShapesWithMaps(ShapesSource(pipe.config.data.spec, "validation", 16, 11))
    samples = [source[i] for i in (3, 5)]
    images = np.stack([sample["image"] for sample in samples]).astype(np.float32) / 255.0
    return images, np.stack([sample["segmentation"] for sample in samples])


def _text_to_image(pipe: TokenPipeline) -> Example:
    square = pipe.generate([RED, BLUE, TWO], seed=[0, 1, 2]).images
    size = pipe.config.data.image_size
    wide = pipe.generate([TWO], width=2 * size).images[0]
    return Example([*square, wide], [RED, BLUE, TWO, "the same, twice as wide as trained"])


def _image_to_image(pipe: TokenPipeline) -> Example:
    image = _images(pipe)[0][0]
    strengths = (0.0, 0.5, 0.75, 1.0)
    drawn = [
        editing.image_to_image(pipe, image, BLUE, strength=s, seed=1).images[0] for s in strengths
    ]
    return Example([image, *drawn], ["the image", *(f"strength {s}: {BLUE}" for s in strengths)])


def _variations(pipe: TokenPipeline) -> Example:
    image = _images(pipe)[0][0]
    drawn = variations.variations(pipe, [image], num_images_per_prompt=4, seed=3).images
    return Example([image, *drawn], ["the image", *["by its embedding"] * 4])


def _mixing(pipe: TokenPipeline) -> Example:
    image = _images(pipe)[0][0]
    conditions = [Condition(images=(image,)), Condition(BLUE)]
    fractions = (1.0, 0.6, 0.4, 0.0)
    weights = np.array([[a, 1.0 - a] for a in fractions], np.float32)
    drawn = pipe.generate([conditions] * len(fractions), weights=weights, seed=4).images
    titles = [f"{a:.1f} of it + {1 - a:.1f} of: {BLUE}" for a in fractions]
    return Example([image, *drawn], ["the image", *titles])


def _inpainting(pipe: TokenPipeline) -> Example:
    image = _images(pipe)[0][0]
    mask = np.zeros(image.shape[:2], bool)
    mask[:, image.shape[1] // 2 :] = True
    prompt = (
        "a large green cross at the top right and a small yellow circle at the bottom left "
        "on a gray background"
    )
    drawn = editing.inpaint(pipe, image, mask, prompt, seed=5, num_images_per_prompt=3).images
    shown = np.repeat(mask[:, :, None].astype(np.float32), 3, axis=2)
    return Example([image, shown, *drawn], ["the image", "the mask", *[prompt] * 3])


def _outpainting(pipe: TokenPipeline) -> Example:
    image, size = _images(pipe)[0][0], pipe.config.data.image_size
    prompt = (
        "a small yellow circle at the bottom left and a large blue triangle at the bottom right "
        "on a gray background"
    )
    drawn = editing.outpaint(pipe, image, prompt, right=size, seed=6).images[0]
    return Example([image, drawn], ["the image", f"{size} pixels more to the right: {prompt}"])


def _morphing(pipe: TokenPipeline) -> Example:
    image = _images(pipe)[0][1]
    steps = (4, 8, 14)
    drawn = [editing.morph(pipe, image, RED, start_step=s, seed=7).images[0] for s in steps]
    return Example([image, *drawn], ["the image", *(f"from step {s} of 24: {RED}" for s in steps)])


def _interpolation(pipe: TokenPipeline) -> Example:
    frames = variations.interpolate(pipe, RED, BLUE, frames=5, seed=8).images
    return Example([*frames], [RED, "", "", "", BLUE])


def _image_interpolation(pipe: TokenPipeline) -> Example:
    first, second = _images(pipe)[0]
    frames = variations.interpolate_images(pipe, first, second, frames=5, seed=9).images
    return Example([*frames], ["like one image", "", "", "", "like the other"])


def _negative_prompt(pipe: TokenPipeline) -> Example:
    prompt, negative = "a large circle at the top left", "a blue circle"
    plain = pipe.generate([prompt] * 2, seed=[10, 11]).images
    steered = pipe.generate([prompt] * 2, negative_prompt=negative, seed=[10, 11]).images
    return Example(
        [*plain, *steered], [prompt, prompt, *[f"the same seeds without: {negative}"] * 2]
    )


def _emphasis(pipe: TokenPipeline) -> Example:
    factors = (0.0, 1.0, 3.0)
    conditions = [Condition(TWO, emphasis={"blue triangle": factor}) for factor in factors]
    drawn = pipe.generate(conditions, seed=12).images
    return Example([*drawn], [f"attention to 'blue triangle' x {factor}" for factor in factors])


def _class_labels(pipe: TokenPipeline) -> Example:
    count = pipe.networks.num_classes
    drawn = pipe.generate([Condition(label=i) for i in range(count)], seed=13).images
    return Example([*drawn], [f"class {i}, no text" for i in range(count)])


def _segmentation_map(pipe: TokenPipeline) -> Example:
    segments = _images(pipe)[1][0]
    drawn = pipe.generate([Condition(segmentation=segments)], num_images_per_prompt=3, seed=14)
    levels = segments.astype(np.float32) / max(1, segments.max())
    shown = np.repeat(levels[:, :, None], 3, axis=2)
    return Example([shown, *drawn.images], ["the map", *["by the map, no text"] * 3])


TASKS: dict[str, Callable[[TokenPipeline], Example]] = {
    "text_to_image": _text_to_image,
    "image_to_image": _image_to_image,
    "variations": _variations,
    "mixing": _mixing,
    "inpainting": _inpainting,
    "outpainting": _outpainting,
    "morphing": _morphing,
    "interpolation": _interpolation,
    "image_interpolation": _image_interpolation,
    "negative_prompt": _negative_prompt,
    "emphasis": _emphasis,
    "class_labels": _class_labels,
    "segmentation_map": _segmentation_map,
}
