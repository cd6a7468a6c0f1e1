"""Which network a weights file belongs to, told by its tensors' names."""

from __future__ import annotations

from collections.abc import Iterable

from paella_jax.files.tensors import ConversionError, Weights

# Any one of the names is enough, so that a damaged file is still recognised. The first release's
# Stage B is a Paella with a guide; being looked for first, it is refused as a Stage B.
MARKS: dict[str, tuple[str, ...]] = {
    "stage_b": ("effnet_mappers.0.weight", "effnet_mappers.1.weight", "effnet_mappers.2.weight"),
    "stage_c": ("cond_mapper.0.weight", "cond_mapper.2.weight"),
    "paella": ("byt5_mapper.weight", "in_mapper.0.weight", "out_mapper.1.weight"),
    "amused": ("embed.embeddings.weight", "encoder_proj.weight", "mlm_layer.conv2.weight"),
    "vqgan": (
        "vquantizer.codebook.weight", "vquantizer.embedding.weight", "in_block.1.weight",
        "quantize.embedding.weight", "encoder.conv_in.weight",
    ),
    "clip_prior": ("blocks.0.weight", "blocks.1.0.weight"),
}  # fmt: skip
WUERSTCHEN = "wuerstchen"  # stands for any of its stages
STAGES = ("stage_b", "stage_c", "vqgan")
# Others that come with the releases: which option takes them.
OTHERS = {
    "a T5 text encoder; give its folder as --text": (
        "shared.weight", "encoder.final_layer_norm.weight",
    ),
    "a CLIP model; give its folder as --clip, or for Würstchen as --text": (
        "text_model.final_layer_norm.weight", "visual.proj", "text_projection",
        "text_projection.weight",
    ),
    "Würstchen's compressor; give it as --compressor": ("backbone.0.0.weight", "mapper.0.weight"),
}  # fmt: skip


def article(family: str) -> str:
    """The family's name in a sentence."""
    return f"{'an' if family[0] in 'aeiou' else 'a'} {family}"


def recognise(names: Iterable[str]) -> str | None:
    """The family whose tensors these are, or None."""
    return _first(MARKS, set(names))


def check_family(weights: Weights, family: str) -> str:
    """The family of the weights: `family`, or which of its stages for "wuerstchen".

    Raises:
      ConversionError: they are of another, or of none known; the message says what they are.
    """
    found = recognise(weights)
    if found is not None and found in (STAGES if family == WUERSTCHEN else (family,)):
        return found
    file = ", ".join(str(path) for path in weights.files)
    if found is not None:
        raise ConversionError(
            f"{file}: this looks like {article(found)} file, you gave --family {family}; give "
            f"--family {found} or another file"
        )
    other = _first(OTHERS, set(weights))
    hint = f"it looks like {other}" if other else (
        f"its tensors are {', '.join(sorted(weights)[:4])}, ..."
    )  # fmt: skip
    raise ConversionError(f"{file} is not of any family known here ({', '.join(MARKS)}): {hint}")


def _first(marks: dict[str, tuple[str, ...]], names: set[str]) -> str | None:
    return next((label for label, known in marks.items() if names & set(known)), None)
