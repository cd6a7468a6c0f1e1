"""Files of prompts: what every form says, what is refused and where, and that nothing is kept."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from paella_jax.pipelines.prompt_file import (
    Defaults,
    check_prompt_file,
    ignored_columns,
    read_prompt_file,
)


def rows(tmp_path, name, content, **defaults):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_prompt_file(file, Defaults(**defaults)))


def test_lines_of_text_have_seeds_of_their_own(tmp_path):
    found = rows(tmp_path, "p.txt", "\ufeffa cat\n\n  a dog \r\n", seed=2**32 - 1)
    assert [(row.prompt, row.seed, row.file) for row in found] == [
        ("a cat", 2**32 - 1, "00000.png"),
        ("a dog", 0, "00001.png"),
    ]


@pytest.mark.parametrize(
    "name, content",
    [
        ("p.csv", "Prompt,Seed,negative,File Name,steps,cfg,note\n"
                  '"a, b",7,dull,x.v1.jpg,3,2.5,-\n'),
        ("p.TSV", "prompt\tseed\tnegative_prompt\tname\tnum_steps\tguidance_scale\n"
                  "a, b\t7\tdull\tx.v1\t3\t2.5\n"),
        ("p.jsonl", json.dumps({"text": "a, b", "seed": 7, "negative": "dull", "file": "x.v1.png",
                                "steps": 3, "guidance": 2.5}) + "\n"),
    ],
)  # fmt: skip
def test_tables_say_the_same(tmp_path, name, content):
    (row,) = rows(tmp_path, name, content, settings={"num_steps": 9, "temperature": 1.0})
    assert (row.prompt, row.negative_prompt, row.seed, row.file) == ("a, b", "dull", 7, "x.v1.png")
    assert dict(row.settings) == {"num_steps": 3, "guidance_scale": 2.5, "temperature": 1.0}
    assert ignored_columns(tmp_path / name) == (["note"] if name == "p.csv" else [])


def test_blank_cells_say_nothing(tmp_path):
    first, second = rows(tmp_path, "p.csv", "prompt,seed,negative,steps\na,,,\nb,4,,2\n", seed=1,
                         negative_prompt="dull", settings={"num_steps": 9})  # fmt: skip
    assert (first.seed, first.negative_prompt, dict(first.settings)) == (
        1,
        "dull",
        {"num_steps": 9},
    )
    assert (second.seed, dict(second.settings)) == (4, {"num_steps": 2})


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.txt", "a cat\n".encode("utf-16"), r"p\.txt is not UTF-8 \(byte 0xff\)"),
        ("p.txt", "", "has no prompts"),
        ("p.txt", "a\0b", "line 1: prompt holds a zero byte"),
        ("p.json", "[]", r"named \.jsonl"),
        ("p.csv", "prompt;seed\na;1\n", "no column named prompt; found"),
        ("p.csv", "prompt,seed\na,1\n,2\n", "row 2: the prompt is empty"),
        ("p.csv", "prompt,seed\na,-1\n", "row 1: seed '-1' must be a whole number from 0 to"),
        ("p.csv", "prompt,seed\na cat, brown,1\n", "row 1 has more fields than the header"),
        ("p.csv", "prompt,steps\na,2\nb,0\n", "row 2: num_steps '0'"),
        ("p.csv", "prompt,file\na,x.png\nb,X.jpg\n", r"row 2: X\.png is the image of prompt 1"),
        ("p.csv", "prompt,file\na,\nb,00000\n", r"row 2: 00000\.png is the image of prompt 1"),
        ("p.csv", "prompt,file\na,../x\n", "no plain file name"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 5}\n', "row 2: prompt is of type int"),
        ("p.jsonl", '{"prompt": "a", "guidance": NaN}\n', "row 1: guidance_scale nan"),
        ("p.jsonl", '{"prompt": "a", "seed": true}\n', "row 1: seed True"),
        ("p.jsonl", '{"prompt": \n', "row 1 is not JSON"),
    ],
)
def test_what_is_refused_names_the_row(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        check_prompt_file(file, Defaults())


def test_rows_are_read_when_they_are_asked_for(tmp_path):
    """A wrong row far behind is not looked at, so that a file of any length takes no memory."""
    file = tmp_path / "p.jsonl"
    with file.open("w") as stream:
        stream.writelines('{"prompt": "a cat"}\n' for _ in range(20_000))
        stream.write('{"prompt": ""}\n')
    assert len(list(islice(read_prompt_file(file, Defaults()), 5))) == 5
    with pytest.raises(ValueError, match="row 20001: the prompt is empty"):
        check_prompt_file(file, Defaults())


def test_rows_with_settings_of_their_own_are_told(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("prompt,steps\na,\nb,9\n")
    assert check_prompt_file(file, Defaults()) == (2, True)
    assert check_prompt_file(file, Defaults(settings={"num_steps": 9})) == (2, False)
