"""diffusers' aMUSEd and Würstchen for `benchmark --peer`: its own networks and schedulers, eager.

    python -m paella_jax.benchmark --config muse:amused_256 --config stage_c:v2 --work sample \
        --config.precision=float32 --batch 1 --peer launch/peer_diffusers.py

Every network has the preset's sizes and random weights; the loops do what the two pipelines' do
between prompt and image, without their checks. It needs torch and diffusers, which the package
does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AmusedScheduler, DDPMWuerstchenScheduler, UVit2DModel, VQModel
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_diffnext import (
    WuerstchenDiffNeXt,
)
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior
from diffusers.utils import logging
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
logging.set_verbosity_error()  # of casting, which is meant
POSITIONS = 77  # of CLIP's text
# Width, layers and heads of the published text towers (docs/models/muse.md 2, wuerstchen.md 4).
TOWERS = {"tokens": (768, 12, 12), "stage_b": (1024, 24, 16), "stage_c": (1280, 32, 20)}

Call = Callable[[], Any]


def text_encoder(config: Any, images: int) -> Call:
    """The tower of a preset; aMUSEd's gives a pooled text beside the states."""
    width, layers, heads = TOWERS[config.method]
    fields = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    pooled = config.method == "tokens"
    tower = placed(
        config, lambda: (CLIPTextModelWithProjection if pooled else CLIPTextModel)(fields)
    )
    ids = torch.zeros(images, POSITIONS, dtype=torch.int64, device=DEVICE)
    return lambda: tower(ids, output_hidden_states=pooled)


def uvit(config: Any) -> UVit2DModel:
    """aMUSEd's network with a preset's sizes."""
    sizes = config.uvit
    return UVit2DModel(
        hidden_size=sizes.width,
        cond_embed_dim=TOWERS["tokens"][0],
        encoder_hidden_size=TOWERS["tokens"][0],
        micro_cond_encode_dim=sizes.micro_width,
        micro_cond_embed_dim=sizes.micro_width * sizes.micro_conds,
        vocab_size=sizes.vocabulary_size,
        codebook_size=config.model.codebook_size,
        in_channels=sizes.token_width,
        block_out_channels=sizes.conv_width,
        num_res_blocks=sizes.conv_blocks,
        downsample=sizes.downsample,
        upsample=sizes.upsample,
        block_num_heads=sizes.conv_heads,
        num_hidden_layers=sizes.depth,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.feed_forward_width,
        sample_size=config.data.image_size // 16,
    )


def amused_steps(config: Any, images: int, steps: int) -> Call:
    """AmusedPipeline's loop: the most confident tokens of a doubled batch stay."""
    network = placed(config, lambda: uvit(config))
    mask, side = config.uvit.vocabulary_size - 1, config.data.image_size // 16
    scheduler = AmusedScheduler(mask_token_id=mask)
    width = TOWERS["tokens"][0]
    text = noise(config, 2 * images, POSITIONS, width)
    pooled = noise(config, 2 * images, width)
    micro = torch.tensor([[256.0, 256, 0, 0, 6]], dtype=text.dtype, device=DEVICE)
    micro = micro.expand(2 * images, -1)
    guidance = config.sampler.guidance_scale[0]

    def draw() -> Tensor:
        scheduler.set_timesteps(steps, tuple(config.sampler.choice_temperature), DEVICE)
        tokens = torch.full((images, side, side), mask, device=DEVICE)
        for timestep in scheduler.timesteps:
            logits = network(
                torch.cat([tokens] * 2),
                micro_conds=micro,
                pooled_text_emb=pooled,
                encoder_hidden_states=text,
            )
            empty, full = logits.chunk(2)
            guided = empty + guidance * (full - empty)
            tokens = scheduler.step(guided, timestep, tokens).prev_sample
        return tokens

    return draw


def amused_decoder(config: Any, images: int) -> Call:
    """Tokens to images."""
    levels = (128, 256, 256, 512, 768)
    vqvae = placed(
        config,
        lambda: VQModel(
            down_block_types=("DownEncoderBlock2D",) * len(levels),
            up_block_types=("UpDecoderBlock2D",) * len(levels),
            block_out_channels=levels,
            layers_per_block=2,
            latent_channels=64,
            num_vq_embeddings=config.model.codebook_size,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
        ),
    )
    side = config.data.image_size // 16
    tokens = torch.zeros(images, side, side, dtype=torch.int64, device=DEVICE)
    shape = (images, side, side, 64)
    return lambda: vqvae.decode(tokens, force_not_quantize=True, shape=shape).sample


def prior_steps(config: Any, images: int, steps: int) -> Call:
    """WuerstchenPriorPipeline's loop: Stage C, a doubled batch."""
    sizes, width = config.model, TOWERS["stage_c"][0]
    network = placed(
        config,
        lambda: WuerstchenPrior(
            c_in=sizes.channels,
            c=sizes.width,
            c_cond=width,
            c_r=sizes.time_width,
            depth=sizes.depth,
            nhead=sizes.num_heads,
        ),
    )
    side = -(-config.data.image_size * 24 // 1024)  # 42.67 pixels a latent, rounded up
    text = noise(config, 2 * images, POSITIONS, width)
    predict = lambda x, ratio: network(x, r=ratio, c=text)
    shape = (images, sizes.channels, side, side)
    return diffusion(config, predict, shape, steps, config.sampler.guidance_scale)


def decoder_steps(config: Any, images: int, steps: int) -> Call:
    """WuerstchenDecoderPipeline's loop: Stage B, unguided, as both pipelines run it."""
    sizes, width = config.model, TOWERS["stage_b"][0]
    network = placed(
        config,
        lambda: WuerstchenDiffNeXt(
            c_cond=sizes.cond_width,
            c_r=sizes.time_width,
            c_hidden=list(sizes.widths),
            nhead=[heads or -1 for heads in sizes.num_heads],
            blocks=list(sizes.depths),
            level_config=list(sizes.patterns),
            inject_effnet=list(sizes.inject),
            effnet_embd=sizes.guide_channels,
            clip_embd=width,
        ),
    )
    pixels = config.data.image_size
    text = noise(config, images, POSITIONS, width)
    guide = noise(config, images, sizes.guide_channels, *(-(-pixels * 24 // 1024),) * 2)
    predict = lambda x, ratio: network(x, r=ratio, effnet=guide, clip=text)
    shape = (images, sizes.latent_channels, pixels // 4, pixels // 4)
    return diffusion(config, predict, shape, steps, None)


def diffusion(
    config: Any, predict: Callable, shape: tuple[int, ...], steps: int, guidance: float | None
) -> Call:
    """The two loops' common part; latents [batch, channels, height, width]."""
    scheduler = DDPMWuerstchenScheduler()
    repeats = 1 if guidance is None else 2

    def draw() -> Tensor:
        scheduler.set_timesteps(steps, device=DEVICE)
        latents = noise(config, *shape)
        for t in scheduler.timesteps[:-1]:
            ratio = t.expand(shape[0]).to(latents.dtype)
            predicted = predict(torch.cat([latents] * repeats), torch.cat([ratio] * repeats))
            if guidance is not None:
                full, empty = predicted.chunk(2)
                predicted = torch.lerp(empty, full, guidance)
            latents = scheduler.step(predicted, ratio, latents).prev_sample
        return latents

    return draw


def stage_a(config: Any, images: int) -> Call:
    """Stage B's latents to images."""
    vqgan = placed(config, PaellaVQModel)
    latents = noise(config, images, 4, *(config.data.image_size // 4,) * 2)
    return lambda: vqgan.decode(latents).sample


def dtype_of(config: Any) -> torch.dtype:
    """The preset's compute type."""
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def noise(config: Any, *shape: int) -> Tensor:
    """Normal noise of the preset's compute type."""
    return torch.randn(*shape, dtype=dtype_of(config), device=DEVICE)


def placed(config: Any, make_network: Callable[[], torch.nn.Module]) -> Any:
    """A network on the device, in the preset's type, for sampling."""
    with torch.device(DEVICE):
        return make_network().to(dtype_of(config)).eval()


def make(config: Any, work: str, images: int) -> Call | None:
    """One row's work of an aMUSEd preset, Stage C or Stage B; None for any other."""
    stages = {"Stage C": prior_steps, "Stage B": decoder_steps}
    steps = re.fullmatch(r"(?:(Stage [BC]): )?(\d+) (?:guided )?steps", work)
    call = None
    if config.method == "tokens" and config.cell.network != "uvit":
        return None
    if steps is not None:
        loop = stages[steps[1]] if steps[1] else amused_steps
        call = loop(config, images, int(steps[2]))
    elif "text encoder" in work:
        call = text_encoder(config, images)
    elif work == "decode tokens":
        call = amused_decoder(config, images)
    elif work == "Stage A: decode":
        call = stage_a(config, images)
    return None if call is None else waiting(call)


def waiting(call: Call) -> Call:
    """The call without gradients, over when the device is done."""

    def whole() -> None:
        with torch.no_grad():
            call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return whole
