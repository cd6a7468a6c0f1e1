"""A small classifier of embedded-shapes images, whose penultimate layer is a feature space.

It stands in for FID's Inception network: trained here in seconds on real images, so nothing has
to be downloaded. One classifier must serve a whole comparison; save it and load it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from paella_jax.data.shapes import Scene, ShapesSpec, get_spec
from paella_jax.data.sources import ShapesSource
from paella_jax.evaluation.oracle import checked_images
from paella_jax.models.layers import Dense, Downsample, gelu
from paella_jax.runs.folder import CheckpointError
from paella_jax.runs.weights import load_tree, save_tree
from paella_jax.typing import Array

FEATURES = 64
WIDTH = 48  # channels at 8 pixels a side and below; half as many at twice the side
NOISE = 0.1  # largest noise on training images, so that features of flawed images stay sensible


class Head(NamedTuple):
    """One attribute: `columns` labels (one, or one per lattice tile) of `classes` classes each."""

    name: str
    columns: int
    classes: int


def heads(spec: ShapesSpec) -> tuple[Head, ...]:
    """What is classified, in the order of the labels; class 0 of a tile is the empty tile."""
    tiles = spec.lattice**2
    return (
        Head("background", 1, len(spec.backgrounds)),
        Head("count", 1, spec.max_objects + 1),
        Head("shape", tiles, 1 + len(spec.shapes)),
        Head("color", tiles, 1 + len(spec.colors)),
        Head("size", tiles, 1 + len(spec.sizes)),
    )


def labels(scene: Scene, spec: ShapesSpec) -> np.ndarray:
    """A scene as int32 [columns], in the order of `heads`."""
    tiles = np.zeros((3, spec.lattice**2), np.int32)
    for o in scene.objects:
        words = ((spec.shapes, o.shape), (spec.colors, o.color), (spec.sizes, o.size))
        tiles[:, o.row * spec.lattice + o.column] = [1 + known.index(w) for known, w in words]
    ground = spec.backgrounds.index(scene.background)
    return np.concatenate([[ground, len(scene.objects)], tiles.reshape(-1)]).astype(np.int32)


def split_logits(logits: Any, spec: ShapesSpec) -> list[Any]:
    """Logits [n, all] of all heads -> [n, columns, classes] of each."""
    blocks, start = [], 0
    for head in heads(spec):
        end = start + head.columns * head.classes
        blocks.append(logits[:, start:end].reshape(-1, head.columns, head.classes))
        start = end
    return blocks


class Classifier(nn.Module):
    """Halves the image down to 4 pixels a side, then one feature layer and all heads at once."""

    classes: int  # of all heads together

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        """float32 images [batch, H, W, 3] in [0, 1] -> features [batch, 64] and logits."""
        x = 2.0 * images - 1.0
        while (side := x.shape[1] // 2) >= 4:
            x = gelu(Downsample(min(WIDTH, 8 * WIDTH // side), kernel_size=4)(x))
        features = gelu(Dense(FEATURES, name="features")(x.reshape(len(x), -1)))
        return features, Dense(self.classes, name="heads")(features)


@dataclass(frozen=True)
class ClassifierFeatures:
    """A trained classifier.

    Attributes:
      spec_name: the variant of the task it was trained on.
      params: its parameters.
      accuracy: on images it did not see; "validation" and "heldout" -> attribute -> [0, 1].
    """

    spec_name: str
    params: Mapping[str, Any]
    accuracy: Mapping[str, Mapping[str, float]]

    def features(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """Images [n, H, W, 3], float in [0, 1] or uint8 -> float32 [n, 64].

        Raises:
          ValueError: no images, or as `checked_images`.
        """
        return self._run(images, batch_size)[0]

    def read(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """The most likely labels of images as in `features`, int32 [n, columns]."""
        blocks = split_logits(self._run(images, batch_size)[1], get_spec(self.spec_name))
        return np.concatenate([block.argmax(-1) for block in blocks], axis=-1).astype(np.int32)

    def save(self, file: Path) -> None:
        """Writes one safetensors file."""
        accuracy = {k: {n: np.float32(x) for n, x in v.items()} for k, v in self.accuracy.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_tree(file, {"params": self.params, "accuracy": accuracy})

    @cached_property
    def _apply(self) -> Any:
        return jax.jit(_network(get_spec(self.spec_name)).apply)

    def _run(self, images: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = checked_images(images, get_spec(self.spec_name))
        if not len(pixels):
            raise ValueError("there are no images to classify; give at least one")
        parts = []
        for start in range(0, len(pixels), batch_size):
            batch = pixels[start : start + batch_size]
            fill = ((0, batch_size - len(batch)), (0, 0), (0, 0), (0, 0))  # compile one size only
            out = self._apply({"params": self.params}, np.pad(batch, fill))
            parts.append([np.asarray(x[: len(batch)], np.float32) for x in out])
        features, logits = zip(*parts, strict=True)
        return np.concatenate(features), np.concatenate(logits)


def load_classifier(file: Path, spec_name: str) -> ClassifierFeatures:
    """The inverse of `ClassifierFeatures.save`.

    Raises:
      CheckpointError: missing, damaged, or of another spec.
    """
    tree = load_tree(file)
    spec = get_spec(spec_name)
    wanted = {n: x.shape for n, x in flatten_dict(_abstract_params(spec)).items()}
    found = {n: x.shape for n, x in flatten_dict(tree.get("params", {})).items()}
    if wanted != found or "accuracy" not in tree:
        raise CheckpointError(
            f"{file} is no classifier of {spec_name!r} images; delete it to train a new one"
        )
    accuracy = {k: {n: float(x) for n, x in v.items()} for k, v in tree["accuracy"].items()}
    return ClassifierFeatures(spec_name, tree["params"], accuracy)


def load_or_train_classifier(file: Path, spec_name: str, **training: Any) -> ClassifierFeatures:
    """Loads `file`, or trains as `train_classifier` does and writes it."""
    if file.is_file():
        return load_classifier(file, spec_name)
    trained = train_classifier(spec_name, **training)
    trained.save(file)
    return trained


def train_classifier(
    spec_name: str,
    seed: int = 0,
    num_steps: int = 500,
    *,
    batch_size: int = 64,
    num_images: int = 8192,
    num_validation: int = 512,
    learning_rate: float = 3e-3,
) -> ClassifierFeatures:
    """Trains a classifier; the same on every run with the same arguments on one machine.

    Half of the training images are from the train split and half from the held-out one: the
    classifier is a judge and not under test, so it may know every pair of color and shape.

    Args:
      spec_name: a variant of the embedded task.
      seed: of the scenes, the parameters and the order.
      num_steps: optimizer steps.
      batch_size: images per step.
      num_images: distinct training images, at least `batch_size`.
      num_validation: images of each other split that the accuracy is measured on.
      learning_rate: peak, decays to 0 along a cosine.

    Raises:
      ValueError: an unknown spec, or fewer images than a batch holds.
    """
    spec = get_spec(spec_name)
    if not 1 <= batch_size <= num_images or num_steps < 1 or num_validation < 1:
        raise ValueError(
            f"cannot train {num_steps} steps of {batch_size} from {num_images} images and validate "
            f"on {num_validation}: all must be at least 1, and a batch not above the images"
        )
    halves = [_examples(spec, split, num_images // 2 + 1, seed) for split in ("train", "heldout")]
    images, targets = (np.concatenate(parts)[:num_images] for parts in zip(*halves, strict=True))
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
    init_key, noise_key = jax.random.split(jax.random.key(seed))
    params = _network(spec).init(init_key, jnp.zeros((1, *images.shape[1:])))["params"]
    state = (params, optimizer.init(params))
    step = _make_step(spec, optimizer)
    order = np.random.default_rng(seed)
    for index in range(num_steps):
        chosen = order.choice(num_images, batch_size, replace=False)
        state = step(state, images[chosen], targets[chosen], jax.random.fold_in(noise_key, index))
    trained = ClassifierFeatures(spec_name, jax.device_get(state[0]), {})
    # Another seed than the training images': the held-out split is in both.
    accuracy = {
        split: _accuracy(trained, *_examples(spec, split, num_validation, seed + 1))
        for split in ("validation", "heldout")
    }
    return ClassifierFeatures(spec_name, trained.params, accuracy)


def _network(spec: ShapesSpec) -> Classifier:
    return Classifier(sum(head.columns * head.classes for head in heads(spec)))


def _abstract_params(spec: ShapesSpec) -> Mapping[str, Any]:
    images = jax.ShapeDtypeStruct((1, spec.image_size, spec.image_size, 3), jnp.float32)
    return jax.eval_shape(_network(spec).init, jax.random.key(0), images)["params"]


def _examples(spec: ShapesSpec, split: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [count, H, W, 3] and their labels int32 [count, columns]."""
    source = ShapesSource(spec.name, split, count, seed)
    images = np.stack([source[i]["image"] for i in range(count)])
    return images, np.stack([labels(source.scene(i), spec) for i in range(count)])


def _make_step(spec: ShapesSpec, optimizer: optax.GradientTransformation) -> Any:
    network = _network(spec)
    ends = np.cumsum([head.columns for head in heads(spec)])[:-1].tolist()

    def loss(params: Any, images: Array, targets: Array) -> Array:
        blocks = split_logits(network.apply({"params": params}, images)[1], spec)
        wanted = jnp.split(targets, ends, axis=-1)
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(block, target).sum()
            for block, target in zip(blocks, wanted, strict=True)
        ]
        return sum(losses) / targets.size

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, images: Array, targets: Array, key: Array) -> Any:
        params, moments = state
        images = images.astype(jnp.float32) / 255.0
        level_key, noise_key = jax.random.split(key)
        level = jax.random.uniform(level_key, (len(images), 1, 1, 1)) * NOISE
        images = jnp.clip(images + level * jax.random.normal(noise_key, images.shape), 0.0, 1.0)
        gradient = jax.grad(loss)(params, images, targets)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments

    return step


def _accuracy(
    trained: ClassifierFeatures, images: np.ndarray, targets: np.ndarray
) -> dict[str, float]:
    """Fraction of right labels per attribute, and of images with every label right."""
    right = trained.read(images) == targets
    scores, start = {}, 0
    for head in heads(get_spec(trained.spec_name)):
        scores[head.name] = float(right[:, start : start + head.columns].mean())
        start += head.columns
    return scores | {"exact": float(right.all(-1).mean())}
