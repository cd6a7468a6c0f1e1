"""The blind study without a page: pairs, votes in SQLite, damages of the file, counts, CSV."""

from __future__ import annotations

import csv
import io
import random
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from paella_jax.serving.store import APPLICATION, VERSION, Showing, Store, StudyError, Vote
from paella_jax.serving.study import Study
from paella_jax.serving.tally import in_words, over_prompts, tally, to_csv, wilson

pytestmark = pytest.mark.usefixtures("votes_not_waited_for")
PROMPTS = ["a cat", "a dog", "a red circle"]
RUNS = {0: (255, 0, 0), 1: (0, 0, 255)}  # what the runs draw


def draw_one(run, prompt, seed):
    return Image.new("RGB", (4, 4), RUNS[run])


def make(file, digests=("aa", "bb"), prompts=PROMPTS, draw=draw_one, seed=0, chance=3):
    return Study(Store(file, 0.1), digests, prompts, draw, seed=seed, chance=random.Random(chance))


def is_first(image):
    return image.getpixel((0, 0)) == RUNS[0]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "study.sqlite"


def prefer_first(study, visitor):
    """Votes for the first run in all pairs there are."""
    while pair := study.next_pair(visitor):
        assert is_first(pair.left) != is_first(pair.right)
        study.vote(pair.showing, "left" if is_first(pair.left) else "right")


def test_everybody_sees_every_pair_once(file):
    study = make(file)
    seen = []
    while pair := study.next_pair("anna"):
        assert (pair.done, pair.total) == (len(seen), 3)
        seen.append(pair.prompt)
        assert study.vote(pair.showing, "same")
    assert sorted(seen) == sorted(PROMPTS)
    assert study.next_pair("ben") is not None


def test_prompts_with_the_fewest_votes_come_first(file):
    study = make(file)
    first = study.next_pair("anna")
    study.vote(first.showing, "left")
    assert all(study.next_pair(f"visitor{n}").prompt != first.prompt for n in range(20))


def test_sides_are_drawn_and_votes_follow_the_run(file):
    study = make(file)
    sides = {is_first(study.next_pair("anna").left) for _ in range(20)}
    assert sides == {True, False}
    prefer_first(study, "anna")
    results = study.results()
    assert (results.a, results.b, results.same, results.visitors) == (3, 0, 0, 1)


def test_the_order_of_the_runs_does_not_matter(file):
    prefer_first(make(file), "anna")
    turned = make(file, digests=("bb", "aa"), draw=lambda run, *rest: draw_one(1 - run, *rest))
    assert (turned.results().a, turned.results().b) == (0, 3)
    rows = list(csv.DictReader(io.StringIO(turned.csv(("second", "first")))))
    assert {row["preferred"] for row in rows} == {"first"}
    pair = turned.next_pair("ben")
    turned.vote(pair.showing, "left" if is_first(pair.left) else "right")
    assert turned.results().b == 4 and make(file).results().a == 4


def test_votes_survive_a_new_start_between_showing_and_voting(file):
    pair = make(file).next_pair("anna")
    again = make(file)
    assert again.vote(pair.showing, "left") and again.results().visitors == 1


def test_a_vote_counts_once(file):
    study = make(file, prompts=["a cat"])
    first, second = study.next_pair("anna"), study.next_pair("anna")
    assert study.vote(first.showing, "left")
    assert not study.vote(first.showing, "right")  # the same click twice
    assert not study.vote(second.showing, "right")  # a second tab
    assert tally(study._votes()).rows[0][1:3].count(1) == 1


def test_images_depend_on_the_prompt_and_are_drawn_once(file):
    drawn = []
    draw = lambda *asked: drawn.append(asked) or draw_one(*asked)
    study = make(file, draw=draw)
    prefer_first(study, "anna")
    prefer_first(study, "ben")
    both = [{asked[1:] for asked in drawn if asked[0] == run} for run in (0, 1)]
    assert len(drawn) == 6 and both[0] == both[1]
    moved, draw = [], lambda *asked: moved.append(asked) or draw_one(*asked)
    prefer_first(make(file, prompts=["new", *PROMPTS[::-1]], draw=draw), "cleo")
    assert set(drawn) <= set(moved) and len(moved) == 8


def test_studies_of_other_runs_or_seeds_are_apart(file):
    prefer_first(make(file), "anna")
    assert make(file, digests=("aa", "cc")).results().rows == []
    assert make(file, seed=1).results().rows == []
    assert len(make(file).results().rows) == 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompts": ["", " "]}, "needs prompts: give --prompts FILE"),
        ({"digests": ("aa", "aa")}, "the same weights"),
    ],
)
def test_what_a_study_needs(file, change, message):
    with pytest.raises(ValueError, match=message):
        make(file, **change)


def test_no_vote_is_lost_when_many_vote_at_once(file):
    """Each thread with a store of its own, as servers on two ports have."""
    shown = Showing("a cat", 0, True)

    def visit(number):
        store = Store(file, patience=60.0)
        study = store.study("aa", "bb", 0)
        for prompt in PROMPTS:
            showing = store.show(study, f"visitor{number}", shown._replace(prompt=prompt))
            assert store.vote(showing, "left")
        return study

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(visit, range(8)))) == 1
    votes = Store(file).votes(1)
    assert len({(vote.visitor, vote.shown.prompt) for vote in votes}) == len(votes) == 24


def test_a_locked_file_is_told_and_the_vote_can_be_given_again(file):
    study = make(file)
    pair = study.next_pair("anna")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StudyError, match=r"locked by another program.*nothing was stored"):
        study.vote(pair.showing, "left")
    other.execute("COMMIT")
    other.close()
    assert study.vote(pair.showing, "left") and len(study.results().rows) == 1


def test_a_full_disk_is_told_and_older_votes_stay(file, monkeypatch):
    study = make(file)
    prefer_first(study, "anna")
    store, connect = study._store, study._store._connect

    def full():
        connection = connect()
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(store, "_connect", full)
    with pytest.raises(StudyError, match="no room left"):
        for _ in range(9):  # until the last page is full
            store.show(1, "ben", Showing("a cat" * 200, 0, True))
    monkeypatch.undo()
    assert len(make(file).results().rows) == 3


def test_files_that_are_no_study_are_refused(file, tmp_path):
    make(file)
    with sqlite3.connect(file) as newer:
        newer.execute(f"PRAGMA user_version = {VERSION + 1}")
    newer.close()
    with pytest.raises(StudyError, match=f"version {VERSION + 1}, this program has version"):
        Store(file)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as foreign:
        foreign.execute("CREATE TABLE things (name TEXT)")
    foreign.close()
    text = tmp_path / "text.sqlite"
    text.write_text("no database at all\n" * 100)
    for wrong, message in (
        (other, "something else"),
        (text, "no study, or a damaged one"),
        (tmp_path / "absent" / "study.sqlite", "cannot be used"),
        (tmp_path, "cannot be used"),
    ):
        with pytest.raises(StudyError, match=message):
            Store(wrong)
    assert APPLICATION > 0 and text.read_text().startswith("no database")


def test_votes_that_cannot_be_taken(file):
    study = make(file)
    pair = study.next_pair("anna")
    with pytest.raises(StudyError, match="left, right, same"):
        study.vote(pair.showing, "both")
    with pytest.raises(StudyError, match="another study"):
        study.vote("nothing", "left")
    assert study.results().rows == []


# --- counting


def votes_of(text, prompts=1):
    """A vote a letter: a, b or s, of visitors of their own."""
    made = []
    for number, letter in enumerate(text):
        shown = Showing(f"prompt {number % prompts}", 0, number % 2 == 0)
        left = "left" if (letter == "a") == shown.a_is_left else "right"
        made.append(Vote(f"v{number}", shown, "same" if letter == "s" else left, "2026"))
    return made


def test_wilson_s_interval():
    """By the formula's textbook example: 15 of 20."""
    found = wilson(15, 20)
    np.testing.assert_allclose(found, (0.75, 0.5313, 0.8881), atol=2e-4)
    assert wilson(0, 0) is None
    assert wilson(0, 5).low == 0.0 and wilson(5, 5).high == 1.0 and wilson(5, 5).low < 0.6


def test_a_tally():
    found = tally(votes_of("aaabs" * 4, prompts=5))
    assert (found.a, found.b, found.same, found.visitors) == (12, 4, 4, 20)
    assert found.win_rate.value == 0.75 and found.left.low < 0.5 < found.left.high
    assert [row[1:] for row in found.rows] == [(4, 0, 0)] * 3 + [(0, 4, 0), (0, 0, 4)]
    empty = tally([])
    assert empty.win_rate is None and empty.rows == [] and empty.over_prompts is None


def test_votes_for_few_prompts_say_little_of_others():
    """Of 100 votes for 10 prompts that are decided each: as sure as 10 votes, not 100."""
    found = tally(votes_of("aaaaaabbbb" * 10, prompts=10))
    by_votes, by_prompts = found.win_rate, found.over_prompts
    assert by_votes.value == by_prompts.value == 0.6
    assert by_prompts.high - by_prompts.low > 2.5 * (by_votes.high - by_votes.low)
    assert over_prompts(found.rows[:4]) is None


def test_the_result_in_words():
    names = ("one", "two")
    assert in_words(tally(votes_of("sss")), names).startswith("**3 votes**, none for")
    few = in_words(tally(votes_of("ab")), names)
    assert "`one` is preferred in 50.0 % [9.5, 90.5]** of 2 votes" in few
    assert "by 2 visitors." in few and "needs votes for at least 5" in few
    many = in_words(tally(votes_of("aaabs" * 4, prompts=10)), names)
    assert "Over prompts" in many and "Sides were preferred" not in many
    leaning = [vote for vote in votes_of("ab" * 20) if vote.choice == "left"]
    assert "Sides were preferred, not runs" in in_words(tally(leaning), names)


def test_the_table_of_votes():
    text = to_csv(votes_of("abs"), ("one", 'two, "2"'))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["preferred"] for row in rows] == ["one", 'two, "2"', ""]
    assert [row["left_run"] for row in rows] == ["one", 'two, "2"', "one"]
    assert [row["choice"] for row in rows] == ["left", "left", "same"]
