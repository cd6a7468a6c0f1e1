"""A call of Würstchen: what it refuses, and strips that Stage B draws as in the call."""

from __future__ import annotations

import numpy as np
import pytest
import small
from test_wuerstchen import small_stage_b, small_stage_c

import paella_jax
from paella_jax.encoders.byte_tokenizer import PromptError

RED, BLUE = "a large red circle at the top left", "a large blue circle at the top right"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Untrained stages, of which Stage B reads the text and is guided."""
    text = {"text__kind": "joint", "text__width": 32, "text__hidden_dim": 32,
            "text__num_layers": 1, "text__num_heads": 2, "model__patterns": "('CTA',)",
            "model__num_heads": "(4,)", "sampler__guidance_scale": 3.0}  # fmt: skip
    stage_b = small.untrained(tmp_path_factory.mktemp("b"), small_stage_b(**text))
    return small.untrained(tmp_path_factory.mktemp("c"), small_stage_c(stage_b))


@pytest.fixture(scope="module")
def pipe(run):
    return paella_jax.load(run)


@pytest.mark.parametrize("prompts", [np.array([RED, BLUE]), (x for x in (RED, BLUE)), {RED: 1}])
def test_prompts_are_texts_or_lists_of_them(pipe, prompts):
    for ask in (pipe, pipe.embed):
        with pytest.raises(PromptError, match="give a text or a list of texts"):
            ask(prompts)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sampler": "nonsense"}, "no sampler; use stepper"),
        ({"height": 0}, "height 0 must be a positive multiple"),
        ({"stage_b_step": 3}, "no argument 'stage_b_step' .did you mean 'stage_b_step"),
        ({"stage_b_speed": 3}, "no option 'stage_b_speed'"),
    ],
)
def test_options_that_do_nothing_are_refused(pipe, options, message):
    for ask in (lambda **given: pipe(RED, **given), pipe.warm_up):
        with pytest.raises(ValueError, match=message):
            ask(**options)


@pytest.mark.parametrize(
    "options",
    [{}, {"stage_b_num_steps": np.int64(3)}, {"stage_b_guidance_scale": [9.0, 1.0]}, {"seed": 4}],
)
def test_the_last_step_of_a_strip_is_the_image(pipe, options, tmp_path):
    images = pipe([RED, BLUE], num_images_per_prompt=2, **options)
    last = np.asarray(images.strip([-1]))
    np.testing.assert_array_equal(last, np.concatenate([np.asarray(x) for x in images]))
    assert len(images.save(tmp_path)) == 4 and "run" in images.records()[0]
    for name in options:
        assert name == "seed" or images.settings[name] == (3 if name.endswith("steps") else (9, 1))


def test_a_strip_of_embeddings_is_of_these_embeddings(pipe):
    embeds = pipe.embed([RED, BLUE], negative_prompt="a cat")
    images = pipe(prompt_embeds=embeds[0].towards(embeds[1], 0.5))
    np.testing.assert_array_equal(np.asarray(images.strip([-1])), np.asarray(images[0]))
    assert images.prompts == [f"{RED} (0.5) + {BLUE} (0.5)"]
    plain = pipe(RED)
    assert (np.asarray(plain.strip([-1])) == np.asarray(plain[0])).all()


def test_image_tasks_of_token_predictors_are_refused_by_name(pipe):
    from paella_jax.pipelines import editing, variations

    image, mask = np.zeros((32, 32, 3), np.uint8), np.ones((32, 32), bool)
    for task, given in (
        (editing.inpaint, (image, mask, RED)),
        (editing.image_to_image, (image, RED)),
        (editing.outpaint, (image, RED)),
        (editing.edit, (image, RED)),
        (editing.morph, (image, RED)),
        (variations.variations, ([image],)),
        (variations.interpolate, (RED, BLUE)),
        (variations.interpolate_images, (image, image)),
        (variations.mix_parts, ([RED, BLUE],)),
    ):
        with pytest.raises(ValueError, match=f"{task.__name__} .* WuerstchenPipeline"):
            task(pipe, *given)
