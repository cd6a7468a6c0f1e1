"""Check a run folder: `python -m paella_jax.verify RUN`.

Compares every file and every array with the digest that was written with it, and the parts with
each other, and says what is missing, damaged or foreign. Exit code 0 if nothing is, else 2. Nothing
is changed, but with --accept FILE (repeatable): it notes files that you changed yourself as they
are now. `--accept digests.json` writes that list anew where it is lost or damaged: all files are
taken as they are now.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from paella_jax.cli import Parser, path, run

WRONG = 2


def main() -> int:
    """Parses the command line and checks."""
    parser = Parser("python -m paella_jax.verify", description=__doc__)
    parser.add_argument("run", type=path, help="run folder")
    meaning = "a file in it, as config.json, that you changed on purpose"
    parser.add_argument("--accept", action="append", default=[], metavar="FILE", help=meaning)
    arguments = parser.parse_args()
    folder = Path(arguments.run)

    from paella_jax.outside import say
    from paella_jax.runs.finding import NOTE
    from paella_jax.runs.verify import verify_run

    if arguments.accept:
        accept(folder, arguments.accept)
    findings = verify_run(folder)
    for kind, name, what in findings:  # a file's name may hold what steers a terminal
        say(f"{kind}: {name}" + (f": {what}" if what else ""))
    counts = Counter(finding.kind for finding in findings if finding.kind != NOTE)
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    sound = "nothing wrong was found" if findings else "all is what was written"
    say(f"{folder}: {told or sound}")
    return WRONG if counts else 0


def accept(folder: Path, names: list[str]) -> None:
    """Notes the digests of files as they are now; of all files where their list is named.

    Raises:
      ValueError: one is no file of the run that has a digest in its list, or the folder is a shared
        one, whose manifest nobody but its writer changes.
      CheckpointError: the list is lost or damaged, and another file was named.
      LockedError: the run is being written.
    """
    from paella_jax.files.lock import WRITER, locked
    from paella_jax.runs.digests import DIGESTS_FILE, files_to_note, note_files, renew_list
    from paella_jax.runs.manifest import MANIFEST

    if (folder / MANIFEST).is_file():
        raise ValueError(
            f"--accept: {folder} was shared and is held against its {MANIFEST}; change the run it "
            "was made of, and share that again"
        )
    known = [*files_to_note(folder), DIGESTS_FILE]
    for name in names:
        if name not in known:
            raise ValueError(f"--accept {name}: {folder} has no such file; it has {known}")
    with locked(folder / WRITER, "an --accept of paella_jax.verify"):
        if DIGESTS_FILE in names:  # with what it says of all others
            renew_list(folder)
        else:
            note_files(folder, names)


if __name__ == "__main__":
    run(main)
