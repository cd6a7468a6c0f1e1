"""One example of every image task that a run on the embedded data can do, on one sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paella_jax.config import ConfigError
from paella_jax.data.shapes import Scene, ShapeObject, ShapesSpec, get_spec
from paella_jax.data.shapes_maps import segmentation
from paella_jax.images.sheet import Panel, SheetRow, save_sheet
from paella_jax.images.write import save_gif
from paella_jax.pipelines import editing, variations
from paella_jax.pipelines.presets import edit_settings
from paella_jax.pipelines.prompts import Condition
from paella_jax.pipelines.tokens import TokenPipeline
from paella_jax.pipelines.windows import needs_windows
from paella_jax.reports.task_pairs import image_of, text_of
from paella_jax.reports.task_scores import STRENGTHS

FRAMES = 7  # of a strip


class Scenes(NamedTuple):
    """What the examples show: scenes of a data's own words, by these lists' numbers.

    Attributes:
      spec: of the data.
    """

    spec: ShapesSpec

    def scene(self, ground: int, *objects: tuple[int, int, int, int]) -> Scene:
        """A scene of a background and of objects (row, column, colour, shape); all are large."""
        spec = self.spec
        last = spec.lattice - 1
        pick = lambda words, number: words[number % len(words)]
        made = [
            ShapeObject(pick(spec.colors, color), pick(spec.shapes, shape), spec.sizes[-1],
                        row * last, column * last)
            for row, column, color, shape in objects
        ]  # fmt: skip
        return Scene(pick(spec.backgrounds, ground), tuple(made))

    @property
    def source(self) -> Scene:
        """The image that most tasks start from: a red circle at the top left, on white."""
        return self.scene(2, (0, 0, 0, 0))

    @property
    def other(self) -> Scene:
        """A blue triangle at the bottom right, on black."""
        return self.scene(0, (1, 1, 2, 2))

    @property
    def changed(self) -> Scene:
        """A blue triangle in the source's place, on black: what is between has a place as well."""
        return self.scene(0, (0, 0, 2, 2))


class Drawing(NamedTuple):
    """A run and the scenes it draws."""

    pipe: TokenPipeline
    scenes: Scenes

    def image(self, scene: Scene) -> np.ndarray:
        """A scene's image."""
        return image_of(scene, self.scenes.spec)

    def text(self, scene: Scene) -> str:
        """A scene's caption."""
        return text_of(scene, self.scenes.spec)


Task = Callable[[Drawing], SheetRow]


def draw_task_examples(pipe: TokenPipeline, out: Path) -> list[Path]:
    """Writes `<task>.png` for every task into `out`, `interpolation.gif`, and `sheet.png` of all.

    Args:
      pipe: a run on the embedded data. Tasks that need labels, maps or image embeddings are left
        out where it was not trained with them.
      out: folder.

    Raises:
      ConfigError: a run on other data, or one of super-resolution.
    """
    if pipe.config.data.source != "shapes" or pipe.networks.low_vqgan is not None:
        raise ConfigError(
            "--tasks draws images of the embedded data: give a run that was trained on them, such "
            "as one of configs/paella.py:shapes_tasks"
        )
    out.mkdir(parents=True, exist_ok=True)
    drawing, files, rows = Drawing(pipe, Scenes(get_spec(pipe.config.data.spec))), [], []
    for name, task in tasks_of(pipe):
        row = task(drawing)
        files.append(out / f"{name}.png")
        save_sheet(files[-1], [row])
        rows.append(row)
        if name == "interpolation":
            save_gif(out / "interpolation.gif", np.stack([panel.image for panel in row.panels]))
    save_sheet(out / "sheet.png", rows)
    return files


def tasks_of(pipe: TokenPipeline) -> Iterator[tuple[str, Task]]:
    """The tasks that a run can do, by name, in the sheet's order."""
    networks = pipe.networks
    able = {
        "morphing": networks.predictor.mask_token is None and networks.num_classes,
        "variations": networks.image_encoder is not None,
        "image_interpolation": networks.image_encoder is not None,
        "emphasis": "text_weights" in networks.takes and networks.text_encoder is not None,
        "class_labels": networks.num_classes,
        "segmentation_map": networks.num_segments,
    }
    return ((name, task) for name, task in TASKS.items() if able.get(name, True))


def _text_to_image(drawing: Drawing) -> SheetRow:
    spec, scenes = drawing.scenes.spec, [drawing.scenes.source, drawing.scenes.other]
    if spec.max_objects > 1:
        scenes += [
            drawing.scenes.scene(1, (0, 1, 1, 3), (1, 0, 3, 1)),
            drawing.scenes.scene(2, (0, 0, 4, 2), (0, 1, 5, 3)),
        ]
    texts = [drawing.text(scene) for scene in scenes]
    drawn = drawing.pipe.generate(texts, seed=list(range(len(texts)))).images
    return SheetRow("text to image", _panels(drawn, texts))


def _image_to_image(drawing: Drawing) -> SheetRow:
    image, text = drawing.image(drawing.scenes.source), drawing.text(drawing.scenes.changed)
    drawn = [
        editing.image_to_image(drawing.pipe, image, text, strength=s, seed=0).images[0]
        for s in STRENGTHS
    ]
    titles = ["source", *(f"strength {s}" for s in STRENGTHS)]
    return SheetRow(f"image to image: {text}", _panels([image, *drawn], titles))


def _inpainting(drawing: Drawing) -> SheetRow:
    source, new = drawing.scenes.source, drawing.scenes.scene(2, (1, 1, 1, 3)).objects
    image, mask = drawing.image(source), np.zeros((drawing.scenes.spec.image_size,) * 2, bool)
    mask[:, mask.shape[1] // 2 :] = True
    kept = source.objects if drawing.scenes.spec.max_objects > 1 else ()
    text = drawing.text(Scene(source.background, (*kept, *new)))
    options: dict[str, Any] = {"mask": mask, "seed": 5, "num_images_per_prompt": 3}
    drawn = drawing.pipe(text, image=image, output_type="np", **options)
    titles = ["source", "mask: white is drawn", *["result"] * 3]
    return SheetRow(f"inpainting: {text}", _panels([image, _grey(mask), *drawn], titles))


def _outpainting(drawing: Drawing) -> SheetRow:
    """Half an image to the right, in a window that is half over the source, then half more."""
    scenes = drawing.scenes
    half, ground = scenes.spec.image_size // 2, scenes.source.background
    source = Scene(ground, scenes.scene(2, (0, 1, 0, 0)).objects)
    beyond = [replace(o, column=0) for o in source.objects]
    new = [scenes.scene(2, (1, 1, 2, 2)).objects, scenes.scene(2, (0, 1, 1, 3)).objects]
    if scenes.spec.max_objects == 1:
        beyond = []
    first = Scene(ground, (*beyond, *new[0]))
    second = Scene(ground, (*(replace(o, column=0) for o in new[0] if beyond), *new[1]))
    image, texts = drawing.image(source), [drawing.text(first), drawing.text(second)]
    options: dict[str, Any] = {"right": half, "seed": 6}
    wide = editing.outpaint(drawing.pipe, image, texts[0], **options).images[0]
    options["right"] = 2 * half
    both = texts if needs_windows(drawing.pipe) else texts[0]
    wider = editing.outpaint(drawing.pipe, image, both, **options).images[0]
    anew = np.arange(wide.shape[1]) >= image.shape[1]
    panels = [image, _grey(np.broadcast_to(anew, wide.shape[:2])), wide, wider]
    titles = ["source", f"{half} pixels more: white is drawn", "result", f"{2 * half} pixels more"]
    heading = f"outpainting: {' | then '.join(texts)}"
    return SheetRow(heading, _panels(panels, titles))


def _mask_free_editing(drawing: Drawing) -> SheetRow:
    source = drawing.scenes.source
    old, spec = source.objects[0], drawing.scenes.spec
    new = replace(old, color=spec.colors[2], shape=spec.shapes[-1])
    text, image = drawing.text(Scene(source.background, (new,))), drawing.image(source)
    settings = edit_settings(drawing.pipe)
    result = editing.edit(drawing.pipe, image, text, seed=3, frames=4)
    states = drawing.pipe.strip(result)[:, 0]
    rounds = [round(settings.rounds * k / 4) for k in range(1, 5)]
    titles = ["source", *(f"after {n} rounds" for n in rounds)]
    return SheetRow(f"mask-free editing: {text}", _panels([image, *states], titles))


def _morphing(drawing: Drawing) -> SheetRow:
    """Labels say no places: the layout is the image's."""
    source, spec = drawing.scenes.scene(1, (0, 1, 1, 3)), drawing.scenes.spec
    image = drawing.image(source)
    labels = [n for n, shape in enumerate(spec.shapes) if shape != source.objects[0].shape][:2]
    drawn, titles = [image], ["source"]
    for label in labels:
        for seed in (0, 1):
            condition = Condition(label=label)
            drawn.append(editing.morph(drawing.pipe, image, condition, seed=seed).images[0])
            titles.append(f"label {spec.shapes[label]}")
    return SheetRow("structural morphing: another class in the layout", _panels(drawn, titles))


def _mixing(drawing: Drawing) -> SheetRow:
    scenes = drawing.scenes
    pair = [scenes.source, Scene(scenes.source.background, scenes.other.objects)]
    texts = [drawing.text(scene) for scene in pair]
    alone = drawing.pipe.generate(texts, seed=4).images
    drawn = [
        variations.mix_parts(drawing.pipe, texts, along=along, seed=4).images[0]
        for along in ("columns", "rows")
    ]
    titles = ["one alone", "the other alone", "side by side", "one above the other"]
    return SheetRow(f"mixing: {' | '.join(texts)}", _panels([*alone, *drawn], titles))


def _interpolation(drawing: Drawing) -> SheetRow:
    """Two images of one layout, so that what is between has one too."""
    first, second = drawing.scenes.source, drawing.scenes.changed
    if drawing.scenes.spec.max_objects > 1:
        first = drawing.scenes.scene(2, (0, 0, 0, 0), (1, 1, 1, 3))
        second = drawing.scenes.scene(0, (0, 0, 2, 2), (1, 1, 3, 1))
    texts = [drawing.text(scene) for scene in (first, second)]
    frames = variations.interpolate(drawing.pipe, *texts, frames=FRAMES, seed=8).images
    titles = [f"{n / (FRAMES - 1):.2f}" for n in range(FRAMES)]
    return SheetRow(f"interpolation: {' | '.join(texts)}", _panels(frames, titles))


def _variations(drawing: Drawing) -> SheetRow:
    image = drawing.image(drawing.scenes.source)
    drawn = variations.variations(drawing.pipe, [image], num_images_per_prompt=4, seed=3).images
    titles = ["source", *["by its embedding"] * 4]
    return SheetRow("variations, no text", _panels([image, *drawn], titles))


def _image_interpolation(drawing: Drawing) -> SheetRow:
    ends = [drawing.image(scene) for scene in (drawing.scenes.source, drawing.scenes.other)]
    frames = variations.interpolate_images(drawing.pipe, *ends, frames=5, seed=9).images
    titles = ["source", *(f"{n / 4:.2f}" for n in range(5)), "source"]
    heading = "interpolation of two images' embeddings, no text"
    return SheetRow(heading, _panels([ends[0], *frames, ends[1]], titles))


def _negative_prompt(drawing: Drawing) -> SheetRow:
    """A prompt without a colour, steered away from two of them."""
    text, colors = drawing.text(drawing.scenes.source), drawing.scenes.spec.colors
    open_color = text.replace(f" {colors[0]} ", " ")
    others = [colors[0], colors[2 % len(colors)]]
    negatives = ["", *(text.replace(colors[0], color) for color in others)]
    drawn = drawing.pipe.generate([open_color] * 3, negative_prompt=negatives, seed=10).images
    titles = ["no negative prompt", *(f"not {color}" for color in others)]
    return SheetRow(f"negative prompt: {open_color}", _panels(drawn, titles))


def _emphasis(drawing: Drawing) -> SheetRow:
    scenes = drawing.scenes
    scene = Scene(scenes.source.background, (*scenes.source.objects, *scenes.other.objects))
    if scenes.spec.max_objects == 1:
        scene = scenes.other
    text, factors = drawing.text(scene), (0.0, 0.2, 1.0)
    word = scenes.other.objects[0].color
    drawn = drawing.pipe.generate(
        [Condition(text, emphasis={word: factor}) for factor in factors], seed=12
    ).images
    titles = [f"attention to {word!r} x {factor}" for factor in factors]
    return SheetRow(f"emphasis: {text}", _panels(drawn, titles))


def _class_labels(drawing: Drawing) -> SheetRow:
    shapes = drawing.scenes.spec.shapes[: drawing.pipe.networks.num_classes]
    conditions = [Condition(label=n) for n in range(len(shapes))]
    drawn = drawing.pipe.generate(conditions, seed=13).images
    return SheetRow("class label, no text", _panels(drawn, list(shapes)))


def _segmentation_map(drawing: Drawing) -> SheetRow:
    spec = drawing.scenes.spec
    segments = segmentation(drawing.scenes.other, spec)
    condition = Condition(segmentation=segments)
    drawn = drawing.pipe.generate([condition], num_images_per_prompt=4, seed=14).images
    shown = _grey(segments / max(1, segments.max()))
    titles = ["map", *["result"] * 4]
    return SheetRow("segmentation map, no text", _panels([shown, *drawn], titles))


def _panels(images: Any, titles: list[str]) -> list[Panel]:
    return [Panel(image, title) for image, title in zip(images, titles, strict=True)]


def _grey(values: np.ndarray) -> np.ndarray:
    """[height, width] in [0, 1] -> float32 [height, width, 3]."""
    return np.repeat(np.asarray(values, np.float32)[:, :, None], 3, axis=2)


TASKS: dict[str, Task] = {
    "text_to_image": _text_to_image,
    "image_to_image": _image_to_image,
    "inpainting": _inpainting,
    "outpainting": _outpainting,
    "mask_free_editing": _mask_free_editing,
    "morphing": _morphing,
    "mixing": _mixing,
    "interpolation": _interpolation,
    "variations": _variations,
    "image_interpolation": _image_interpolation,
    "negative_prompt": _negative_prompt,
    "emphasis": _emphasis,
    "class_labels": _class_labels,
    "segmentation_map": _segmentation_map,
}
