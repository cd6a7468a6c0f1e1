"""Giving a token predictor's run another decoder for its tokens (reference/muse.md 1.1, part 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.families.vqgan import carried_config, differing_codes, load_vqgan_run
from paella_jax.models.vqgan import VQGAN
from paella_jax.models.vqmodel import VQModel

Tree = Any


def swap_decoder(
    workdir: str | Path, variables: Tree, decoder_run: str | Path
) -> tuple[VQGAN | VQModel, Tree]:
    """The tokenizer of `decoder_run` in the place of the one that a predictor's run carries.

    Args:
      workdir: the predictor's run folder.
      variables: its tokenizer's, as loaded.
      decoder_run: a tokenizer trained from that one with `train_decoder_only`.

    Returns:
      Network and variables. Encoder and codebook are the same bits; only the decoder is another.

    Raises:
      ConfigError: the two tokenizers give other tokens; all that differs is listed.
      CheckpointError: `decoder_run` is no tokenizer's run folder, or unreadable.
    """
    config, model, swapped = load_vqgan_run(decoder_run)
    check_same_codes((carried_config(Path(workdir)), variables), (config, swapped), decoder_run)
    return model, swapped


def check_same_codes(
    ours: tuple[ConfigDict, Tree], theirs: tuple[ConfigDict, Tree], name: str | Path
) -> None:
    """Raises ConfigError where two tokenizers differ in more than their decoders."""
    differing = differing_codes(ours, theirs)
    if not differing:
        return
    shown = ", ".join(differing[:5]) + (", ..." if len(differing) > 5 else "")
    raise ConfigError(
        f"{name} has another encoder or codebook than the tokenizer this predictor was trained "
        f"with ({shown}); give a run of train_decoder_only that started from that tokenizer"
    )
