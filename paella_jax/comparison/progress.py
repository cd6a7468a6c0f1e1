"""How far a comparison's trainings are, and how long the others take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from paella_jax.comparison.plan import Size, Training
from paella_jax.comparison.train import run_folder
from paella_jax.comparison.variants import budget_multiple
from paella_jax.files.kept import read_kept
from paella_jax.training.finish import TRAINED, is_trained

Plan = tuple[Training, ConfigDict, Size]


def progress(config: ConfigDict, plans: Sequence[Plan], out: Path) -> str:
    """A line on what is done and what is left.

    Time is told once a training is done, by the seconds that those took for their part of the
    work; compiling and whatever disturbed them is in it.

    Args:
      config: the comparison's.
      plans: every training with its config and size.
      out: the comparison's folder.
    """
    done = [plan for plan in plans if is_trained(run_folder(plan[0], out))]
    line = f"{len(done)} of {len(plans)} trainings are done"
    if not done or len(done) == len(plans):
        return line
    files = [run_folder(plan[0], out) / TRAINED for plan in done]
    seconds = sum(read_kept(file, "seconds")["seconds"] for file in files)
    work = sum(_work(config, plan) for plan in done)
    pace, left = seconds / work, sum(_work(config, plan) for plan in plans) - work
    return f"{line}; the others take one process about {pace * left / 3600:.1f} hours"


def _work(config: ConfigDict, plan: Plan) -> float:
    """What a training costs, in the unit of the comparison's budget: time, or forward FLOPs."""
    training, run, size = plan
    if config.budget.kind == "seconds":
        return budget_multiple(config, training)
    return float(run.num_steps * run.batch_size * size.flops)
