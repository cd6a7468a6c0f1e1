"""Stage C -> Stage B -> Stage A from recorded noise, against the reference's recorded run."""

from __future__ import annotations

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paella_jax.convert.vqgan import VQGAN
from paella_jax.convert.wuerstchen import STAGE_B, STAGE_C
from paella_jax.models.compressor import from_stage_c
from paella_jax.models.conditioning import Conditioning
from paella_jax.sampling.diffusion import GaussianRandomness, GaussianStart, sample
from paella_jax.sampling.diffusion_settings import DDPMSettings, segment_times
from paella_jax.sampling.guidance import guide

pytestmark = pytest.mark.usefixtures("highest_precision")


def pytest_generate_tests(metafunc):
    golden.parametrize(metafunc, "folder", golden.is_model("wuerstchen_pipeline"))


def network(folder, config, overrides, make, load):
    """A stage's network and parameters; entries of the pipeline's own file replace its weights."""
    source = (folder / config).resolve()
    model = make(golden.config_of(source)["constructor"])
    tensors = golden.weights_of(source) | overrides
    return model, golden.as_jax(load(tensors, model))


def split_overrides(folder, config):
    """Tensors of `prior.` and `decoder.`, without these prefixes."""
    stored = golden.weights_of(folder, config["head_overrides"])
    own = lambda start: {n.removeprefix(start): t for n, t in stored.items() if n.startswith(start)}
    return own("prior."), own("decoder.")


def predictor(model, params, text, guide_latents=None):
    cond = Conditioning(text=jnp.asarray(text), guide=guide_latents)
    return lambda x, t: model.apply({"params": params}, x, t, cond)


def channels_last(io, name):
    """[..., channels, h, w] -> [..., h, w, channels]."""
    return jnp.asarray(np.moveaxis(io[name], -3, -1))


def test_whole_pipeline(folder):
    config, io = golden.config_of(folder), golden.arrays_of(folder)
    heads_c, heads_b = split_overrides(folder, config)
    stage_c, params_c = network(
        folder,
        config["prior"],
        heads_c,
        golden.stage_c_of,
        STAGE_C.names.load,
    )
    stage_b, params_b = network(
        folder,
        config["decoder"],
        heads_b,
        golden.stage_b_of,
        STAGE_B.names.load,
    )
    vqgan, variables = network(folder, config["vqgan"], {}, golden.vqgan_of, VQGAN.names.load)
    count = len(io["in.prior_c"])
    edges = [1.0, *(end for end, _ in config["segments"])]
    settings = DDPMSettings(
        time_points=segment_times(edges, [steps for _, steps in config["segments"]]),
        guidance_scale=config["prior_cfg"],
    )

    def draw(denoise, settings, stage):
        noise = lambda kind: channels_last(io, f"noise.{stage}_{kind}")
        randomness = GaussianRandomness(noise("init"), noise("steps"))
        shape = randomness.initial.shape
        run = lambda r: sample(
            denoise,
            jax.random.key(0),
            shape,
            settings,
            start=GaussianStart(randomness=r),
            trace=True,
        )
        return jax.jit(run)(randomness)

    denoise = guide(
        predictor(stage_c, params_c, io["in.prior_c"]),
        predictor(stage_c, params_c, io["in.prior_c_uncond"]),
    )
    latents_c, trace = draw(denoise, settings, "prior")
    label = folder.name
    golden.check_close(f"{label}.prior.trace", trace, channels_last(io, "prior.trace"), 2e-4, 2e-4)
    raw = from_stage_c(latents_c)
    theirs = channels_last(io, "prior.image_embeddings")
    golden.check_close(f"{label}.prior.image_embeddings", raw, theirs, 5e-3, 2e-4)

    # From here on the recorded embeddings: Stage C's own error would be amplified by 42.
    conditional = predictor(stage_b, params_b, io["in.decoder_clip"], theirs)
    steps = DDPMSettings(num_steps=config["b_steps"])
    _, trace = draw(guide(conditional, None), steps, "decoder")
    name = "decoder.nocfg_trace"
    golden.check_close(f"{label}.{name}", trace, channels_last(io, name), 1e-3, 1e-3)
    guided = DDPMSettings(num_steps=config["b_steps"], guidance_scale=config["b_cfg"])
    unconditional = predictor(stage_b, params_b, io["in.decoder_clip_uncond"])
    final, _ = draw(guide(conditional, unconditional), guided, "decoder")
    name = "decoder.cfg_final"
    golden.check_close(f"{label}.{name}", final, channels_last(io, name), 1e-3, 1e-3)

    decode = lambda latents: vqgan.apply(
        variables, latents, method=lambda m, x: m.decode(m.unscale(x))
    )
    image = jax.jit(decode)(channels_last(io, "decoder.nocfg_trace")[-1])
    assert count == len(image)
    theirs = channels_last(io, "image")  # the repository's copy holds a corner of it
    corner = image[:, : theirs.shape[1], : theirs.shape[2]]
    golden.check_close(f"{label}.image", corner, theirs, 1e-4, 1e-4)
