"""Pixels of the captioned-shapes task: antialiased shapes from signed distances, numpy only.

Everything up to the coverage of a pixel uses only operations that IEEE 754 rounds exactly (no sine,
no power), and blending is integer arithmetic: the bytes are the same on every machine.
"""

from functools import lru_cache

import numpy as np

from paella_jax.data.shapes import Scene, ShapesSpec, check_scene

COLORS = {
    "red": (225, 30, 30),
    "green": (25, 165, 55),
    "blue": (35, 75, 235),
    "yellow": (250, 225, 25),
    "purple": (140, 35, 190),
    "orange": (255, 130, 0),
    "cyan": (15, 215, 225),
    "pink": (255, 135, 195),
}
BACKGROUNDS = {
    "black": (0, 0, 0),
    "gray": (120, 120, 120),
    "white": (255, 255, 255),
    "brown": (90, 58, 30),
}
RADII = {"small": 0.26, "large": 0.42}  # of the tile side

# Outlines for radius 1, x to the right and y down. The star is a pentagram's outline with the inner
# radius widened to 0.45, its sines and cosines written out.
_TRIANGLE = ((0.0, -1.0), (0.98, 0.84), (-0.98, 0.84))
_DIAMOND = ((0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0))
_STAR = (
    (0.0, -1.0), (0.2645, -0.3641), (0.9511, -0.3090), (0.4280, 0.1391), (0.5878, 0.8090),
    (0.0, 0.45), (-0.5878, 0.8090), (-0.4280, 0.1391), (-0.9511, -0.3090), (-0.2645, -0.3641),
)  # fmt: skip
# The lower part of the heart; its sides touch the two circles of radius 0.5 at (+-0.45, -0.35).
_HEART = ((0.0, 0.95), (0.8307, -0.0259), (0.45, -0.35), (-0.45, -0.35), (-0.8307, -0.0259))


def render(scene: Scene, spec: ShapesSpec) -> np.ndarray:
    """The image of `scene`: uint8 [height, width, 3].

    Raises ValueError when the scene does not fit the spec.
    """
    check_scene(scene, spec)
    image = np.empty((spec.image_size, spec.image_size, 3), np.uint8)
    image[:] = BACKGROUNDS[scene.background]
    for o in scene.objects:
        top, left = spec.margin + o.row * spec.tile, spec.margin + o.column * spec.tile
        patch = tile_patch(o.shape, o.size, o.color, scene.background, spec.tile, o.jitter)
        image[top : top + spec.tile, left : left + spec.tile] = patch
    return image


@lru_cache(maxsize=16384)  # all of shapes64 are 4608 patches, 6 MB
def tile_patch(
    shape: str, size: str, color: str, background: str, tile: int, jitter: tuple[int, int]
) -> np.ndarray:
    """The pixels of one lattice tile with one object: uint8 [tile, tile, 3], read-only."""
    cover = coverage(shape, size, tile, jitter)[..., None]
    ink, ground = np.array(COLORS[color], np.int32), np.array(BACKGROUNDS[background], np.int32)
    patch = ((ink * cover + ground * (256 - cover) + 128) >> 8).astype(np.uint8)
    patch.flags.writeable = False
    return patch


@lru_cache(maxsize=4096)
def coverage(shape: str, size: str, tile: int, jitter: tuple[int, int]) -> np.ndarray:
    """How much of each pixel an object covers, in 1/256: int32 [tile, tile], read-only."""
    centers = np.arange(tile) + 0.5 - tile / 2
    y, x = centers[:, None] - jitter[0], centers[None, :] - jitter[1]
    radius = RADII[size] * tile
    distance = _signed_distance(shape, x / radius, y / radius) * radius
    cover = np.floor(np.clip(0.5 - distance, 0.0, 1.0) * 256 + 0.5).astype(np.int32)
    cover.flags.writeable = False
    return cover


def _signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the outline of a shape of radius 1, negative inside; broadcasts x and y."""
    if shape == "circle":
        return _circle(x, y, 0.97)
    if shape == "square":
        return _box(x, y, 0.88, 0.88)
    if shape == "cross":
        return np.minimum(_box(x, y, 1.0, 0.34), _box(x, y, 0.34, 1.0))
    if shape == "ring":
        return np.abs(_circle(x, y, 0.74)) - 0.24
    if shape == "heart":
        lobes = np.minimum(_circle(x - 0.45, y + 0.35, 0.5), _circle(x + 0.45, y + 0.35, 0.5))
        return np.minimum(lobes, _polygon(x, y, _HEART))
    outlines = {"triangle": _TRIANGLE, "star": _STAR, "diamond": _DIAMOND}
    return _polygon(x, y, outlines[shape])


def _circle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.sqrt(x * x + y * y) - radius


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    dx, dy = np.abs(x) - half_width, np.abs(y) - half_height
    outside_x, outside_y = np.maximum(dx, 0.0), np.maximum(dy, 0.0)
    outside = np.sqrt(outside_x * outside_x + outside_y * outside_y)
    return outside + np.minimum(np.maximum(dx, dy), 0.0)


def _polygon(x: np.ndarray, y: np.ndarray, corners: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Nearest edge for the distance, crossings of a ray to the right for the sign."""
    nearest = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf)
    inside = np.zeros(nearest.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        dx, dy = x - ax - along * ex, y - ay - along * ey
        nearest = np.minimum(nearest, dx * dx + dy * dy)
        if ey != 0.0:
            spans = (y < ay) != (y < by)
            inside ^= spans & (x < ax + (y - ay) * (ex / ey))
    return np.where(inside, -1.0, 1.0) * np.sqrt(nearest)
