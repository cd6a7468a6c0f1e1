"""Published PyTorch weights <-> run folders of this package.

In (FILE: safetensors, a .pt of torch.save, or a Hugging Face or diffusers folder):
    python -m paella_jax.convert --family vqgan --weights vqgan_f4.pt --out runs/f4
    python -m paella_jax.convert --family paella --weights paella_v3.pt --out runs/paella \\
        --tokenizer runs/f4 --text byt5-xl [--clip clip-vit-h-14]
    python -m paella_jax.convert --family clip_prior --weights prior_v1.pt --out runs/prior
Out:
    python -m paella_jax.convert --export original --checkpoint runs/f4 --out vqgan.safetensors
    python -m paella_jax.convert --export diffusers --checkpoint runs/f4 --out FOLDER

--config.model.num_heads=(0,16,16) and the like set what the weights do not tell.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paella_jax.launch import run

if TYPE_CHECKING:
    from paella_jax.convert.run_folder import Conversion

DTYPES = ("keep", "float32", "bfloat16", "float16")


def main() -> int:
    """Parses the command line and converts."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--family", choices=("paella", "vqgan", "clip_prior"))
    parser.add_argument("--weights", help="file or folder to convert")
    parser.add_argument("--key", help="entry of a torch file that holds the weights")
    parser.add_argument("--tokenizer", default="", help="vqgan run folder to carry along")
    parser.add_argument("--text", default="", help="T5 or ByT5 folder to carry along")
    parser.add_argument("--clip", default="", help="CLIP folder to carry along")
    parser.add_argument("--export", choices=("original", "diffusers"))
    parser.add_argument("--checkpoint", help="run folder to export")
    parser.add_argument("--out", required=True, help="new folder, or file for --export original")
    parser.add_argument("--dtype", choices=DTYPES, default="keep", help="to store weights in")
    arguments, overrides = parser.parse_known_args()
    inward = arguments.family and arguments.weights and not arguments.export
    outward = arguments.export and arguments.checkpoint and not arguments.family
    if inward:
        return convert(arguments, overrides)
    if outward and not overrides:
        return export(arguments)
    raise ValueError(
        "give --family with --weights, or --export with --checkpoint (without --config. fields)"
    )


def convert(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """A weights file -> a run folder."""
    from paella_jax.convert.model_card import describe_files, model_card
    from paella_jax.convert.run_folder import (
        check_frozen,
        check_new,
        plan_conversion,
        write_run_folder,
    )
    from paella_jax.convert.weights_file import open_weights

    out, dtype = Path(arguments.out), _dtype(arguments.dtype)
    check_new(out)
    carried = {"tokenizer": "tokenizer", "text": "text.folder", "clip": "clip.folder"}
    given = {field: getattr(arguments, name) for name, field in carried.items()}
    if arguments.family != "paella" and any(given.values()):
        raise ValueError(f"--tokenizer, --text and --clip are no options of {arguments.family}")
    overrides = [f"--config.{name}={value}" for name, value in given.items() if value] + overrides
    weights = open_weights(arguments.weights, arguments.key)
    plan = plan_conversion(weights, arguments.family, overrides, dtype)
    check_frozen(plan, weights)

    fields = _fields(plan)
    lacking = _lacking(plan)
    arrays = plan.arrays()
    stored = arguments.dtype if dtype is not None else _dtype_names(arrays)
    total = sum(file.stat().st_size for file in weights.files)
    total += sum(x.size * (x.dtype if dtype is None else dtype).itemsize for x in arrays.values())
    with _progress(total) as report:
        files = describe_files(weights.files, report)
        card = model_card(
            plan.family, fields, files, source=weights.source, lacking=lacking, dtype=stored,
            parameters=plan.parameter_count(), out=out.name,
        )  # fmt: skip
        write_run_folder(plan, out, card, dtype, report)
    print(f"{arguments.weights}: {weights.source}, {len(weights)} tensors")
    for origin in dict.fromkeys(origin for _, origin in fields.values()):
        shown = [f"{name}={value}" for name, (value, o) in fields.items() if o == origin]
        print(f"from {origin}: {', '.join(shown)}")
    print(f"{out}: {plan.family}, {plan.parameter_count():,} parameters as {stored}")
    if lacking:
        print(lacking)
    return 0


def _fields(plan: Conversion) -> dict[str, tuple[Any, str]]:
    """Config field of the network -> value and origin; no folder of this machine among them."""
    from paella_jax.config import flatten_config

    values = flatten_config(plan.config)
    hidden = lambda name: name == "tokenizer" or name.endswith(".folder")
    return {n: (values[n], origin) for n, origin in plan.origins.items() if not hidden(n)}


def _lacking(plan: Conversion) -> str:
    """Which frozen networks a Paella still needs before it can draw, and how to add them."""
    config = plan.config
    if plan.family != "paella" or (config.tokenizer and config.text.folder):
        return ""
    options = {"--tokenizer VQGAN_RUN": config.tokenizer, "--text T5_FOLDER": config.text.folder}
    missing = " ".join(option for option, given in options.items() if not given)
    return (
        "This folder cannot draw yet: it lacks frozen networks. Convert again with "
        f"`{missing}`, or give --config.tokenizer and --config.text.folder when fine-tuning."
    )


def export(arguments: argparse.Namespace) -> int:
    """A run folder -> published names."""
    from paella_jax.convert.export import exported_tensors, write_export
    from paella_jax.convert.run_folder import check_new

    out, dtype = Path(arguments.out), _dtype(arguments.dtype)
    check_new(out)
    if arguments.export == "original" and (out.suffix != ".safetensors" or out.is_dir()):
        raise ValueError(f"--export original writes one file; --out {out} must be FILE.safetensors")
    tensors, left = exported_tensors(arguments.checkpoint, arguments.export)
    total = sum(x.size * (x.dtype if dtype is None else dtype).itemsize for x in tensors.values())
    with _progress(total) as report:
        write_export(arguments.checkpoint, out, arguments.export, tensors, dtype, report)
    print(f"{out}: {len(tensors)} tensors as {_dtype_names(tensors) if dtype is None else dtype}")
    if left:
        print(f"left out, the format has no place for them: {', '.join(left)}")
    return 0


def _dtype(name: str) -> Any:
    import jax.numpy as jnp

    return None if name == "keep" else jnp.dtype(name)


def _dtype_names(arrays: dict[str, Any]) -> str:
    return " and ".join(sorted({str(array.dtype) for array in arrays.values()}))


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar over bytes, shown only where the work takes more than a moment."""
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, delay=2.0, mininterval=1.0) as bar:
        yield bar.update


if __name__ == "__main__":
    run(main)
