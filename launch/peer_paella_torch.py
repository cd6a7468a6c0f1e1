"""Paella's architecture in plain torch, for `benchmark --peer`: eager, or PAELLA_PEER=compile.

    PAELLA_PEER=compile python -m paella_jax.benchmark --config paella:1b --work forward,sample \
        --peer launch/peer_paella_torch.py

The blocks and the sampler are those of docs/models/paella.md 2 and 4, written as torch users write
them: channels first, `nn.MultiheadAttention`, two calls for guidance, the softmax drawn from by
`multinomial`. Weights are random: how long a pass takes depends on shapes and types alone, not on
the numbers. The tokenizer is in launch/peer_vqgan_torch.py. It needs torch, which the package does
not.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXTRA_POSITIONS = 4  # of the pooled text, behind the text's


class MapNorm(nn.Module):
    """Layer norm over the channels of [batch, channels, height, width], without scale and bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(0.02 * torch.randn(1, 1, 1, channels))
        self.beta = nn.Parameter(0.02 * torch.randn(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + self.beta + x


class ConvBlock(nn.Module):
    def __init__(self, channels: int, skip: int, dropout: float) -> None:
        super().__init__()
        both = channels + skip
        self.depthwise = nn.Conv2d(both, channels, 3, padding=1, groups=channels)
        self.norm, wide = MapNorm(channels), 4 * channels
        layers = [
            nn.Linear(channels, wide),
            nn.GELU(),
            ResponseNorm(wide),
            nn.Dropout(dropout),
            nn.Linear(wide, channels),
        ]
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        joined = x if skip is None else torch.cat([x, skip], 1)
        hidden = self.norm(self.depthwise(joined)).permute(0, 2, 3, 1)
        return x + self.mlp(hidden).permute(0, 3, 1, 2)


class TimestepBlock(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.mapper = nn.Linear(width, 2 * channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.mapper(time)[:, :, None, None].chunk(2, 1)
        return x * (1 + scale) + shift


class AttentionBlock(nn.Module):
    def __init__(self, channels: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = MapNorm(channels)
        self.mapper = nn.Sequential(nn.SiLU(), nn.Linear(width, channels))
        self.attention = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)

    def forward(self, x: Tensor, sequence: Tensor) -> Tensor:
        queries = self.norm(x).flatten(2).transpose(1, 2)
        keys = torch.cat([queries, self.mapper(sequence)], 1)
        y = self.attention(queries, keys, keys, need_weights=False)[0]
        return x + y.transpose(1, 2).reshape(x.shape)


class Paella(nn.Module):
    """Logits [batch, codes, height, width] of tokens [batch, height, width]."""

    def __init__(self, model: Any, text_width: int) -> None:
        super().__init__()
        self.time_width, widths = model.time_width, model.widths
        inside = model.token_width * model.patch_size**2
        self.embedding = nn.Embedding(model.codebook_size, model.token_width)
        self.start = nn.LayerNorm(model.token_width, eps=1e-6, elementwise_affine=False)
        self.patches = nn.PixelUnshuffle(model.patch_size)
        self.patch_in = nn.Sequential(nn.Conv2d(inside, widths[0], 1), MapNorm(widths[0]))
        self.text = nn.Linear(text_width, model.cond_width)
        self.text_norm = nn.LayerNorm(model.cond_width, eps=1e-6, elementwise_affine=False)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            into = nn.Identity()
            if level:
                into = nn.Sequential(
                    MapNorm(widths[level - 1]), nn.Conv2d(widths[level - 1], width, 2, stride=2)
                )
            self.down.append(nn.ModuleList([into, self.blocks(model, level, 0)]))
        for level in reversed(range(len(widths))):
            out = nn.Identity()
            if level:
                up = nn.ConvTranspose2d(widths[level], widths[level - 1], 2, stride=2)
                out = nn.Sequential(MapNorm(widths[level]), up)
            skip = widths[level] if level < len(widths) - 1 else 0
            self.up.append(nn.ModuleList([self.blocks(model, level, skip), out]))
        self.patch_out = nn.Sequential(
            MapNorm(widths[0]), nn.Conv2d(widths[0], inside, 1), nn.PixelShuffle(model.patch_size)
        )
        self.end = MapNorm(model.token_width)
        self.classifier = nn.Conv2d(model.token_width, model.codebook_size, 1, bias=False)

    def blocks(self, model: Any, level: int, skip: int) -> nn.ModuleList:
        """A level's blocks; the first one also reads a skip."""
        width, made = model.widths[level], nn.ModuleList()
        for kind in model.patterns[level] * model.depths[level]:
            if kind == "C":
                made.append(ConvBlock(width, 0 if made else skip, model.dropout))
            elif kind == "T":
                made.append(TimestepBlock(width, model.time_width))
            else:
                heads = model.num_heads[level]
                made.append(AttentionBlock(width, model.cond_width, heads, model.dropout))
        return made

    def run(
        self, blocks: Any, x: Tensor, time: Tensor, text: Tensor, skip: Tensor | None
    ) -> Tensor:
        for number, block in enumerate(blocks):
            if isinstance(block, ConvBlock):
                x = block(x, None if number else skip)
            else:
                x = block(x, time if isinstance(block, TimestepBlock) else text)
        return x

    def forward(self, tokens: Tensor, t: Tensor, text: Tensor) -> Tensor:
        half, dtype = self.time_width // 2, self.text.weight.dtype
        falling = torch.exp(torch.arange(half, device=t.device) * -(math.log(10000) / (half - 1)))
        angles = (10000 * t)[:, None] * falling
        time = torch.cat([angles.sin(), angles.cos()], 1).to(dtype)
        text = self.text_norm(self.text(text))
        x = self.patch_in(self.patches(self.start(self.embedding(tokens)).permute(0, 3, 1, 2)))
        skips: list[Tensor | None] = []
        for into, blocks in self.down:
            x = self.run(blocks, into(x), time, text, None)
            skips.append(x)
        skips[-1] = None
        for (blocks, out), skip in zip(self.up, reversed(skips), strict=True):
            x = out(self.run(blocks, x, time, text, skip))
        return self.classifier(self.end(self.patch_out(x)))


@torch.no_grad()
def sample(network: Any, text: Tensor, side: int, steps: int, guidance: float) -> Tensor:
    """Predict, draw, renoise: tokens [batch, side, side]."""
    codes, shape = network.classifier.out_channels, (len(text), side, side)
    noise = torch.randint(0, codes, shape, device=text.device)
    tokens, empty = noise, torch.zeros_like(text)
    for step in range(steps):
        level = 1 - step / steps
        t = torch.full((len(text),), level, device=text.device)
        logits = network(tokens, t, text) * guidance + network(tokens, t, empty) * (1 - guidance)
        chances = logits.float().softmax(1).permute(0, 2, 3, 1).reshape(-1, codes)
        tokens = torch.multinomial(chances, 1).view(shape)
        if step < steps - 1:
            again = torch.rand(shape, device=text.device) < level - 1 / steps
            tokens = torch.where(again, noise, tokens)
    return tokens


def one_prediction(network: Any, config: Any, text: Tensor) -> Callable[[], Tensor]:
    """The forward pass of made tokens at made noise levels."""
    shape = (len(text), *(config.data.image_size // 4,) * 2)
    tokens = torch.randint(0, config.model.codebook_size, shape, device=text.device)
    levels = torch.rand(len(text), device=text.device)
    return torch.no_grad()(lambda: network(tokens, levels, text))


def update(network: Paella, config: Any, images: int, text: Tensor) -> Callable[[], None]:
    """One step of training from encoded data: a network that reads made texts alone."""
    parameters, optim = list(network.parameters()), config.optim
    optimizer = torch.optim.AdamW(
        parameters, optim.learning_rate, (optim.beta1, optim.beta2), weight_decay=optim.weight_decay
    )
    average = [x.detach().clone() for x in parameters]
    side, codes = config.data.image_size // 4, config.model.codebook_size
    tokens = torch.randint(0, codes, (images, side, side), device=text.device)
    predict = compiled(network.train())

    def step() -> None:
        levels = torch.rand(images, device=text.device)
        replaced = torch.rand(tokens.shape, device=text.device) < levels[:, None, None]
        noised = torch.where(replaced, torch.randint_like(tokens, codes), tokens)
        smoothing = config.objective.label_smoothing
        logits = predict(noised, levels, text).float()
        nn.functional.cross_entropy(logits, tokens, label_smoothing=smoothing).backward()
        if optim.clip_norm:
            nn.utils.clip_grad_norm_(parameters, optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if optim.ema_decay:
            torch._foreach_lerp_(average, [x.detach() for x in parameters], 1 - optim.ema_decay)

    return step


def compiled(network: Paella) -> Any:
    """The network, compiled where PAELLA_PEER asks for it."""
    return torch.compile(network, dynamic=False) if os.environ.get("PAELLA_PEER") else network


def make(config: Any, work: str, images: int) -> Callable[[], Any] | None:
    """A Paella preset's forward pass, sampler, or update on encoded data; nothing else."""
    found = re.fullmatch(r"forward|(\d+) guided steps|train step, encoded data", work)
    if found is None or config.method != "tokens" or config.cell.network != "unet":
        return None
    sampling = not work.startswith("train")
    # Weights that are trained stay float32, and autocast rounds them where they are used.
    narrow = config.precision == "bfloat16"
    dtype = torch.bfloat16 if narrow and sampling else torch.float32
    torch.set_float32_matmul_precision("high")
    with torch.device(DEVICE):
        network = Paella(config.model, config.text.width).to(dtype).eval()
        length = config.text.pad_to + EXTRA_POSITIONS
        text = torch.randn(images, length, config.text.width, dtype=dtype)
    if work == "forward":
        call = one_prediction(compiled(network), config, text)
    elif sampling:
        predict, side = compiled(network), config.data.image_size // 4
        guidance, steps = config.sampler.guidance_scale[0], int(found[1])
        call = lambda: sample(predict, text, side, steps, guidance)
    else:
        call = update(network, config, images, text)

    def whole() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=narrow and not sampling):
            call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return whole
