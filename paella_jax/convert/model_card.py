"""The README.md of a folder of converted weights: what they are and where they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from paella_jax.convert.released import Found, Released

CHUNK = 8 * 2**20


def described(
    files: Sequence[Path], report: Callable[[int], object] = lambda size: None
) -> list[str]:
    """A line for every file with its name, bytes and SHA-256.

    `report` is called with the bytes of each piece read.
    """
    lines, names = [], [file.name for file in files]
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while piece := stream.read(CHUNK):
                digest.update(piece)
                report(len(piece))
        is_shared = names.count(file.name) > 1
        name = f"{file.parent.name}/{file.name}" if is_shared else file.name
        lines.append(f"- `{name}`, {file.stat().st_size:,} bytes, SHA-256 `{digest.hexdigest()}`")
    return lines


def model_card(
    record: Released,
    fields: Found,
    files: Sequence[str],
    *,
    source: str,
    parameters: int,
    dtype: str,
    lacking: str,
    out: str,
) -> str:
    """The card's text.

    Args:
      record: of the weights' family.
      fields: config field -> its value and where that is from.
      files: of the weights, as `described`.
      source: what kind of file it was.
      parameters: number of trained scalars.
      dtype: what they are stored in.
      lacking: what must be added before it can sample; empty for nothing.
      out: the folder's name, for the example.
    """
    export = record.forms[0]
    target = "FOLDER" if export == "diffusers" else "FILE.safetensors"
    rows = [f"| `{name}` | `{value}` | {origin} |" for name, (value, origin) in fields.items()]
    codes = fields.get("model.codebook_size", ("",))[0]
    return f"""# {record.title}, converted weights

Converted by `python -m paella_jax.convert --family {record.family}` from a {source}:

{chr(10).join(files)}

{parameters:,} parameters, stored as {dtype} in `weights.safetensors`.
{f"{chr(10)}{lacking}{chr(10)}" if lacking else ""}
## Architecture

| field of config.json | value | taken from |
|---|---|---|
{chr(10).join(rows)}

"default" is the released model's value, which the weights cannot confirm (of the heads: their
width).

## Use

    {record.usage.format(out=out, codes=codes)}

Fine-tune with `--config.init_from={out}`; write the published names back with
`python -m paella_jax.convert --export {export} --checkpoint {out} --out {target}`.

## Licence

To be filled in: the terms under which the weights above were published. Converting changes
names and layout only, so those terms go on holding.
"""
