"""Measures of single images and of tokens, and the Inception Score."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from paella_jax.evaluation.estimates import need

NEAR = 0.1  # of the range: colours that look alike
BLANK = 0.99  # share of the pixels of one colour that makes an image blank
LARGEST_PSNR = 100.0  # of equal images
SPLITS = 10
WINDOW, SIGMA = 11, 1.5  # of SSIM, in pixels
FLOORS = (0.01**2, 0.03**2)  # what keeps SSIM's fractions apart from 0 / 0


def is_blank(image: np.ndarray) -> bool:
    """Whether a uint8 image [H, W, 3] has nearly one colour.

    Nearly all pixels are within a tenth of the range from the image's median colour.
    """
    pixels = image.reshape(-1, image.shape[-1]).astype(np.float32) / 255.0
    distance = np.abs(pixels - np.median(pixels, axis=0)[None]).max(1)
    return bool((distance < NEAR).mean() >= BLANK)


def psnr(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of images [n, H, W, 3] in [0, 1], float64 [n]."""
    difference = np.asarray(images, np.float64) - np.asarray(originals, np.float64)
    error = np.square(difference).mean((1, 2, 3))
    return -10.0 * np.log10(np.maximum(error, 10.0 ** (-LARGEST_PSNR / 10.0)))


def ssim(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Structural similarity of images [n, H, W, 3] in [0, 1], float64 [n]; 1 of equal images.

    Wang et al. 2004: a Gaussian window of 11 pixels that stays within the image, colours apart.

    Raises:
      ValueError: images smaller than the window.
    """
    if min(images.shape[1:3]) < WINDOW:
        height, width = images.shape[1:3]
        raise ValueError(f"SSIM looks at {WINDOW} pixels, the images have {width}x{height}")
    return np.array([_ssim(x, y) for x, y in zip(images, originals, strict=True)])


def _ssim(image: np.ndarray, original: np.ndarray) -> float:
    x, y = np.asarray(image, np.float64), np.asarray(original, np.float64)
    mean_x, mean_y, square_x, square_y, product = map(_blurred, (x, y, x * x, y * y, x * y))
    variances = square_x - mean_x**2 + square_y - mean_y**2
    covariance = product - mean_x * mean_y
    light = (2.0 * mean_x * mean_y + FLOORS[0]) / (mean_x**2 + mean_y**2 + FLOORS[0])
    return float((light * (2.0 * covariance + FLOORS[1]) / (variances + FLOORS[1])).mean())


def _blurred(x: np.ndarray) -> np.ndarray:
    """Weighted means of all windows inside of [H, W, C]."""
    weights = np.exp(-0.5 * np.square((np.arange(WINDOW) - WINDOW // 2) / SIGMA))
    weights /= weights.sum()
    for axis in (0, 1):
        x = np.lib.stride_tricks.sliding_window_view(x, WINDOW, axis) @ weights
    return x


class InceptionScore(NamedTuple):
    """Salimans et al. 2016, over splits of the images."""

    mean: float
    deviation: float
    splits: int


def inception_score(logits: np.ndarray, splits: int = SPLITS) -> InceptionScore:
    """How sure and how different a classifier's answers are: exp of their mutual information.

    Args:
      logits: [n, classes].
      splits: parts that are scored each by itself. An image's part is drawn, always in the same
        way: data is often in the order of its classes, or goes round them, and a part of one class
        has no different answers. The published code cuts images that were drawn in any order.

    Raises:
      ValueError: fewer images than parts need.
    """
    need(len(logits), 2 * splits, "the Inception Score", f"{splits} splits")
    x = np.asarray(logits, np.float64)
    x = x - x.max(1, keepdims=True)
    logs = x - np.log(np.exp(x).sum(1, keepdims=True))
    scores = []
    order = np.random.default_rng(0).permutation(len(logs))
    for part in np.array_split(logs[order], splits):
        chances = np.exp(part)
        overall = np.log(np.maximum(chances.mean(0), np.finfo(np.float64).tiny))
        scores.append(np.exp((chances * (part - overall[None])).sum(1).mean()))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), splits)


class CodeUsage(NamedTuple):
    """How much of a codebook is in use.

    Attributes:
      used: codes that occur.
      codes: in the codebook.
      perplexity: as many codes, equally often, would say as much; `codes` at most.
    """

    used: int
    codes: int
    perplexity: float


def code_usage(counts: np.ndarray) -> CodeUsage:
    """From how often each code occurs, [codes]. Raises ValueError where none does."""
    total = counts.sum()
    if total <= 0:
        raise ValueError("no code was counted; give images")
    shares = counts[counts > 0] / total
    perplexity = float(np.exp(-(shares * np.log(shares)).sum()))
    return CodeUsage(int((counts > 0).sum()), len(counts), perplexity)
