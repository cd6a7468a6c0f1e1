"""Which network a weights file belongs to, told by its tensors' names."""

from __future__ import annotations

from collections.abc import Iterable

from paella_jax.convert.tensors import ConversionError, Weights

# Any one of the names is enough, so that a damaged file is still recognised.
MARKS: dict[str, tuple[str, ...]] = {
    "paella": ("byt5_mapper.weight", "in_mapper.0.weight", "out_mapper.1.weight"),
    "vqgan": ("vquantizer.codebook.weight", "vquantizer.embedding.weight", "in_block.1.weight"),
    "clip_prior": ("blocks.0.weight", "blocks.1.0.weight"),
}
# Others that come with the release: which option takes them.
OTHERS = {
    "a T5 text encoder": ("shared.weight", "encoder.final_layer_norm.weight"),
    "a CLIP model": ("text_model.final_layer_norm.weight", "visual.proj", "text_projection"),
}


def recognise(names: Iterable[str]) -> str | None:
    """The family whose tensors these are, or None."""
    return _first(MARKS, set(names))


def check_family(weights: Weights, family: str) -> None:
    """Raises ConversionError where the weights are not of `family`, saying what they are."""
    found = recognise(weights)
    if found == family:
        return
    file = ", ".join(str(path) for path in weights.files)
    if found is not None:
        raise ConversionError(
            f"{file}: this looks like a {found} file, you gave --family {family}; give --family "
            f"{found} or another file"
        )
    other = _first(OTHERS, set(weights))
    hint = f"it looks like {other}; give its folder as --text or --clip" if other else (
        f"its tensors are {', '.join(sorted(weights)[:4])}, ..."
    )  # fmt: skip
    raise ConversionError(f"{file} is not of any family known here ({', '.join(MARKS)}): {hint}")


def _first(marks: dict[str, tuple[str, ...]], names: set[str]) -> str | None:
    return next((label for label, known in marks.items() if names & set(known)), None)
