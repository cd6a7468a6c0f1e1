"""A study's file that was damaged is refused by its name: no vote is lost or changed in silence."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from paella_jax.serving.store import CHOICES, Showing, Store, StudyError

pytestmark = pytest.mark.usefixtures("votes_not_waited_for")


@pytest.fixture
def file(tmp_path):
    """A study of 12 votes."""
    file = tmp_path / "study.sqlite"
    store = Store(file)
    study = store.study("aa", "bb", 0)
    for number in range(12):
        showing = store.show(
            study, f"visitor {number % 4}", Showing(f"prompt {number}", 7, number % 2 == 0)
        )
        assert store.vote(showing, CHOICES[number % 3])
    return file


def votes_of(file):
    """Without times and seeds, which are in the file once and decide nothing."""
    store = Store(file)
    return [
        (vote.visitor, vote.shown.prompt, vote.shown.a_is_left, vote.choice)
        for vote in store.votes(store.study("aa", "bb", 0))
    ]


def damaged(data, draw):
    """Bytes that are flipped, set to zero, drawn anew or cut off."""
    changed = bytearray(data)
    place, way = int(draw.integers(len(data))), draw.integers(4)
    if way == 0:
        changed[place] ^= 1 << int(draw.integers(8))
    elif way == 1:
        changed[place : place + 64] = bytes(len(changed[place : place + 64]))
    elif way == 2:
        for other in draw.integers(len(data), size=8):
            changed[other] = int(draw.integers(256))
    else:
        del changed[max(1, place) :]
    return bytes(changed)


def test_no_damage_is_silent(file):
    data, votes, refused, draw = file.read_bytes(), votes_of(file), 0, np.random.default_rng(0)
    for _ in range(400):
        file.write_bytes(damaged(data, draw))
        try:
            assert votes_of(file) == votes
        except StudyError as error:
            refused += 1
            assert file.name in str(error)
    assert refused > 100


@pytest.mark.parametrize(
    "statement, words",
    [
        ("DELETE FROM showings WHERE rowid = 3", "images that nobody was shown"),
        ("UPDATE votes SET prompt = 'another' WHERE rowid = 3", "1 votes differ from what"),
        ("UPDATE showings SET visitor = 'x' WHERE rowid < 3", "2 votes differ from what"),
        ("UPDATE votes SET choice = 'both' WHERE rowid = 3", "CHECK constraint failed in votes"),
        ("UPDATE votes SET voted_at = CAST(x'ff' AS TEXT) WHERE rowid = 3", "is not UTF-8"),
    ],
)
def test_what_nobody_can_have_stored_is_named(file, statement, words):
    with sqlite3.connect(file) as other:
        other.execute("PRAGMA ignore_check_constraints = ON")
        other.execute(statement)
    other.close()
    with pytest.raises(StudyError, match=rf"study\.sqlite is damaged .*{words}.* give another"):
        votes_of(file)


def test_a_page_that_is_lost_is_named(file):
    """SQLite itself read the other votes, or raised a bare UnicodeDecodeError."""
    data = bytearray(file.read_bytes())
    place = data.rindex(b"prompt 3")
    data[place : place + 4] = b"\xff\xff\xff\xff"
    file.write_bytes(data)
    with pytest.raises(StudyError, match=r"study\.sqlite is damaged"):
        votes_of(file)
