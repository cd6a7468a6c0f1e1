"""Which released family a weights file or a run is of, and opening what a conversion reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from paella_jax.convert.amused import AMUSED
from paella_jax.convert.paella import CLIP_PRIOR, PAELLA
from paella_jax.convert.released import Released, article
from paella_jax.convert.vqgan import VQGAN, VQMODEL
from paella_jax.convert.wuerstchen import STAGE_B, STAGE_C
from paella_jax.files.tensors import ConversionError, Weights
from paella_jax.files.weights_file import errors_name, open_weights
from paella_jax.files.wrappers import unwrapped
from paella_jax.outside import listed

# The first whose mark a file has is its family. The first release's Stage B is a Paella with a
# guide; being looked for first, it is refused as a Stage B.
RECORDS = (STAGE_B, STAGE_C, PAELLA, AMUSED, VQGAN, VQMODEL, CLIP_PRIOR)
FAMILIES = tuple(dict.fromkeys(record.family for record in RECORDS))
GROUPS = tuple(dict.fromkeys(group for record in RECORDS for group in record.groups))
COMPRESSORS = ("backbone.0.0.weight", "mapper.0.weight")  # marks of Stage B's second network
OTHERS = {  # that come with the releases, and which option takes them
    "a T5 text encoder; give its folder as --text":
        ("shared.weight", "encoder.final_layer_norm.weight"),
    "a CLIP model; give its folder as --clip, or for Würstchen as --text": (
        "text_model.final_layer_norm.weight", "visual.proj", "text_projection",
        "text_projection.weight",
    ),
    "Würstchen's compressor; give it as --compressor": COMPRESSORS,
}  # fmt: skip


def recognise(names: Iterable[str]) -> Released | None:
    """The family whose tensors these are, or None."""
    names = set(names)
    return next((record for record in RECORDS if names & {*record.marks}), None)


def marks_of(family: str) -> list[str]:
    """Names of tensors that are enough to tell a family by, or those that it stands for."""
    records = [record for record in RECORDS if family in (record.family, *record.groups)]
    return [mark for record in records for mark in record.marks]


def without_wrappers(weights: Weights, marks: Iterable[str]) -> Weights:
    """The weights by the names that a network's own tensors have; their source says what was off.

    Raises:
      ConversionError: a file that holds several such networks.
    """
    with errors_name(weights.files[0]):
        tensors, told = unwrapped(weights, list(marks))
    source = weights.source + told
    return Weights(tensors, source, weights.files, weights.entries, weights.notes)


def record_of(config: Mapping[str, Any]) -> Released | None:
    """The family of a run, or None."""
    return next((record for record in RECORDS if record.is_of(config)), None)


def run_family(config: Mapping[str, Any]) -> str:
    """The family of a run, or the method or network that has no published one."""
    record, method = record_of(config), config["method"]
    other = config["cell"]["network"] if record is None and method == "tokens" else method
    return other if record is None else record.family


def check_family(weights: Weights, family: str) -> Released:
    """The record of the weights, which are of `family` or of one that it stands for.

    Raises:
      ConversionError: they are of another, or of none known; the message says what they are.
    """
    found, file = recognise(weights), ", ".join(str(path) for path in weights.files)
    if found is not None and family in (found.family, *found.groups):
        return found
    if found is not None:
        raise ConversionError(
            f"{file}: this looks like {article(found.family)} file, you gave --family {family}; "
            f"give --family {found.family} or another file"
        )
    others = [what for what, marks in OTHERS.items() if weights.keys() & {*marks}]
    some = f"its tensors are {listed(sorted(weights), 4)}"
    hint = f"it looks like {others[0]}" if others else some
    raise ConversionError(f"{file} is not of any family known here ({', '.join(FAMILIES)}): {hint}")


class Parts(NamedTuple):
    """Opened files; nothing of them is read yet."""

    record: Released  # of the weights' family
    weights: Weights  # the network's
    beside: Weights | None = None  # of a second network, where the family has one
    folder: Any = None  # the opened folder that the weights are part of

    @property
    def files(self) -> list[Path]:
        """Every file once."""
        others = [part.files for part in (self.beside, self.folder) if part is not None]
        return list(dict.fromkeys(sum(others, self.weights.files)))

    @property
    def source(self) -> str:
        """One line on what kinds of files they are."""
        if self.folder is not None:
            return str(self.folder.source)
        network = self.record.beside.name if self.record.beside is not None else ""
        second = f", and the {network} from a {self.beside.source}" if self.beside else ""
        return self.weights.source + second


def parts_of(weights: Weights, family: str) -> Parts:
    """Opened weights of a family, without wrappers. Raises ConversionError as `check_family`."""
    own = without_wrappers(weights, marks_of(family))
    return Parts(check_family(own, family), own)


def open_parts(
    path: str | Path, family: str, key: str | None = None, compressor: str | Path | None = None
) -> Parts:
    """Opens a weights file and tells its family.

    Args:
      path: see `open_weights`; also the folder of a diffusers pipeline.
      family: of the command line, so that one name may stand for several families.
      key: entry of a torch file. Default: the averaged weights, where the family's release has
        both.
      compressor: file of a family's second network. Default: the entry beside its own weights.

    Raises:
      ConversionError: nothing there, another family, a second network for another family, or a
        pipeline folder that lacks parts.
    """
    folders = (known.open_folder(path) for known in RECORDS)
    folder = next((found for found in folders if found is not None), None)
    if folder is not None and key is not None:
        raise ConversionError(f"{path} is a pipeline folder, which has no entries; leave out --key")
    opened = open_weights(path, key) if folder is None else folder.weights
    weights = without_wrappers(opened, marks_of(family))
    record = check_family(weights, family)
    both = record.averaged
    if both is not None and key is None and {*both} <= {*weights.entries}:
        weights = without_wrappers(open_weights(path, both[0]), record.marks)
        weights.source += ": the averaged weights are taken"
    record.refuse(weights)
    beside = record.beside
    if beside is None:
        if compressor:
            raise ConversionError(f"--compressor is no option of {record.family}; leave it out")
        return Parts(record, weights, folder=folder)
    second = open_weights(compressor) if compressor else weights
    if beside.entry in second.entries:
        second = open_weights(second.files[0], beside.entry)
    elif not compressor:
        return Parts(record, weights)
    return Parts(record, weights, without_wrappers(second, COMPRESSORS))
