"""Tokenizers read from a folder of files: limits, truncation, padding."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from paella_jax.encoders.byte_tokenizer import PromptError
from paella_jax.encoders.text import make_tokenizer

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "circle"]
END = WORDS.index("</s>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Whole words and T5's end token behind them."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", END)])
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(str(path))
    return path


def test_a_long_caption_is_cut_before_its_end_token(folder):
    tokenize = make_tokenizer(len(WORDS), folder, 4, truncate=True)
    ids, mask = tokenize(["a red circle", "a red red circle a", "red"], 4)
    np.testing.assert_array_equal(ids, [[3, 4, 5, END], [3, 4, 4, END], [4, END, 0, 0]])
    np.testing.assert_array_equal(mask, ids != 0)
    np.testing.assert_array_equal(tokenize(["a red circle"], 3)[0], [[3, 4, END]])


def test_a_long_prompt_is_refused(folder):
    tokenize = make_tokenizer(len(WORDS), folder, 4)
    assert tokenize(["a red circle"])[0].tolist() == [[3, 4, 5, END]]
    with pytest.raises(PromptError, match="has 5 tokens, the limit is 4"):
        tokenize(["a red red circle"])
    with pytest.raises(PromptError, match="has 4 tokens, the limit is 3"):
        tokenize(["a red circle"], 3)
    assert tokenize.cut("a red  red circle") == "a red  red"
    assert tokenize.cut("a red") == "a red"
