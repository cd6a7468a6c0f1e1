"""The f4 VQGAN in plain torch, for `benchmark --peer`: eager, or PAELLA_PEER=compile.

    python -m paella_jax.benchmark --config vqgan:f4 --work tokenizer --batch 1,4 \
        --peer launch/peer_vqgan_torch.py

Written from docs/models/paella.md 5 as torch users write it: channels first, the nearest code by
`torch.cdist`. Weights are random: how long a pass takes depends on shapes and types alone. That it
computes the same is tested with our weights (`load_ours`, tests/test_peers.py, where torch is
installed): latents and images agree to 1e-5, tokens are equal. It needs torch, which the package
does not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = 0.3764  # from Stage B's latents to the tokenizer's


class Block(nn.Module):
    """Depthwise convolution and MLP, each scaled by learned scalars."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.depthwise = nn.Conv2d(
            channels, channels, 3, padding=1, groups=channels, padding_mode="replicate"
        )
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.gammas = nn.Parameter(0.1 * torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        g = self.gammas
        hidden = self.norm(x.permute(0, 2, 3, 1)) * (1 + g[0]) + g[1]
        x = x + g[2] * self.depthwise(hidden.permute(0, 3, 1, 2))
        hidden = self.norm(x.permute(0, 2, 3, 1)) * (1 + g[3]) + g[4]
        return x + g[5] * self.mlp(hidden).permute(0, 3, 1, 2)


class VQGAN(nn.Module):
    """Images [batch, 3, H, W] in [0, 1] to latents or tokens [batch, H/4, W/4], and back."""

    def __init__(
        self, levels: int, width: int, bottleneck_blocks: int, latent_channels: int, codes: int
    ) -> None:
        super().__init__()
        widths = [width // 2**i for i in reversed(range(levels))]
        encoder: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 1)]
        for level, channels in enumerate(widths):
            if level:
                encoder.append(nn.Conv2d(widths[level - 1], channels, 4, stride=2, padding=1))
            encoder.append(Block(channels))
        encoder.append(nn.Conv2d(width, latent_channels, 1, bias=False))
        self.encoder = nn.Sequential(*encoder, nn.BatchNorm2d(latent_channels))
        self.codebook = nn.Parameter(torch.randn(codes, latent_channels))
        decoder: list[nn.Module] = [nn.Conv2d(latent_channels, width, 1)]
        decoder += [Block(width) for _ in range(bottleneck_blocks)]
        for wide, narrow in zip(widths[:0:-1], widths[-2::-1], strict=True):
            decoder += [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), Block(narrow)]
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(widths[0], 12, 1), nn.PixelShuffle(2))

    def encode(self, images: Tensor) -> Tensor:
        """Raw latents [batch, channels, h, w]."""
        return self.encoder(images)

    def encode_tokens(self, images: Tensor) -> Tensor:
        """The nearest codes, searched in float32."""
        latents = self.encode(images).permute(0, 2, 3, 1).float()
        distances = torch.cdist(latents.flatten(0, 2)[None], self.codebook.float()[None])[0]
        return distances.argmin(1).view(latents.shape[:3])

    def decode(self, latents: Tensor) -> Tensor:
        """Images, clamped to [0, 1]."""
        return self.decoder(latents).clamp(0, 1)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """The same of tokens."""
        return self.decode(self.codebook[tokens].permute(0, 3, 1, 2))

    def layers(self) -> dict[str, nn.Module]:
        """Layers by the names that ours have in a run's parameters."""
        parts = {"encoder": list(self.encoder), "decoder": list(self.decoder)}
        convs = {k: [x for x in v if type(x) is not Block and has_own(x)] for k, v in parts.items()}
        blocks = {k: [x for x in v if type(x) is Block] for k, v in parts.items()}
        first, *downs, out, norm = convs["encoder"]
        named = {"encoder_in": first, "encoder_out": out, "latent_norm": norm}
        named |= {f"encoder_downs_{i}": x for i, x in enumerate(downs)}
        named |= {f"encoder_blocks_{i}": x for i, x in enumerate(blocks["encoder"])}
        first, *ups, out = convs["decoder"]
        named |= {"decoder_in": first, "decoder_out": out}
        named |= {f"decoder_ups_{i}": x for i, x in enumerate(ups)}
        deep = len(blocks["decoder"]) - len(ups)
        named |= {f"decoder_blocks_{i}": x for i, x in enumerate(blocks["decoder"][:deep])}
        named |= {f"decoder_level_blocks_{i}": x for i, x in enumerate(blocks["decoder"][deep:])}
        return named


def has_own(layer: nn.Module) -> bool:
    """Whether a layer has weights."""
    return any(True for _ in layer.parameters())


@torch.no_grad()
def load_ours(vqgan: VQGAN, variables: Mapping[str, Any]) -> None:
    """Takes the weights of our model's variables, as arrays (models/vqgan.py)."""
    given = lambda x: torch.as_tensor(x)
    vqgan.codebook.copy_(given(variables["params"]["codebook"]))
    for name, layer in vqgan.layers().items():
        ours: Any = variables["params"][name]
        if isinstance(layer, Block):
            layer.gammas.copy_(given(ours["gammas"]))
            _fill(layer.depthwise, ours["depthwise"])
            _fill(layer.mlp[0], ours["expand"])
            _fill(layer.mlp[2], ours["contract"])
        elif isinstance(layer, nn.BatchNorm2d):
            statistics = variables["batch_stats"][name]
            pairs = ((layer.weight, ours["scale"]), (layer.bias, ours["bias"]),
                     (layer.running_mean, statistics["mean"]),
                     (layer.running_var, statistics["var"]))  # fmt: skip
            for own, x in pairs:
                own.copy_(given(x))
        else:
            _fill(layer, ours)


def _fill(layer: Any, ours: Mapping[str, Any]) -> None:
    """A linear layer's or a convolution's weights, of [..., inputs, outputs]."""
    kernel = torch.as_tensor(ours["kernel"])
    if isinstance(layer, nn.ConvTranspose2d):
        kernel = kernel.permute(2, 3, 0, 1)
    elif kernel.ndim == 4:
        kernel = kernel.permute(3, 2, 0, 1)
    else:
        kernel = kernel.T
    layer.weight.copy_(kernel.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(torch.as_tensor(ours["bias"]))


def sized(config: Any) -> VQGAN | None:
    """A preset's tokenizer, where it is this one; that of a predictor has the released sizes."""
    if config.method == "vqgan" and config.get("architecture", "paella") == "paella":
        m = config.model
        return VQGAN(m.levels, m.width, m.bottleneck_blocks, m.latent_channels, m.codebook_size)
    if config.method == "tokens" and config.cell.network == "unet":
        return VQGAN(2, 384, 12, 4, config.model.codebook_size)
    return VQGAN(2, 384, 12, 4, 8192) if config.method == "stage_b" else None


def make(config: Any, work: str, images: int) -> Callable[[], Any] | None:
    """A preset's tokenizer, there or back; Stage B's to latents and from them. Else None."""
    encodes = work == "tokenizer: encode"
    if not encodes and work not in ("tokenizer: decode", "decode tokens", "Stage A: decode"):
        return None
    # A tokenizer beside other networks computes in float32, whatever they do.
    narrow = config.method == "vqgan" and config.precision == "bfloat16"
    dtype = torch.bfloat16 if narrow else torch.float32
    torch.set_float32_matmul_precision("high")
    with torch.device(DEVICE):
        vqgan = sized(config)
        if vqgan is None:
            return None
        vqgan, side = vqgan.to(dtype).eval(), config.data.image_size
        small = side // 2 ** (config.model.levels if config.method == "vqgan" else 2)
        shown = torch.rand(images, 3, side, side, dtype=dtype)
        tokens = torch.zeros(images, small, small, dtype=torch.int64)
        latents = torch.randn(images, 4, small, small, dtype=dtype)
    latent = config.method == "stage_b"
    there = compiled(vqgan.encode if latent else vqgan.encode_tokens)
    back = compiled(vqgan.decode if latent else vqgan.decode_tokens)

    def whole() -> None:
        with torch.no_grad():
            if encodes:
                there(shown)
            else:
                back(latents * SCALE if latent else tokens)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return whole


def compiled(function: Callable[[Tensor], Tensor]) -> Any:
    """The function, compiled where PAELLA_PEER asks for it."""
    return torch.compile(function, dynamic=False) if os.environ.get("PAELLA_PEER") else function
