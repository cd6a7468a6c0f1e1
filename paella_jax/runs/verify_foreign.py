"""What `verify` says of the files of a run folder that are not in its list of digests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from paella_jax.outside import listed
from paella_jax.runs.digests import APART, OWN, WRITING, matches, read_digests
from paella_jax.runs.finding import FOREIGN, NOTE, Finding, entries_of, or_nothing
from paella_jax.runs.inside import leaving_links
from paella_jax.runs.manifest import read_manifest

# What evaluation, drawing and cards leave in a run's folder; none of it is read again by a run.
RESULTS = ("*.png", "*.gif", "*.html", "*.md", "report.json", "scores.json", "curves.json",
           "sweep.json", "stages.json", "manipulations.json")  # fmt: skip
RESULTS_BELOW = ("tasks/*.png", "tasks/interpolation.gif", "tasks/tasks.md", "tasks/tasks.json")
CLUSTERS = ".processes"  # there while the processes of a run look for each other
OF_STEPS = "checkpoints/*"  # looked at step by step


def foreign(folder: Path) -> Iterator[Finding]:
    """Files that are no part of a run folder, links that lead out of it, and results."""
    links = leaving_links(folder)
    for name in links:
        yield Finding(FOREIGN, name, "is a link out of the folder")
    manifest = or_nothing(read_manifest, folder)
    known = {**manifest.get("files", {}), **manifest.get("card", {})}
    of_runs = or_nothing(read_digests, folder).get("files")
    results = []
    for name in sorted({*entries_of(folder)} - {*links}):
        if name in known or matches(name, [OF_STEPS]):
            continue
        if not (folder / name).is_file():
            yield Finding(FOREIGN, name, "is no regular file")
        elif matches(name, APART) or name == CLUSTERS:
            continue
        elif matches(name, OWN) and not known:
            if of_runs is not None and name not in of_runs:
                yield _unlisted(name, [n for n, was in of_runs.items() if was == WRITING])
        elif matches(name, RESULTS_BELOW if "/" in name else RESULTS):
            results.append(name)
        else:
            yield Finding(FOREIGN, name)
    if results:
        yield Finding(NOTE, listed(results, 3), "results have no digests: they are not checked")


def _unlisted(name: str, begun: list[str]) -> Finding:
    """A file of a run's own that its list does not have, though it may say that it was begun."""
    if matches(name, begun):
        return Finding(NOTE, name, "is not noted yet: the next training call does it")
    return Finding(FOREIGN, name, "is not in the list of digests, and was not begun by a training")
