"""Captioned icons of 64 pixels, as tar shards, from three packages of the npm registry:

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 \
        @lobehub/fluent-emoji-3d@1.1.0
    python launch/icon_shards.py PACKAGES OUT

PACKAGES is the folder with the three .tgz files; ./launch/icons.sh calls this. Noto Emoji (Google,
Apache 2.0), Twemoji (Twitter and others, CC-BY 4.0) and Fluent Emoji (Microsoft, MIT); names from
emoji-datasource (MIT) after the Unicode Character Database. Icons are put on white, padded to a
square and resized.

Held back, as `heldout-*`: of one thing in eight that all three styles draw, one style's icon; of
one pair in eight of thing and skin tone, all styles'. So each is a known thing in a known style or
tone that is never seen together, and its true picture exists.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from paella_jax.images.read import read_rgb

SIZE = 64
PER_SHARD = 2500
ONE_IN = 8
TONES = {
    "1F3FB": "light skin",
    "1F3FC": "medium light skin",
    "1F3FD": "medium skin",
    "1F3FE": "medium dark skin",
    "1F3FF": "dark skin",
}
# Of every style the beginning of its package's file name, and where its icons are inside.
STYLES = {
    "google": ("emoji-datasource-google", "package/img/google/64/{}.png"),
    "twitter": ("emoji-datasource-twitter", "package/img/twitter/64/{}.png"),
    "fluent": ("lobehub-fluent-emoji-3d", "package/assets/{}.webp"),
}
NAMES = "package/emoji.json"


class Icon(NamedTuple):
    """One icon: its file name, picture, caption, what is known of it, and its part."""

    name: str
    encoded: bytes
    caption: str
    facts: dict[str, Any]
    held_back: bool


class Packages:
    """The three packages, each a map from a path inside to its bytes.

    Raises:
      SystemExit: one of them is not in the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._files = {style: _read_package(folder, begin) for style, (begin, _) in STYLES.items()}

    def entries(self) -> list[dict[str, Any]]:
        """What the first package says of every thing: its name, code points and skin tones."""
        return json.loads(self._files["google"][NAMES])

    def drawings(self, code: str) -> dict[str, bytes]:
        """The encoded icon of a thing in every style that draws it."""
        drawn = {}
        for style, (_, path) in STYLES.items():
            for spelling in (code.lower(), code.lower().replace("-fe0f", "")):
                if path.format(spelling) in self._files[style]:
                    drawn[style] = self._files[style][path.format(spelling)]
                    break
        return drawn


def _read_package(folder: Path, begin: str) -> dict[str, bytes]:
    found = sorted(folder.glob(f"{begin}*.tgz"))
    if not found:
        raise SystemExit(f"error: no {begin}-*.tgz in {folder}; get it with npm pack")
    with tarfile.open(found[-1]) as package:
        icons = re.compile(rf".*/64/[^/]+\.png|.*/assets/[^/]+\.webp|{NAMES}")
        wanted = [member for member in package if icons.fullmatch(member.name)]
        return {member.name: package.extractfile(member).read() for member in wanted}


def icons(packages: Packages) -> Iterator[Icon]:
    """Every icon, thing after thing."""
    for entry in packages.entries():
        tones = [tone for tone in entry.get("skin_variations", {}) if tone in TONES]
        for tone in (None, *tones):
            code = entry["skin_variations"][tone]["unified"] if tone else entry["unified"]
            yield from _of_one_code(entry, code, tone, packages.drawings(code))


def _of_one_code(
    entry: dict[str, Any], code: str, tone: str | None, drawn: dict[str, bytes]
) -> Iterator[Icon]:
    name = _plain(entry["name"])
    held = _held_back(entry["unified"], tone, sorted(drawn))
    for style, encoded in drawn.items():
        caption = f"{style} style {name}" + (f" with {TONES[tone]}" if tone else "")
        facts = {"style": style, "name": name, "tone": tone, "category": entry["category"]}
        yield Icon(f"{style}_{code.lower()}", encoded, caption, facts, style in held)


def _plain(name: str) -> str:
    """Lower-case words with nothing but letters, digits and apostrophes."""
    return " ".join(re.sub(r"[^a-z0-9']+", " ", name.lower()).split())


def _held_back(base: str, tone: str | None, styles: list[str]) -> set[str]:
    """The styles whose icon is held back: chosen by the name, so that it is always the same one."""
    if tone:
        return set(styles) if _draw(f"{base}{tone}", ONE_IN) == 0 else set()
    if len(styles) < len(STYLES) or _draw(base, ONE_IN):
        return set()
    return {styles[_draw(f"{base}style", len(styles))]}


def _draw(key: str, below: int) -> int:
    return int(sha256(key.encode()).hexdigest(), 16) % below


def on_white(encoded: bytes) -> bytes:
    """An icon of any mode and shape -> PNG, square, on white."""
    image = read_rgb(Image.open(io.BytesIO(encoded), formats=["PNG", "WEBP"]))
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    file = io.BytesIO()
    square.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(file, "PNG", optimize=True)
    return file.getvalue()


def write_shards(found: list[Icon], out: Path, split: str) -> None:
    """Writes OUT/SPLIT-00000.tar and so on, whole files or none."""
    for number, start in enumerate(range(0, len(found), PER_SHARD)):
        file = out / f"{split}-{number:05}.tar"
        unfinished = file.with_suffix(".part")
        with tarfile.open(unfinished, "w") as shard:
            for icon in found[start : start + PER_SHARD]:
                _add(shard, f"{icon.name}.png", on_white(icon.encoded))
                _add(shard, f"{icon.name}.txt", icon.caption.encode())
                _add(shard, f"{icon.name}.json", json.dumps(icon.facts).encode())
        unfinished.rename(file)


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def main(packages: Path, out: Path) -> None:
    """Reads the packages and writes the shards of both parts."""
    out.mkdir(parents=True, exist_ok=True)
    found = list(icons(Packages(packages)))
    parts = {
        "train": [icon for icon in found if not icon.held_back],
        "heldout": [icon for icon in found if icon.held_back],
    }
    for split, part in parts.items():
        write_shards(part, out, split)
    print(", ".join(f"{len(part)} {split}" for split, part in parts.items()), "icons:", out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
