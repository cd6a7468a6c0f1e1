"""Opening what one conversion reads: the weights, and what comes beside them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from paella_jax.convert.amused_folder import AmusedFolder, is_amused_folder, open_amused_folder
from paella_jax.convert.infer import check_family
from paella_jax.convert.wuerstchen import refuse_token_model
from paella_jax.files.tensors import ConversionError, Weights
from paella_jax.files.weights_file import open_weights

# Entries of the released torch files (docs/models/wuerstchen.md 1).
AVERAGED, PLAIN, COMPRESSOR = "ema_state_dict", "state_dict", "effnet_state_dict"


class Parts(NamedTuple):
    """Opened files; nothing of them is read yet.

    Attributes:
      family: of `weights`, a key of infer.MARKS.
      weights: the network's.
      compressor: for a Stage B.
      amused: the whole folder that an amused's weights are part of.
    """

    family: str
    weights: Weights
    compressor: Weights | None = None
    amused: AmusedFolder | None = None

    @property
    def files(self) -> list[Path]:
        """Every file once."""
        others = [part.files for part in (self.compressor, self.amused) if part is not None]
        return list(dict.fromkeys(sum(others, self.weights.files)))

    @property
    def source(self) -> str:
        """One line on what kinds of files they are."""
        if self.amused is not None:
            return f"diffusers pipeline folder (the transformer a {self.weights.source})"
        if self.compressor is None:
            return self.weights.source
        return f"{self.weights.source}, and the compressor from a {self.compressor.source}"


def open_parts(
    path: str | Path, family: str, key: str | None = None, compressor: str | Path | None = None
) -> Parts:
    """Opens a weights file and tells its family.

    Args:
      path: see `open_weights`; for an amused also the folder of a diffusers pipeline.
      family: of the command line, so "wuerstchen" may stand for its stages.
      key: entry of a torch file. Default for a Stage C: the averaged weights, where both are.
      compressor: file of a Stage B's compressor. Default: the entry beside Stage B's own weights.

    Raises:
      ConversionError: nothing there, another family, no compressor for a Stage B, a compressor
        for another family, or a pipeline folder that lacks parts.
    """
    folder = open_amused_folder(path) if is_amused_folder(path) else None
    if folder is not None and key is not None:
        raise ConversionError(f"{path} is a pipeline folder, which has no entries; leave out --key")
    weights = open_weights(path, key) if folder is None else folder.transformer
    found = check_family(weights, family)
    if found == "stage_c" and key is None and {AVERAGED, PLAIN} <= {*weights.entries}:
        weights = open_weights(path, AVERAGED)
        weights.source += ": the averaged weights are taken"
    if found == "stage_b":
        refuse_token_model(weights)
        return Parts(found, weights, _open_compressor(weights, compressor))
    if compressor:
        raise ConversionError(f"--compressor is no option of {found}; leave it out")
    return Parts(found, weights, amused=folder)


def _open_compressor(stage_b: Weights, given: str | Path | None) -> Weights:
    if given:
        weights = open_weights(given)
        return open_weights(given, COMPRESSOR) if COMPRESSOR in weights.entries else weights
    if COMPRESSOR in stage_b.entries:
        return open_weights(stage_b.files[0], COMPRESSOR)
    raise ConversionError(
        f"{stage_b.files[0]} holds a Stage B without its compressor (no entry {COMPRESSOR!r}, and "
        "diffusers folders have none); give --compressor FILE, which may be the original "
        "model_v2_stage_b.pt"
    )
