"""Small valid images, prompts, tables, shards and manifests from outside, for fuzzing.py."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mutations as m
import numpy as np
import small
import small_records
from fuzz_models import folder_of
from fuzzing import Example
from PIL import Image

from paella_jax.config import load_config, to_json
from paella_jax.data.array_records import ArrayRecords
from paella_jax.data.build import FILES
from paella_jax.data.captioned import CaptionedImages
from paella_jax.data.cropping import Cropping
from paella_jax.data.encoded import EncodedSource, describe_data
from paella_jax.data.encoded_format import Manifest, Split, Stored
from paella_jax.data.fields import ALL
from paella_jax.data.files_of_records import find_files
from paella_jax.data.folder import FolderSource
from paella_jax.data.parquet import TableRecords
from paella_jax.data.records import Records
from paella_jax.data.webdataset import ShardRecords
from paella_jax.files.digests import to_sealed_json
from paella_jax.images.decode import shown_size
from paella_jax.images.notes import Notes
from paella_jax.images.png import read_png_texts, save_png
from paella_jax.images.read import read_classes, read_image, read_mask, read_rgb
from paella_jax.pipelines.prompt_file import Defaults, check_prompt_file, ignored_columns
from paella_jax.runs.checked_lines import metrics_line
from paella_jax.runs.digests import note_files
from paella_jax.runs.folder import read_config as read_run_config
from paella_jax.runs.folder import read_metrics
from paella_jax.runs.frozen import load_carried
from paella_jax.runs.manifest import write_manifest
from paella_jax.runs.verify import verify_run
from paella_jax.runs.weights import save_tree
from paella_jax.sharing.folder import inside, step_of

GOLDEN = small.ROOT / "tests" / "golden"
JSON = (m.mutate_json,) * 4
DRAW = np.random.default_rng(0)


# --- images, masks and maps


def images(root: Path) -> list[Example]:
    noise = Image.fromarray(DRAW.integers(0, 256, (9, 7, 3), np.uint8))
    alpha = noise.convert("RGBA")
    alpha.putalpha(128)
    deep = Image.fromarray(DRAW.integers(0, 65536, (5, 6)).astype(np.uint16))
    floats = Image.fromarray(DRAW.random((4, 5), np.float32))
    palette = noise.convert("P")
    kinds = {"rgb.png": noise, "deep.png": deep, "alpha.png": alpha, "palette.png": palette,
             "x.jpg": noise, "x.gif": palette, "x.webp": noise, "x.bmp": noise, "x.tif": noise,
             "float.tif": floats, "x.ppm": noise}  # fmt: skip
    made = []
    for name, image in kinds.items():
        folder = folder_of(root, name)
        exif = {"exif": _turned(image)} if name in ("x.jpg", "rgb.png", "x.webp") else {}
        image.save(folder / name, **exif)
        ways = (m.in_png, m.in_png) if name.endswith(".png") else ()
        made.append(Example(name, folder, {name: ways}, partial(_read_image, name)))
    folder = folder_of(root, "told.png")
    save_png(folder / "told.png", np.asarray(noise), {"record": '{"file": "a"}', "prompt": "x"})
    read = partial(_read_image, "told.png")
    return [*made, Example("told.png", folder, {"told.png": (m.in_png, m.in_png)}, read)]


def _turned(image: Image.Image) -> Image.Exif:
    exif = image.getexif()
    exif[0x0112] = 6
    return exif


def _read_image(name: str, folder: Path) -> None:
    read_png_texts(folder / name)
    shown_size(folder / name, Notes())
    read_rgb(folder / name, notes=Notes(), at_least=(2, 2))
    read_image(folder / name)


def masks(root: Path) -> list[Example]:
    made = []
    grey = Image.fromarray(DRAW.integers(0, 5, (6, 5), np.uint8))
    deep = Image.fromarray(np.arange(12, dtype=np.int32).reshape(3, 4))
    kinds = {"grey.png": grey, "palette.png": grey.convert("P"), "bits.png": grey.convert("1"),
             "deep.tif": deep}  # fmt: skip
    for name, image in kinds.items():
        folder = folder_of(root, name)
        image.save(folder / name)
        ways = (m.in_png, m.in_png) if name.endswith(".png") else ()
        made.append(Example(name, folder, {name: ways}, partial(_read_mask, name)))
    for kind in ("i4", "u1", "f8", "?"):
        name = f"map{len(made)}.npy"
        folder = folder_of(root, name)
        np.save(folder / name, DRAW.integers(0, 2, (4, 4)).astype(kind))
        read = lambda place, name=name: read_classes(place / name)
        made.append(Example(name, folder, {name: (m.in_npy,) * 4}, read))
    return made


def _read_mask(name: str, folder: Path) -> None:
    read_mask(folder / name)
    read_classes(folder / name)


# --- prompts, tables and captions


def prompts(root: Path) -> list[Example]:
    made = []
    first = {"prompt": "a red circle", "seed": 3, "file": "one.png", "num_steps": 4, "height": 32,
             "guidance_scale": 3.5, "negative_prompt": "blue"}  # fmt: skip
    rows = [first, {"prompt": "a square", "seed": 4}]
    table = 'prompt,seed,file,steps\na cat,1,a.png,4\n"a dog, asleep",2,b.png,5\n'
    texts = {"prompts.txt": "a cat\n\na dog\n", "prompts.csv": table,
             "prompts.tsv": table.replace(", ", ";").replace(",", "\t"),
             "prompts.jsonl": "\n".join(map(json.dumps, rows))}  # fmt: skip
    for name, text in texts.items():
        folder = folder_of(root, name)
        (folder / name).write_text(text)
        made.append(Example(name, folder, {name: _ways(name)}, partial(_read_prompts, name)))
    return [*made, *_captioned(root)]


def _ways(name: str) -> tuple[m.Mutation, ...]:
    return (m.mutate_rows,) * 3 if name.endswith("jsonl") else (m.mutate_table,) * 2


def _read_prompts(name: str, folder: Path) -> None:
    check_prompt_file(folder / name, Defaults())
    ignored_columns(folder / name)


def _captioned(root: Path) -> list[Example]:
    rows = [{"file_name": f"{i}.png", "text": [f"caption {i}", "b"], "split": "train", "kind": "x"}
            for i in range(3)]  # fmt: skip
    lines = ["file_name,text", *(f"{i}.png,word {i}" for i in range(3))]
    tables = {"metadata.jsonl": "\n".join(map(json.dumps, rows)), "metadata.csv": "\n".join(lines)}
    made = []
    for name, text in tables.items():
        folder = _with_images(folder_of(root, f"with_{name}"))
        (folder / name).write_text(text)
        made.append(Example(folder.name, folder, {name: _ways(name)}, _read_folder))
    folder = _with_images(folder_of(root, "with_texts"))
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"caption {number}")
    made.append(Example("with_texts", folder, {"0.txt": (), "0.png": (m.in_png,)}, _read_folder))
    return made


def _with_images(folder: Path) -> Path:
    for number in range(3):
        (folder / f"{number}.png").write_bytes(small_records.png(number, (6, 5)))
    return folder


def _read_folder(folder: Path) -> None:
    source = FolderSource(str(folder), 4)
    for index in range(len(source)):
        source[index]


# --- manifests, digests, shards


def manifests(root: Path) -> list[Example]:
    made = [*_records(root), *_run_files(root), *_shared(root)]
    return made


def _records(root: Path) -> list[Example]:
    left: Counter[str] = Counter()
    readers = {
        "webdataset": lambda owner, files: ShardRecords(owner, files, ALL, left),
        "array_record": ArrayRecords,
        "parquet": TableRecords,
        "arrow": TableRecords,
    }
    made = []
    for kind, read in readers.items():
        folder = small_records.write(kind, root / kind, 3, files=1) or root / kind
        files = sorted(f.name for f in folder.iterdir() if not f.name.startswith("cache"))
        ways = (m.in_tar,) * 3 if kind == "webdataset" else ()
        damages, all_of = dict.fromkeys(files, ways), partial(_read_all, kind, read)
        made.append(Example(kind, folder, damages, all_of, names=(f"/{kind}",)))
    folder = root / "webdataset"
    index = folder_of(root, "index")
    shutil.copy2(folder / "shard-000.tar", index)
    read = partial(_read_all, "webdataset", readers["webdataset"])
    read(index)
    name = "shard-000.tar.index.npz"
    return [*made, Example("index", index, {name: (m.in_zip,)}, read)]


def _read_all(kind: str, read: Callable[[str, list[Path]], Records], folder: Path) -> None:
    field, pattern = FILES["parquet" if kind == "arrow" else kind]
    files = find_files(f"data.{field}", str(folder), pattern)
    records = read(f"data.{field} {folder}", files)
    source = CaptionedImages(records, Cropping(4))
    for index in range(len(source)):
        source[index]


def _run_files(root: Path) -> list[Example]:
    """What a run folder says of itself."""
    folder = folder_of(root, "run")
    (folder / "config.json").write_text(to_json(load_config("paella:tiny")))
    (folder / "metrics.jsonl").write_text("".join(metrics_line({"step": i}) for i in range(3)))
    (folder / "frozen").mkdir()
    save_tree(folder / "frozen" / "base.safetensors", {"a": np.ones(3, np.float32)})
    note_files(folder)
    files = {"digests.json": (_sealed,) * 4, "metrics.jsonl": (m.mutate_rows,), "config.json": JSON}
    files |= {"frozen/base.safetensors": (m.in_safetensors,)}
    made = [Example("run", folder, files, _read_run, names=("base.safetensors", "config.json"))]
    encoded = folder_of(root, "encoded")
    (encoded / "manifest.json").write_text(_manifest().to_json())
    return [*made, Example("encoded", encoded, {"manifest.json": JSON}, _read_encoded,
                           names=("data.encoded",))]  # fmt: skip


def _read_run(folder: Path) -> None:
    verify_run(folder)
    read_run_config(folder)
    read_metrics(folder / "metrics.jsonl")
    load_carried("base", folder)


def _sealed(data: bytes, draw: np.random.Generator) -> bytes:
    """A list of digests with other values and a seal that fits them."""
    value = json.loads(data)
    value.pop("sha256")
    value = m.mutate_value(value, draw)
    return to_sealed_json(value).encode() if isinstance(value, dict) else json.dumps(value).encode()


def _manifest() -> Manifest:
    stored = {"tokens": Stored("int16", (4,), "int32")}
    data = {"source": "folder", "image_size": 32}
    return Manifest("tokens", {}, {}, {"a": 1}, data, 0, "", {"train": Split(0, 1, 4, stored)})


def _read_encoded(folder: Path) -> None:
    config = load_config("paella:tiny", [f"data.encoded={folder}"])
    describe_data(config)
    EncodedSource(folder, "train")


def _shared(root: Path) -> list[Example]:
    folder = folder_of(root, "shared")
    (folder / "config.json").write_text(to_json(load_config("paella:tiny")))
    write_manifest(folder, (), version="1", step=3, inside=["super_resolution"])
    read = lambda place: (read_run_config(place), inside(place), step_of(place))
    return [Example("shared", folder, {"paella_jax.json": JSON, "config.json": JSON}, read,
                    names=("config.json",))]  # fmt: skip
