"""The geometry of a run: which image sizes it draws, and which tokens of an image stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from paella_jax.families.token_networks import TokenNetworks
from paella_jax.images.read import ImageError, ImageLike, read_mask
from paella_jax.pipelines.given_image import GivenImage
from paella_jax.sampling.token_loop import Known


class Scale(NamedTuple):
    """One of a pipeline's token maps of an image, as image tasks use it.

    Attributes:
      known: name of the argument of `generate` that says which of these tokens stay.
      shows: what the map is of, for messages.
      encode: images [count, H, W, 3] -> tokens int32 [count, h, w].
      pixels: side of a token, rounded down.
      grid: tokens on each side; 0 for as many as the image has.
    """

    known: str
    shows: str
    encode: Callable[[np.ndarray], np.ndarray]
    pixels: int
    grid: int = 0


@dataclass(frozen=True)
class Sizes:
    """The images that one token predictor draws, in pixels.

    Attributes:
      token: side of a token; margins around an image are multiples of it.
      divisor: both sides must be multiples of this.
      only_side: both sides where positions are learned for one size; 0 where sizes are free.
      default: both sides of the training images.
    """

    token: int
    divisor: int
    only_side: int
    default: int

    @classmethod
    def of(cls, networks: TokenNetworks, config: ConfigDict) -> Sizes:
        """The sizes of a run."""
        token, predictor = networks.vqgan.downsampling, networks.predictor
        only_side = token * getattr(predictor, "grid", 0)
        return cls(token, token * predictor.grid_divisor, only_side, config.data.image_size)

    def grid(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of the token map; None is the training size.

        Raises:
          ValueError: a size that the network does not draw.
        """
        size = [self.default if side is None else side for side in (height, width)]
        for name, pixels in zip(("height", "width"), size, strict=True):
            check_side(name, pixels, self.divisor)
        rows, columns = (pixels // self.token for pixels in size)
        if self.only_side and size != [self.only_side, self.only_side]:
            positions = self.only_side // self.token
            raise ValueError(
                f"{size[0]}x{size[1]} pixels are {rows}x{columns} tokens; "
                f"this network has learned positions for {positions}x{positions} only: draw "
                f"{self.only_side}x{self.only_side} pixels"
            )
        return rows, columns

    def options(self, height: int, width: int) -> dict[str, Any]:
        """The arguments of `generate` that ask for an image's size."""
        return {"height": height, "width": width}

    def check_image(self, height: int, width: int) -> None:
        """Raises ImageError for an image that the network could not have drawn."""
        side = self.only_side
        if not side:
            _check_multiples(height, width, self.divisor)
        elif {height, width} != {side}:
            raise _unfit(height, width, f"be {side}, this network's only size", (side, side))

    def check_part(self, height: int, width: int) -> None:
        """Raises ImageError for a part of an image that is not of whole tokens."""
        _check_multiples(height, width, self.token)

    def check_canvas(self, image: tuple[int, int], canvas: tuple[int, int]) -> None:
        """Raises ImageError where an image and its margins make a size that cannot be drawn."""
        side, divisor = self.only_side, self.divisor
        if side and canvas != (side, side):
            wanted = f"this network draws {side}x{side} only"
        elif not side and (canvas[0] % divisor or canvas[1] % divisor):
            wanted = f"both must be multiples of {divisor}"
        else:
            return
        raise ImageError(
            f"the image of {image[0]}x{image[1]} pixels (height x width) and its margins make "
            f"{canvas[0]}x{canvas[1]}; {wanted}: change the margins or resize the image"
        )


@dataclass(frozen=True)
class OneSize:
    """The images that two runs draw together: squares of one side, with margins of any width."""

    side: int
    token: int = 1

    def options(self, height: int, width: int) -> dict[str, Any]:
        """The arguments of `generate` that ask for an image's size: it is the only one."""
        return {}

    def check_image(self, height: int, width: int) -> None:
        """Raises ImageError for an image of another size."""
        if (height, width) != (self.side, self.side):
            raise ImageError(
                f"the image is {height}x{width} pixels (height x width); resize or crop it to "
                f"{self.side}x{self.side}, the only size of these runs"
            )

    def check_canvas(self, image: tuple[int, int], canvas: tuple[int, int]) -> None:
        """Raises ImageError where an image and its margins make another size."""
        if canvas != (self.side, self.side):
            raise ImageError(
                f"the image of {image[0]}x{image[1]} pixels (height x width) and its "
                f"margins make {canvas[0]}x{canvas[1]}; these runs draw {self.side}x"
                f"{self.side} only: resize the image or change the margins"
            )


def check_side(name: str, pixels: int, divisor: int) -> None:
    """Raises ValueError where an image side is no multiple of `divisor`, naming the nearest."""
    if pixels < divisor or pixels % divisor:
        nearest = max(divisor, round(pixels / divisor) * divisor)
        raise ValueError(f"{name} {pixels} must be a positive multiple of {divisor}; use {nearest}")


def _check_multiples(height: int, width: int, divisor: int) -> None:
    if height % divisor or width % divisor:
        nearest = [max(divisor, round(side / divisor) * divisor) for side in (height, width)]
        raise _unfit(height, width, f"be multiples of {divisor}", nearest)


def _unfit(height: int, width: int, needed: str, nearest: Any) -> ImageError:
    return ImageError(
        f"the image is {height}x{width} pixels (height x width), both must {needed}; resize or "
        f"crop it to {nearest[0]}x{nearest[1]}"
    )


def keep_unmasked(pipe: Any, image: ImageLike, mask: ImageLike) -> dict[str, Any]:
    """Which tokens of an image stay: all but those with a pixel that the mask marks.

    Args:
      pipe: from `paella_jax.load`, with `sizes` and `scales`.
      image: of a size that it draws.
      mask: of the same size; white or True is to be drawn anew.

    Returns:
      Arguments of its `generate`: the size, and a `Known` of [1, h, w] for each scale.

    Raises:
      ImageError: unusable image, a mask of another size, one that marks nothing or everything.
    """
    pixels, marked = read_masked(pipe, image, mask)
    pipe.sizes.check_image(*marked.shape)
    own = lambda scale: tuple(side // scale.pixels for side in marked.shape)
    generate = [touched(marked, (s.grid, s.grid) if s.grid else own(s)) for s in pipe.scales]
    if generate[0].all():
        first = pipe.scales[0]
        raise ImageError(
            f"the mask touches every cell of {first.pixels}x{first.pixels} pixels, so nothing of "
            f"the {first.shows} would stay; use text-to-image instead"
        )
    known = {
        scale.known: Known(scale.encode(pixels[None]), anew[None])
        for scale, anew in zip(pipe.scales, generate, strict=True)
    }
    return {**known, **pipe.sizes.options(*marked.shape)}


def tokens_of_image(
    pipe: Any, start: Mapping[str, Any], given: GivenImage, strength: float, prompts: int
) -> dict[str, Any]:
    """A call's image -> arguments of a token pipeline's `generate`, for each of `prompts`.

    Args:
      pipe: from `paella_jax.load`, with `sizes` and `scales`.
      start: sampler settings that start from the image (presets.py), used below a strength of 1.
      given: with a mask every token that the mask does not touch stays.
      strength: below 1 the others start from the image too.
      prompts: how many there are; all have the same image.

    Raises:
      ImageError: a mask that touches every token.
    """
    repeat = lambda x: np.repeat(np.asarray(x), prompts, axis=0)
    own, first = pipe.sizes.options(*given.pixels.shape[:2]), pipe.scales[0]
    tokens = None
    if given.marked is not None:
        kept = keep_unmasked(pipe, given.pixels, given.marked)
        tokens = kept[first.known].tokens
        own |= {s.known: Known(*map(repeat, kept[s.known])) for s in pipe.scales}
    if strength < 1.0:
        if tokens is None:
            tokens = first.encode(given.pixels[None])
        own |= {"image_tokens": repeat(tokens), **start}
    return own


def read_masked(pipe: Any, image: ImageLike, mask: ImageLike) -> tuple[np.ndarray, np.ndarray]:
    """Image float32 [height, width, 3] in [0, 1] and mask bool [height, width].

    Raises:
      ImageError: unusable image, a mask of another size, or one that marks nothing.
    """
    pixels, marked = pipe.read(image), read_mask(mask)
    if marked.shape != pixels.shape[:2]:
        raise ImageError(
            f"the mask is {marked.shape[0]}x{marked.shape[1]} pixels, the image "
            f"{pixels.shape[0]}x{pixels.shape[1]}; make them equal"
        )
    if not marked.any():
        raise ImageError("the mask marks nothing; paint white what is to be drawn anew")
    return pixels, marked


def touched(marked: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """bool [height, width] in pixels -> bool [h, w] (`grid`): tokens with any pixel marked.

    The sides need not divide by the grid; a pixel on a border belongs to both tokens.
    """
    for axis, count in enumerate(grid):
        edges = (np.arange(count + 1) * marked.shape[axis]).tolist()
        spans = [range(a // count, -(-b // count)) for a, b in pairwise(edges)]
        marked = np.stack([marked.take(span, axis).any(axis) for span in spans], axis)
    return marked
