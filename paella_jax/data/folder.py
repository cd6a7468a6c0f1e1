"""A folder of images with captions beside them: `name.png` and `name.txt`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
VALIDATION_EVERY = 20  # one image in twenty is kept for validation
MAX_BROKEN_SHARE = 0.1


@dataclass
class FolderSource:
    """Images resized by their short side and centre-cropped to `image_size` pixels.

    An unreadable image is replaced by the next readable one and counted; when more than one image
    in ten of the folder is broken, the run stops. A missing caption counts as broken.

    Raises:
      ValueError: no such folder, or no images in it.
    """

    folder: str
    image_size: int
    split: str = "train"
    broken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        root = Path(self.folder)
        if not self.folder or not root.is_dir():
            raise ValueError(f"data.folder {self.folder!r} is not a folder of images with captions")
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
        held = {f for i, f in enumerate(files) if i % VALIDATION_EVERY == VALIDATION_EVERY - 1}
        self.files = [f for f in files if (f in held) == (self.split != "train")] or files
        if not files:
            raise ValueError(f"data.folder {self.folder} has no images ({sorted(SUFFIXES)})")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample: `image` uint8 [image_size, image_size, 3], `caption` str, `index` int."""
        for offset in range(len(self.files)):
            file = self.files[(int(index) + offset) % len(self.files)]
            if str(file) in self.broken:
                continue
            try:
                caption = file.with_suffix(".txt").read_text(encoding="utf-8").strip()
                return {
                    "image": load_image(file, self.image_size),
                    "caption": caption,
                    "index": index,
                }
            except (OSError, ValueError) as error:
                self.broken.add(str(file))
                print(f"skipping broken sample {file}: {error}", flush=True)
                if len(self.broken) > max(MAX_BROKEN_SHARE * len(self.files), 3):
                    raise RuntimeError(
                        f"{len(self.broken)} of {len(self.files)} samples in {self.folder} are "
                        f"broken, the last: {file} ({error}); clean the folder"
                    ) from error
        raise RuntimeError(f"no readable sample in {self.folder}")


def load_image(file: Path, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: short side resized to `size` (bicubic, antialiased), centre crop."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)), np.uint8)
