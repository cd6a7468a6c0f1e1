"""The networks of a token predictor's run, of any cell, from a config and what the run carries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict

from paella_jax.config import ConfigError
from paella_jax.data.sizes import check_sizes
from paella_jax.encoders.text import ClipTokenizer, Tokenizer, joint_text_encoder, make_tokenizer
from paella_jax.families.cells import make_predictor
from paella_jax.families.networks import NETWORKS, Around, frozen_form, names_where
from paella_jax.families.token_networks import TokenNetworks
from paella_jax.families.vqgan import load_carried_tokenizer
from paella_jax.runs.frozen import FROZEN, load_carried, place_of
from paella_jax.typing import Tree

if TYPE_CHECKING:
    from paella_jax.encoders.clip_text import ClipText
    from paella_jax.encoders.t5 import T5Encoder
    from paella_jax.families.image_encoder import ImageEncoder

CLIP = "clip"  # the carried CLIP model


def load_networks(config: ConfigDict, workdir: Path) -> tuple[TokenNetworks, Tree]:
    """Networks and frozen parameters of a prepared run folder.

    Raises:
      ConfigError: tokenizer and predictor do not belong together, or sizes do not divide.
    """
    vqgan, variables = load_carried_tokenizer(workdir)
    frozen = {"vqgan": variables}
    if vqgan.codebook_size != config.model.codebook_size:
        raise ConfigError(
            f"model.codebook_size {config.model.codebook_size} differs from the tokenizer's "
            f"{vqgan.codebook_size}; set --config.model.codebook_size={vqgan.codebook_size}"
        )
    text = _text_networks(config, workdir, frozen)
    low = None
    if "low_tokens" in NETWORKS[config.cell.network].takes:
        low, frozen["low_vqgan"] = load_carried_tokenizer(workdir, "low_tokenizer")
    image_encoder = _image_encoder(config, workdir, frozen)
    return assemble(config, vqgan, text, image_encoder, low), frozen


class TextNetworks(NamedTuple):
    """The text side of `TokenNetworks`, in its compute dtype."""

    encoder: T5Encoder | None
    tokenizer: Tokenizer | None
    is_joint: bool
    clip: ClipText | None
    clip_tokenizer: ClipTokenizer | None


def assemble(
    config: ConfigDict,
    vqgan: Any,
    text: TextNetworks,
    image_encoder: ImageEncoder | None,
    low: Any = None,
) -> TokenNetworks:
    """A cell's predictor between its tokenizer and encoders.

    Raises:
      ConfigError: sizes do not divide, or the cell makes no sense.
    """
    states = text.clip if text.encoder is None else text.encoder
    assert states is not None
    pooled = states.width if text.clip is None else text.clip.projection
    check_sizes(config.data, vqgan.downsampling, f"tokenizer {vqgan.downsampling}")
    grid = config.data.image_size // vqgan.downsampling
    predictor = make_predictor(config, Around(grid, states.width, pooled or states.width, low))
    network = NETWORKS[config.cell.network]
    divisor = vqgan.downsampling * predictor.grid_divisor
    why = f"tokenizer {vqgan.downsampling} x predictor {predictor.grid_divisor}"
    check_sizes(config.data, divisor, why)
    if config.data.buckets and network.fixed_grid:
        able = names_where(lambda other: not other.fixed_grid)
        raise ConfigError(
            f"data.buckets gives maps of several shapes, cell.network={config.cell.network} has "
            f"learned positions for one; leave data.buckets empty or choose {able}"
        )
    return TokenNetworks(
        predictor,
        text.encoder,
        text.tokenizer,
        vqgan,
        network.takes,
        text_is_joint=text.is_joint,
        clip_text=text.clip,
        clip_tokenizer=text.clip_tokenizer,
        image_encoder=image_encoder,
        empty_text_is_absent=config.text.empty_is_absent,
        low_vqgan=low,
        low_grid=config[network.block].low_grid if low is not None else 0,
        # Runs may be older than the field. Padding that is seen has to be encoded.
        text_buckets=config.text.get("buckets", 1) if config.objective.mask_padding else 1,
    )


def _text_networks(config: ConfigDict, workdir: Path, frozen: Tree) -> TextNetworks:
    """Encoders and tokenizers of a prepared run folder; frozen weights go into `frozen`."""
    if config.text.kind not in ("t5", "clip"):
        raise ConfigError(f"text.kind must be t5 or clip, got {config.text.kind!r}")
    clip = clip_tokenizer = None
    folder = place_of(CLIP, workdir)
    if folder.is_dir():
        clip, frozen["clip_text"] = load_carried(CLIP, workdir)
        clip = clip.clone(**frozen_form(config))
        clip_tokenizer = ClipTokenizer(folder)
    if config.text.kind == "clip":
        if clip is None:
            raise ConfigError(
                "text.kind=clip needs --config.clip.folder=FOLDER, a CLIP text model with "
                "projection in Hugging Face layout"
            )
        return TextNetworks(None, None, False, clip, clip_tokenizer)
    is_joint = not place_of("text_encoder", workdir).is_file()
    if is_joint:
        encoder = joint_text_encoder(config.text, config.precision)
    else:
        encoder, frozen["text_encoder"] = load_carried("text_encoder", workdir)
        encoder = encoder.clone(**frozen_form(config))
    tokenizer = make_tokenizer(encoder.vocab_size, workdir / FROZEN, config.text.max_length)
    return TextNetworks(encoder, tokenizer, is_joint, clip, clip_tokenizer)


def _image_encoder(config: ConfigDict, workdir: Path, frozen: Tree) -> ImageEncoder | None:
    """The encoder `config.image_encoder.kind` asks for; a frozen one's weights go into `frozen`."""
    kind = config.image_encoder.kind
    if kind == "none":
        return None
    # Imported here: most runs have no image encoder, and need nothing of CLIP.
    from paella_jax.encoders.published import load_clip_vision_folder
    from paella_jax.families.image_encoder import JOINT, ImageEncoder, joint_image_encoder

    if kind in JOINT:
        size = config.data.image_size
        return joint_image_encoder(config.image_encoder, size, config.precision)
    if kind != "clip":
        known = ", ".join(("none", "clip", *JOINT))
        raise ConfigError(f"image_encoder.kind must be one of {known}, got {kind!r}")
    folder = place_of(CLIP, workdir)
    if not folder.is_dir():
        raise ConfigError(
            "image_encoder.kind=clip needs --config.clip.folder=FOLDER with both CLIP towers in "
            "Hugging Face layout; or set --config.image_encoder.kind=none"
        )
    module, frozen["image_encoder"] = load_clip_vision_folder(folder)
    return ImageEncoder(module.clone(**frozen_form(config)), is_joint=False)
