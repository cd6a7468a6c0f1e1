"""Texts that are longer than encoders read: told by what reads them, cut where that is asked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import small
from small_clip import write_clip_folder

from paella_jax.encoders.byte_tokenizer import ByteTokenizer, PromptError
from paella_jax.encoders.text import ClipTokenizer, longest_part, refusing
from paella_jax.encoders.words import WordTokenizer
from paella_jax.families.text_side import CLIP_LENGTH, TextSide
from paella_jax.pipelines.base import Job
from paella_jax.pipelines.prompts import clip_ids, padded_lengths
from paella_jax.pipelines.tokens import TokenPipeline
from paella_jax.pipelines.wuerstchen_texts import checked_texts, cut_text, negative_texts

LONG = "a red cat on a blue mat beside the old green door " * 3


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP tokenizer whose tokens are single letters, as a stage holds it."""
    folder = write_clip_folder(tmp_path_factory.mktemp("clip"))
    return ClipTokenizer(folder, CLIP_LENGTH, truncate=True)


def test_the_longest_part_is_of_whole_words():
    of_ten = lambda text: len(text) <= 10
    assert longest_part("a red cat", of_ten) == "a red cat"
    assert longest_part("a red  cats and dogs", of_ten) == "a red"
    assert longest_part("  unbelievably long", of_ten) == "  unbeliev"
    assert longest_part("abc", lambda text: not text) == ""


def test_clip_cuts_what_it_would_not_read(clip):
    cut = clip.cut(LONG)
    assert LONG.startswith(cut) and LONG[len(cut)] == " "  # at a word's end
    refusing(clip)([cut])
    with pytest.raises(PromptError, match="CLIP tokens"):
        refusing(clip)([f"{cut} door"])
    assert clip.cut("short") == "short" and len(clip.cut("x" * 99)) == CLIP_LENGTH - 2


def sides(clip):
    joint = TextSide(SimpleNamespace(), WordTokenizer(16, truncate=True), 16)
    return {"Stage C": joint, "Stage B": TextSide(SimpleNamespace(), clip, CLIP_LENGTH)}


def test_a_stage_says_what_it_would_not_read(clip):
    both = sides(clip)
    assert checked_texts(both, "a red cat") == ["a red cat"]
    with pytest.raises(PromptError, match=r"prompt 1 has 36 words .* limit is 16.*\(Stage C\)"):
        checked_texts(both, ["a cat", LONG])
    with pytest.raises(PromptError, match=r"prompt 0 has 102 CLIP tokens .* 77.*\(Stage B\)"):
        checked_texts(both, "x" * 100)
    cut = cut_text(both, LONG)
    assert cut == " ".join(LONG.split()[:15]) and checked_texts(both, cut)
    assert cut_text(both, "x" * 100) == "x" * 75
    silent = {"Stage B": TextSide(None, None, 0)}
    assert checked_texts(silent, LONG) == [LONG] and cut_text(silent, LONG) == LONG


def test_negative_texts_are_told_as_such(clip):
    both = sides(clip)
    assert negative_texts(both, Job(), 2) == ["", ""]
    with pytest.raises(PromptError, match=r"negative_prompt: prompt 0 has 36 words"):
        negative_texts(both, Job(negative_prompt=LONG), 2)


def networks(text, clip):
    return SimpleNamespace(text_tokenizer=text, clip_tokenizer=clip)


def test_clip_alone_refuses_and_beside_another_encoder_reads_a_part(clip):
    """Paella's T5 reads all of a text of which CLIP reads the beginning, as its reference does."""
    config = small.config_of("paella:tiny")
    alone, beside = networks(None, clip), networks(ByteTokenizer(768), clip)
    with pytest.raises(PromptError, match=r"prompt 0 has .* CLIP tokens"):
        padded_lengths(alone, config, [LONG])
    assert padded_lengths(alone, config, ["a cat"]) == (0,)
    assert clip_ids(beside, [LONG]).shape == (1, CLIP_LENGTH)
    assert padded_lengths(beside, config, [LONG])[0] > len(LONG)
    cut = lambda of: TokenPipeline.cut_text(SimpleNamespace(networks=of), LONG)
    assert padded_lengths(alone, config, [cut(alone)]) == (0,)
    assert cut(alone) == clip.cut(LONG) and cut(beside) == LONG
