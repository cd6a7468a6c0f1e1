"""A whole repetition: checks -> what seeds stand on -> seeds, each scored -> the table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from paella_jax.comparison.claims import Task, do_together
from paella_jax.config import ConfigError, differing_fields, to_json
from paella_jax.files.atomic import write_atomically
from paella_jax.files.kept import read_kept
from paella_jax.registry import build_method
from paella_jax.runs.folder import check_same_run
from paella_jax.runs.stored_config import read_stored_config
from paella_jax.seeds.plan import Seed, make_plan
from paella_jax.seeds.report import write_report
from paella_jax.seeds.score import TASKS, Measured, measured, score_seed, score_seed_tasks
from paella_jax.seeds.wish import Training, Wish
from paella_jax.training.finish import finish, is_trained, settle

WISH = "seeds_config.json"


def repeat(wish: Wish, out: Path, command: str) -> dict[str, Any]:
    """Trains and scores every seed, or what is left of it, and writes the table.

    Args:
      wish: what to repeat.
      out: folder of everything; a second call goes on where one stopped, or divides the work with
        one that runs. More seeds may be asked for later.
      command: the command line that repeats it, for the page.

    Returns:
      What `seeds.json` holds.

    Raises:
      ConfigError, CheckpointError: before anything is trained, for what cannot be done.
      Stopped: by SIGTERM, with everything saved.
    """
    plan = make_plan(wish, out)
    data = measured(wish.config, wish.num_images, wish.tuning_images)
    _claim(wish, out)
    for training in plan.trainings():
        if is_trained(training.workdir):
            check_same_run(training.workdir, training.config)
    for some in plan.shared:
        do_together([_task(training) for training in some], out)
    files = {seed.name: out / "scores" / f"{seed.name}.json" for seed in plan.seeds}
    tasks = [
        Task(seed.name, files[seed.name].is_file, partial(_do_seed, seed, data, files[seed.name]))
        for seed in plan.seeds
    ]
    do_together(tasks, out)
    if wish.tasks:
        do_together([_tasks_of(seed, out) for seed in plan.seeds], out)
    for training in plan.trainings():
        settle(training.workdir)
    rows = [read_kept(files[seed.name]) for seed in plan.seeds]
    if wish.tasks:
        scored = [read_kept(tasks_file(seed, out), TASKS) for seed in plan.seeds]
        rows = [row | own for row, own in zip(rows, scored, strict=True)]
    settings = {"config": wish.config.to_dict(), "captions": data.counts()}
    return write_report(rows, out, command, settings)


def _task(training: Training) -> Task:
    work = partial(_train, [training])
    return Task(training.workdir.name, partial(is_trained, training.workdir), work)


def _train(trainings: Sequence[Training]) -> None:
    for training in trainings:
        if not is_trained(training.workdir):
            finish(training.config, training.workdir, build_method)


def _do_seed(seed: Seed, data: Measured, file: Path) -> None:
    _train(list(seed.trainings.values()))
    score_seed(seed, data, file)


def tasks_file(seed: Seed, out: Path) -> Path:
    """Where the scores of a seed's image tasks are kept."""
    return out / "scores" / f"{seed.name}_tasks.json"


def _tasks_of(seed: Seed, out: Path) -> Task:
    file = tasks_file(seed, out)
    return Task(file.stem, file.is_file, partial(score_seed_tasks, seed, file))


def _claim(wish: Wish, out: Path) -> None:
    """Writes what is repeated, or checks that the folder belongs to it; seeds may be added.

    Raises:
      ConfigError: another repetition is there, or the folder cannot be written.
    """
    kept = {
        "config": wish.config.to_dict(),
        "tokenizers": wish.tokenizers,
        "low_tokenizers": wish.low_tokenizers,
        "stage_bs": wish.stage_bs,
        "direct": wish.direct,
        "num_images": wish.num_images,
        "tuning_images": wish.tuning_images,
    }
    file, own = out / WISH, ConfigDict(kept)
    differing = differing_fields(read_stored_config(file), own) if file.is_file() else []
    if differing:
        raise ConfigError(
            f"{out} holds another repetition; choose another --out. Differences (old -> new):\n  "
            + "\n  ".join(differing)
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(file, to_json(own))
    except OSError as error:
        raise ConfigError(f"cannot write to --out {out}: {error}; choose another") from error
