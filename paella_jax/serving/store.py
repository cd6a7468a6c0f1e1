"""The votes of blind studies in one SQLite file: a transaction a vote, for many visitors at once.

A vote is told as stored once it is committed to the disk, and never before. What a visitor was
shown is in the file too, so that a vote is understood after the server was started anew.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from paella_jax.config import UserError

APPLICATION = 0x50414A58  # marks the file as ours
VERSION = 1
PATIENCE = 10.0  # seconds to wait for another program that writes
CHOICES = ("left", "right", "same")
TABLES = """
CREATE TABLE secret (value TEXT NOT NULL);
CREATE TABLE studies (
  id INTEGER PRIMARY KEY, run_a TEXT NOT NULL, run_b TEXT NOT NULL, seed INTEGER NOT NULL,
  UNIQUE (run_a, run_b, seed));
CREATE TABLE showings (
  id TEXT PRIMARY KEY, study INTEGER NOT NULL REFERENCES studies (id), visitor TEXT NOT NULL,
  prompt TEXT NOT NULL, seed INTEGER NOT NULL, a_is_left INTEGER NOT NULL, shown_at TEXT NOT NULL);
CREATE TABLE votes (
  showing TEXT PRIMARY KEY REFERENCES showings (id), study INTEGER NOT NULL,
  visitor TEXT NOT NULL, prompt TEXT NOT NULL,
  choice TEXT NOT NULL CHECK (choice IN ('left', 'right', 'same')), voted_at TEXT NOT NULL,
  UNIQUE (study, visitor, prompt));
"""
# What SQLite says of a disk, and what to do.
DISK = (
    ("readonly", ": let this user write there, then try again"),
    ("I/O", ": look at its disk, whether there is room too, then try again"),
    ("unable to open", ": give another --study, in a folder that this user may write to"),
)
# Votes that nobody could have given: what is in the file twice must be the same both times.
IMPOSSIBLE = """
SELECT count(*) FROM votes LEFT JOIN showings ON showing = id
WHERE (votes.study, votes.visitor, votes.prompt)
  IS NOT (showings.study, showings.visitor, showings.prompt)
  OR a_is_left NOT IN (0, 1) OR typeof(seed) != 'integer'"""


class StudyError(UserError, ValueError):
    """The study's file cannot be used, or a vote cannot be taken; the message says what to do."""


class Showing(NamedTuple):
    """Two images that a visitor is shown.

    Attributes:
      prompt: of both.
      seed: of both.
      a_is_left: which run's image is on the left; the visitor does not know.
    """

    prompt: str
    seed: int
    a_is_left: bool


class Vote(NamedTuple):
    """A vote with what it was about.

    Attributes:
      visitor: a random name of the browser.
      shown: the two images.
      choice: one of `CHOICES`.
      voted_at: UTC, as ISO 8601.
    """

    visitor: str
    shown: Showing
    choice: str
    voted_at: str

    @property
    def preferred(self) -> str:
        """ "a", "b" or "same"."""
        if self.choice == "same":
            return "same"
        return "a" if (self.choice == "left") == self.shown.a_is_left else "b"


class Store:
    """A study's file; every method is one transaction of its own and safe in any thread."""

    def __init__(self, file: str | Path, patience: float = PATIENCE) -> None:
        """Opens a file of votes, or makes a new one.

        Args:
          file: where the votes are.
          patience: seconds to wait while another program writes.

        Raises:
          StudyError: a file of something else or of another version, one that is damaged, or one
            that cannot be written.
        """
        self.file, self.patience = Path(file), patience
        with self._transaction() as connection:
            self._prepare(connection)
            self.secret: str = connection.execute("SELECT value FROM secret").fetchone()[0]

    def study(self, run_a: str, run_b: str, seed: int) -> int:
        """The number of the study of two runs, by their digests; a new one where there is none."""
        with self._transaction() as connection:
            values = (run_a, run_b, seed)
            connection.execute(
                "INSERT OR IGNORE INTO studies (run_a, run_b, seed) VALUES (?, ?, ?)", values
            )
            query = "SELECT id FROM studies WHERE run_a = ? AND run_b = ? AND seed = ?"
            return int(connection.execute(query, values).fetchone()[0])

    def show(self, study: int, visitor: str, shown: Showing) -> str:
        """Notes what a visitor is shown; returns a random name of it, which a vote gives back."""
        name = secrets.token_urlsafe(12)
        row = (name, study, visitor, shown.prompt, shown.seed, shown.a_is_left, _now())
        with self._transaction() as connection:
            connection.execute("INSERT INTO showings VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return name

    def vote(self, showing: str, choice: str) -> bool:
        """Stores a vote; a second one of the same visitor for the same prompt changes nothing.

        Args:
          showing: what `show` returned.
          choice: one of `CHOICES`.

        Returns:
          Whether the vote is new.

        Raises:
          StudyError: another choice, a showing that there was not, or a file that cannot be
            written now: then nothing is stored, and the vote can be given again.
        """
        if choice not in CHOICES:
            raise StudyError(f"a vote is one of {', '.join(CHOICES)}, got {choice!r}")
        with self._transaction() as connection:
            query = "SELECT study, visitor, prompt FROM showings WHERE id = ?"
            known = connection.execute(query, (showing,)).fetchone()
            if known is None:
                raise StudyError("these two images are of another study: ask for the next two")
            row = (showing, *known, choice, _now())
            done = connection.execute("INSERT OR IGNORE INTO votes VALUES (?, ?, ?, ?, ?, ?)", row)
            return done.rowcount == 1

    def votes(self, study: int) -> list[Vote]:
        """All votes of a study, the oldest first."""
        query = """
          SELECT votes.visitor, showings.prompt, seed, a_is_left, choice, voted_at
          FROM votes JOIN showings ON showing = id WHERE votes.study = ? ORDER BY votes.rowid"""
        with self._transaction() as connection:
            rows = connection.execute(query, (study,)).fetchall()
        return [Vote(v, Showing(p, s, bool(left)), c, at) for v, p, s, left, c, at in rows]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection in a transaction that is committed at the end, or has changed nothing."""
        connection = None
        try:
            connection = self._connect()
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the second of damaged texts
            raise StudyError(self._told(error)) from error
        finally:
            if connection is not None:
                connection.close()  # takes back what is not committed

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.file, timeout=self.patience, isolation_level=None)
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Makes the tables in a new file. Raises StudyError for a file of something else."""
        pragma = lambda name: connection.execute(f"PRAGMA {name}").fetchone()[0]
        application, version = pragma("application_id"), pragma("user_version")
        if (application, version) == (APPLICATION, VERSION):
            self._check(connection)
            return
        if application == APPLICATION:
            raise StudyError(
                f"the study {self.file} is of version {version}, this program has version "
                f"{VERSION}: serve it with the program that made it, or give another --study"
            )
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise StudyError(f"{self.file} is a database of something else: give another --study")
        for statement in TABLES.strip().rstrip(";").split(";\n"):
            connection.execute(statement)
        connection.execute("INSERT INTO secret VALUES (?)", (secrets.token_hex(16),))
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {VERSION}")

    def _check(self, connection: sqlite3.Connection) -> None:
        """Raises StudyError for a damaged file, which could be read with fewer votes, or others."""
        rows = connection.execute("PRAGMA integrity_check(1)").fetchall()
        wrong = "" if rows == [("ok",)] else str(rows[0][0] if rows else "no answer")
        if not wrong and connection.execute("PRAGMA foreign_key_check").fetchone():
            wrong = "a vote is of images that nobody was shown"
        if not wrong and (count := connection.execute(IMPOSSIBLE).fetchone()[0]):
            wrong = f"{count} votes differ from what their visitors were shown"
        if wrong:
            raise StudyError(self._told_damage(wrong))

    def _told_damage(self, reason: str) -> str:
        return (
            f"the study {self.file} is damaged ({reason}), so that votes may be lost or wrong; "
            "nothing was read or stored: put a copy in its place, or give another --study"
        )

    def _told(self, error: sqlite3.Error | UnicodeDecodeError) -> str:
        """What went wrong with the file, and what to do."""
        reason = str(error)
        if "locked" in reason or "busy" in reason:
            return (
                f"the study {self.file} is locked by another program for {self.patience:.0f} s; "
                "nothing was stored: end that program, then try again"
            )
        if "full" in reason:
            return (
                f"there is no room left for the study {self.file}; nothing was stored: make room "
                "on its disk, then try again"
            )
        if isinstance(error, UnicodeDecodeError) or "Could not decode" in reason:
            return self._told_damage("a text is not UTF-8")
        if "not a database" in reason or "malformed" in reason:
            return f"{self.file} is no study, or a damaged one: give another --study"
        advice = next((do for words, do in DISK if words in reason), "")
        return f"the study {self.file} cannot be used ({reason}); nothing was stored{advice}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
