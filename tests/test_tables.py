"""Tables of captions: what a damaged one loses is told; what they leave out; equal names."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import small_records

from paella_jax.data.captions import list_captioned
from paella_jax.data.folder import FolderRecords
from paella_jax.data.tables import read_rows
from paella_jax.files.digests import is_inside

HEAD = "file_name,text\n0.png,first\n"


def rows_of(place, text, name="metadata.csv"):
    (place / name).write_text(text)
    return [row for _, row in read_rows(place / name)]


@pytest.mark.parametrize(
    "text, words",
    [
        (
            HEAD + "1.png,a red, round ball\n",
            r"row 2 has more fields .* 2 \(line 3\); put .*commas",
        ),
        (
            HEAD + '1.png,"ends\n2.png,third\n',
            r"line 3: row 2 is damaged: a quote does not",
        ),
        (
            HEAD + '1.png,"ends\n2.png,"third"\n',
            r"line 3: row 2 is damaged: .* double each",
        ),
        ('file_name,"text\n0.png,a', r"line 1: row 1 is damaged: a quote does not end"),
    ],
)
def test_csv_loses_nothing_silently(tmp_path, text, words):
    with pytest.raises(ValueError, match=words) as error:
        rows_of(tmp_path, text)
    assert str(tmp_path / "metadata.csv") in str(error.value) and "\n" not in str(error.value)


def test_csv_with_quotes_commas_lines_and_short_rows(tmp_path):
    text = HEAD + '1.png,"a ""red"", round\nball"\n\n2.png,a 5" wheel\n3.png\n'
    assert [row["text"] for row in rows_of(tmp_path, text)] == [
        "first", 'a "red", round\nball', 'a 5" wheel', None,
    ]  # fmt: skip
    assert rows_of(tmp_path, "prompt\tnote\na, b, c\t\n", "p.tsv") == [
        {"prompt": "a, b, c", "note": ""}
    ]
    with pytest.raises(ValueError, match=r"row 1 .*\(line 2\); put texts with tabs in quotes"):
        rows_of(tmp_path, "prompt\na\tb\n", "p.tsv")


def test_what_is_wrong_with_a_row_is_told_in_letters_that_a_terminal_may_show(tmp_path):
    with pytest.raises(ValueError, match=r"damaged: '\\t' expected after"):
        rows_of(tmp_path, 'prompt\tnote\n"a"b\t\n', "p.tsv")
    with pytest.raises(ValueError, match=r'not a JSON object: "red \\u202e'):
        rows_of(tmp_path, '"red \u202eball"\n', "metadata.jsonl")


def with_images(place, names):
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(small_records.png(0, (4, 4)))
    return place


def test_images_that_no_row_names_are_told(tmp_path, capsys):
    place = with_images(tmp_path / "set", [f"{i}.png" for i in range(9)] + ["real/x.png"])
    (place / "9.heic").write_bytes(b"")
    (place / "link").symlink_to(place / "real")  # the lister goes one way, the table another
    names = ["0.png", "1.png", "link/x.png"]
    rows = [json.dumps({"file_name": name, "text": "t"}) for name in names]
    (place / "metadata.jsonl").write_text("\n".join(rows))
    assert len(FolderRecords(str(place))) == 3
    told = capsys.readouterr().out
    assert ", 7 not in metadata.jsonl" in told and "1 .heic (not read" in told


def test_an_image_that_is_named_in_two_ways_is_one(tmp_path):
    place = with_images(tmp_path, ["a.png", "b/c.png"])
    names = ["a.png", "./a.png", "b/c.png", "b//./c.png"]
    rows = [json.dumps({"file_name": name, "text": f"t{i}"}) for i, name in enumerate(names)]
    (place / "metadata.jsonl").write_text("\n".join(rows))
    left_out = Counter()
    samples = list_captioned(place, left_out)
    assert [(s.image, s.caption) for s in samples] == [
        (place / "a.png", ("t0", "t1")), (place / "b" / "c.png", ("t2", "t3")),
    ]  # fmt: skip
    assert not +left_out


def test_a_name_that_no_file_system_takes_is_refused(tmp_path):
    """Half a surrogate pair, which JSON can hold; bytes that are no UTF-8 are a name on Linux."""
    with_images(tmp_path, ["0.png"])
    rows_of_table = [{"file_name": "0.png", "text": "a"}, {"file_name": "\ud800.png", "text": "b"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows_of_table)))
    with pytest.raises(ValueError, match=r"metadata\.jsonl, row 2: file_name '\\+ud800\.png'"):
        list_captioned(tmp_path, Counter())
    assert is_inside("\udc80.png") and not is_inside("\ud800.png")
