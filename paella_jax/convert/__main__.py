"""Published PyTorch weights <-> run folders of this package.

In (FILE: safetensors, a .pt of torch.save, or a Hugging Face or diffusers folder):
    python -m paella_jax.convert --family vqgan --weights vqgan_f4.pt --out runs/f4
    python -m paella_jax.convert --family paella --weights paella_v3.pt --out runs/paella \\
        --tokenizer runs/f4 --text byt5-xl [--clip clip-vit-h-14]
    python -m paella_jax.convert --family amused --weights AMUSED_FOLDER --out runs/amused
    python -m paella_jax.convert --family amused --weights AMUSED_FOLDER/transformer \\
        --tokenizer runs/f16 --clip clip-vit-l-14 --out runs/amused
    python -m paella_jax.convert --family clip_prior --weights prior_v1.pt --out runs/prior
    python -m paella_jax.convert --family wuerstchen --weights model_v2_stage_b.pt \\
        --tokenizer runs/f4 --text clip-vit-h-14 --out runs/stage_b [--compressor FILE]
    python -m paella_jax.convert --family wuerstchen --weights model_v2_stage_c.pt \\
        --stage_b runs/stage_b --text clip-vit-big-g-14 --out runs/wuerstchen
Out:
    python -m paella_jax.convert --export original --checkpoint runs/f4 --out vqgan.safetensors
    python -m paella_jax.convert --export diffusers --checkpoint runs/f4 --out FOLDER
    python -m paella_jax.convert --export compressor --checkpoint runs/stage_b \\
        --out compressor.safetensors
Runs into runs:
    python -m paella_jax.convert --interpolate RUN_A RUN_B [--share 0.5] --out DIR
    python -m paella_jax.convert --merge LORA_RUN --out DIR

--config.model.num_heads=(0,16,16) and the like set what the weights do not tell.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paella_jax.cli import Parser, path, run
from paella_jax.outside import say

CARRIED = ("tokenizer", "text", "clip", "stage_b")  # options that name networks to take along
DTYPES = ("keep", "float32", "bfloat16", "float16")
DTYPE_HELP = "to store the weights in; networks taken along keep theirs"

# Flags that name files and folders; "" where those that go along are left out.
ALONG = {
    "tokenizer": "vqgan run folder to carry along",
    "text": "T5 or ByT5 (Paella) or CLIP folder (Würstchen)",
    "clip": "CLIP folder to carry along (Paella, aMUSEd)",
    "stage_b": "Stage B run folder to carry along (Stage C)",
    "compressor": "file of Stage B's compressor",
}
PATHS = ALONG | {
    "weights": "file or folder to convert",
    "checkpoint": "run folder to export",
    "merge": "run folder to merge LoRA adapters of",
}


def main() -> int:
    """Parses the command line and converts."""
    import jax.numpy as jnp

    from paella_jax.convert.export import FORMS
    from paella_jax.convert.recognise import FAMILIES, GROUPS
    from paella_jax.files.atomic import check_new
    from paella_jax.files.lock import beside, locked

    parser = Parser(
        "python -m paella_jax.convert",
        description=__doc__,
        overrides=True,
        epilog="fields of the new run's config: --config.section.field=value",
    )
    parser.formatter_class = argparse.RawTextHelpFormatter
    parser.add_argument("--family", choices=(*FAMILIES, *GROUPS))
    for name, meaning in PATHS.items():
        default = "" if name in ALONG else None
        parser.add_argument(f"--{name}", type=path, default=default, help=meaning)
    parser.add_argument("--key", help="entry of a torch file that holds the weights")
    parser.add_argument("--export", choices=FORMS)
    two = "two run folders to mix"
    parser.add_argument("--interpolate", type=path, nargs=2, metavar="RUN", help=two)
    parser.add_argument("--share", type=float, default=0.5, help="of the second run, 0 to 1")
    meaning = "new folder, or a FILE.safetensors to export"
    parser.add_argument("--out", type=path, required=True, help=meaning)
    parser.add_argument("--dtype", choices=DTYPES, default="keep", help=DTYPE_HELP)
    arguments, overrides = parser.parse_known_args()
    weights, checkpoint = bool(arguments.weights), bool(arguments.checkpoint)
    modes = [
        (arguments.family, weights), (arguments.export, checkpoint),
        (arguments.interpolate, True), (arguments.merge, True),
    ]  # fmt: skip
    asked = [is_whole for mode, is_whole in modes if mode]
    if asked != [True] or (overrides and not arguments.family):
        raise ValueError(
            "give --family with --weights, or --export with --checkpoint, or --interpolate, or "
            "--merge (--config. fields with --family only)"
        )
    if arguments.dtype != "keep" and (arguments.interpolate or arguments.merge):
        raise ValueError("--dtype is no option of --interpolate and --merge; leave it out")
    arguments.dtype = None if arguments.dtype == "keep" else jnp.dtype(arguments.dtype)
    check_new(Path(arguments.out))
    with locked(beside(arguments.out), "a conversion"):
        check_new(Path(arguments.out))  # another one may just have written it
        if arguments.family:
            return convert(arguments, overrides)
        return export(arguments) if arguments.export else combine(arguments)


def convert(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """A weights file -> a run folder."""
    from paella_jax.convert import plan as engine
    from paella_jax.convert.recognise import open_parts

    out, dtype = Path(arguments.out), arguments.dtype
    parts = open_parts(arguments.weights, arguments.family, arguments.key, arguments.compressor)
    family, allowed = parts.record.family, parts.record.needs
    given = {name: getattr(arguments, name) for name in CARRIED if getattr(arguments, name)}
    if given.keys() - allowed.keys():
        refused = ", ".join(f"--{name}" for name in given if name not in allowed)
        raise ValueError(f"{refused} are no options of {family}; leave them out")
    taken = [f"--config.{allowed[name][0]}={value}" for name, value in given.items()]
    plan = engine.plan_conversion(parts, taken + overrides, dtype)
    engine.check_frozen(plan, parts.weights)

    fields, missing, arrays = plan.fields(), engine.lacking(plan), plan.arrays()
    stored = _stored(arrays, dtype)
    read = sum(file.stat().st_size for file in parts.files)
    with _progress(arrays.values(), dtype, read) as report:
        files = engine.described(parts.files, report)
        card = engine.model_card(plan, files, source=parts.source, dtype=stored, out=out.name)
        engine.write_run_folder(plan, out, card, dtype, report)
    say(f"{arguments.weights}: {parts.source}, {len(parts.weights)} tensors")
    for origin in dict.fromkeys(origin for _, origin in fields.values()):
        shown = [f"{name}={value}" for name, (value, o) in fields.items() if o == origin]
        say(f"from {origin}: {', '.join(shown)}")
    say(f"{out}: {family}, {plan.parameter_count():,} parameters as {stored}")
    if missing:
        say(missing)
    return 0


def export(arguments: argparse.Namespace) -> int:
    """A run folder -> published names."""
    from paella_jax.convert.export import plan_export
    from paella_jax.convert.whole import PREFIX

    out, dtype, form = Path(arguments.out), arguments.dtype, arguments.export
    if form != "diffusers" and (out.suffix != ".safetensors" or out.is_dir()):
        raise ValueError(f"--export {form} writes one file; --out {out} must be FILE.safetensors")
    plan = plan_export(arguments.checkpoint, form)
    tensors, left = plan.tensors, plan.left
    with _progress(tensors.values(), dtype) as report:
        missing = plan.write(out, dtype, report)
    say(f"{out}: {len(tensors)} tensors as {_stored(tensors, dtype)}")
    along = {n.removeprefix(PREFIX).partition("/")[0] for n in tensors if n.startswith(PREFIX)}
    if along:
        told = f"not in the published network, under names that begin with {PREFIX}"
        say(f"{told}: {', '.join(sorted(along))}")
    if left:
        say(f"left out, the format has no place for them: {', '.join(left)}")
    if missing:
        say(f"not carried by this run, so not in the folder: {', '.join(missing)}")
    if "compressor" in left:
        say("write the compressor with --export compressor")
    return 0


def combine(arguments: argparse.Namespace) -> int:
    """Run folders -> another run folder."""
    from paella_jax.convert.released import value_of
    from paella_jax.runs.derive import save_merged
    from paella_jax.runs.folder import read_config
    from paella_jax.runs.interpolate import interpolate_runs

    out, share = Path(arguments.out), arguments.share
    if arguments.interpolate:
        first, second = arguments.interpolate
        count = interpolate_runs(first, second, share, out)
        say(f"{out}: {count} arrays, {1 - share:g} of {first} + {share:g} of {second}")
        return 0
    rank = value_of(read_config(arguments.merge), "lora.rank")
    save_merged(arguments.merge, out)
    merged = f"adapters of rank {rank} merged" if rank else "it has no adapters to merge"
    say(f"{out}: {arguments.merge} without optimiser state, {merged}")
    return 0


def _stored(arrays: Mapping[str, Any], dtype: Any) -> str:
    kinds = sorted({str(array.dtype) for array in arrays.values()})
    return str(dtype) if dtype is not None else " and ".join(kinds)


@contextmanager
def _progress(arrays: Iterable[Any], dtype: Any, read: int = 0) -> Iterator[Any]:
    """A bar over the bytes of arrays, shown only where the work takes more than a moment."""
    from tqdm.auto import tqdm

    total = read + sum(x.size * (x.dtype if dtype is None else dtype).itemsize for x in arrays)
    with tqdm(total=total, unit="B", unit_scale=True, delay=2.0, mininterval=1.0) as bar:
        yield bar.update


if __name__ == "__main__":
    run(main)
