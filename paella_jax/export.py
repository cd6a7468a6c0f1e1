"""Write a run as a folder to share: `python -m paella_jax.export --checkpoint RUN --out FOLDER`.

The folder holds weights alone (the average where the run keeps one, LoRA merged), config, frozen
networks and tokenizers, a model card with the scores and pictures that `evaluate` left in the run,
and the SHA-256 digest of every file. `paella_jax.load`, `sample`, `evaluate` and
`--config.init_from` read it like any run; it cannot be resumed.

With --push OWNER/NAME it goes to the Hugging Face hub too (log in first: `hf auth login`).
"""

from __future__ import annotations

import argparse

from paella_jax.cli import Parser, path, run
from paella_jax.outside import say


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", type=path, required=True, help="run folder")
    parser.add_argument("--out", type=path, required=True, help="new folder, or an older export")
    meaning = "run that enlarges its images, to go along"
    parser.add_argument("--super_resolution", type=path, default="", help=meaning)
    meaning = "tokenizer's run whose decoder takes the place of the run's own"
    parser.add_argument("--decoder", type=path, default="", help=meaning)
    kinds, meaning = ("keep", "float32", "bfloat16"), "of the trained weights; others keep theirs"
    parser.add_argument("--dtype", choices=kinds, default="keep", help=meaning)
    meaning = "folder with what evaluate wrote; default the run's"
    parser.add_argument("--report", type=path, default="", help=meaning)
    parser.add_argument("--licence", default="", help="for the card: mit, apache-2.0, ...")
    parser.add_argument("--push", default="", metavar="OWNER/NAME", help="repository on the hub")
    parser.add_argument("--private", action="store_true", help="with --push: make it private")
    return parser.parse_args()


def main() -> int:
    """Parses the command line, writes the folder and, if asked to, uploads it."""
    arguments = parse()
    if arguments.private and not arguments.push:
        raise ValueError("--private belongs to --push OWNER/NAME; leave it out")

    from paella_jax.files.lock import beside, locked
    from paella_jax.runs.folder import read_config
    from paella_jax.sharing.folder import SUPER_RESOLUTION, check_out, of_run, write_shared
    from paella_jax.sharing.hub import check_name, push_to_hub

    check_out(arguments.out, arguments.dtype, arguments.report)
    if arguments.push:
        check_name(arguments.push)
    second, decoder = arguments.super_resolution, arguments.decoder
    if second and read_config(second).get("cell", {}).get("network") != SUPER_RESOLUTION:
        raise ValueError(f"--super_resolution {second} enlarges nothing; leave it out")
    runs = {"": of_run(arguments.checkpoint, "" if second else decoder)}
    if second:
        runs[SUPER_RESOLUTION] = of_run(second, decoder)
    told = (arguments.dtype, arguments.report, arguments.licence)
    with locked(beside(arguments.out), "an export"):
        out = write_shared(arguments.out, runs, *told)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    say(f"{out}: {arguments.checkpoint} without optimiser state, {size / 1e6:.1f} MB")
    if arguments.push:
        say(push_to_hub(out, arguments.push, private=arguments.private))
    return 0


if __name__ == "__main__":
    run(main)
