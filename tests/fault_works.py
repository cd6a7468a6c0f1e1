"""What tests/faults.py stops: a training, an encoding, a comparison, a study's votes.

Each is the real command, or what it calls, with a network so small that a start takes a second. A
`Work` can be begun in an empty folder, run in it again and again, and says what its folder must
hold in the end, whatever stopped it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from paella_jax import cli, encode, train
from paella_jax.comparison.claims import Task, do_together
from paella_jax.config import load_config
from paella_jax.data.build import make_source
from paella_jax.data.loader import image_transform
from paella_jax.files.atomic import write_atomically
from paella_jax.images.write import save_grid
from paella_jax.objectives.inputs import images_from_batch
from paella_jax.registry import FAMILIES, Family, build_method
from paella_jax.runs.checked_lines import scan_metrics
from paella_jax.runs.folder import METRICS_FILE
from paella_jax.runs.step_digests import wrong_parts
from paella_jax.runs.verify import verify_run
from paella_jax.runs.weights import save_tree
from paella_jax.runs.whole_steps import complete_steps
from paella_jax.serving.store import Showing, Store
from paella_jax.training.cluster import Cluster
from paella_jax.training.encoding_plan import EncodeOptions
from paella_jax.training.finish import Stopped, finish, is_trained, settle
from paella_jax.training.method import Encoding, Method

STEPS, EVERY, KEEP = 6, 2, 1
TIMED = ("images_per_second", "seconds", "goodput")  # of a metrics line: another one in every run
VISITORS, PROMPTS = 3, 4
LIST = "digests.json"
CONFIG = f"""
from ml_collections import ConfigDict
from paella_jax.config import CONFIGS, load_module

def get_config(preset):
    config = load_module(CONFIGS / "common.py").base()
    config.method, config.preset, config.num_steps, config.batch_size = "mean", preset, {STEPS}, 4
    config.checkpoint.every, config.checkpoint.keep = {EVERY}, {KEEP}
    config.log.every, config.log.preview_every = 1, 3
    config.optim.learning_rate, config.optim.warmup_steps, config.data.size = 0.1, 1, 12
    return config
"""


on_change: list[Callable[[str, str], None]] = []  # told what SQLite does, an event and a path


class ToldStore(Store):
    """Tells of every few steps of SQLite, whose writes Python does not see.

    No exception can be told to SQLite in the middle of its work: a disk that becomes read-only
    then is so from the next transaction on.
    """

    is_read_only = False

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        if self.is_read_only:
            connection.execute("PRAGMA query_only = ON")  # answers as a read-only disk does
        connection.set_progress_handler(self._tell, 10)
        return connection

    def _tell(self) -> int:
        try:
            for told in on_change:
                told("open", str(self.file))
        except OSError:
            self.is_read_only = True
        return 0


class Work(NamedTuple):
    """Something that is stopped and started again.

    Attributes:
      name: for people.
      begin: (folder) -> puts there what a first start finds.
      run: (folder) -> does it, or what is left of it; the exit code.
      found: (folder) -> what must be the same however often it was stopped.
      saved: (folder) -> what is safe for good: a number that never falls, -1 where what was once
        safe is gone.
    """

    name: str
    begin: Callable[[Path], None]
    run: Callable[[Path], int]
    found: Callable[[Path], Any]
    saved: Callable[[Path], int]
    stops: Sequence[str] = ("kill", "kill later") * 2 + ("SIGTERM", "SIGINT", "full", "EROFS")


def mean_method(config: ConfigDict, workdir: Path) -> Method:
    """Learns the mean of all images: a train state and a loop like any other's."""
    side = config.data.image_size

    def objective(params: Any, inputs: Any) -> Any:
        batch = inputs.batch
        small = batch["small"] if "small" in batch else shrink({}, batch)["small"]
        loss = jnp.square(small - params["mean"][None]).mean()
        return loss, ({"mse": loss}, inputs.model_state)

    def shrink(frozen: Any, batch: Any) -> Any:
        images = images_from_batch(batch)
        return {"small": images.reshape(len(images), side // 4, 4, side // 4, 4, 3).mean((2, 4))}

    return Method(
        title="mean",
        init=lambda key: ({"mean": jnp.zeros((side // 4, side // 4, 3))}, {}),
        objective=objective,
        frozen={},
        source=make_source(config.data, "train", config.seed),
        held=lambda: make_source(config.data, "validation", config.seed),
        transform=image_transform,
        encoding=Encoding(shrink, {}, {}, {}),
    )


def draw_mean(config: ConfigDict, workdir: Path, held: Any) -> Any:
    """Previews."""

    def draw(state: Any, frozen: Any, file: Path) -> dict[str, float]:
        save_grid(file, np.asarray(state.eval_params["mean"])[None].clip(0, 1))
        return {"brightness": float(state.eval_params["mean"].mean())}

    return draw


def use_mean_method(folder: Path) -> str:
    """Makes the method known to this process; returns the name of its config."""
    FAMILIES["mean"] = Family(mean_method, lambda config: mean_method(config, folder),
                              preview=draw_mean)  # fmt: skip
    file = folder / "mean.py"
    file.write_text(CONFIG)
    return f"{file}:tiny"


def command(main: Callable[[], int], *words: str) -> int:
    """Runs a command as a shell does; its exit code."""
    sys.argv = [main.__module__, *words]
    try:
        cli.run(main)
    except SystemExit as ended:
        return int(ended.code or 0)
    raise AssertionError("a command always ends in an exit")


def training(config: str) -> Work:
    """`paella_jax.train`."""

    def begin(folder: Path) -> None:
        folder.mkdir()
        save_tree(folder / "frozen" / "some.safetensors", {"x": np.arange(9, dtype=np.float32)})

    def run(folder: Path) -> int:
        return command(train.main, "--config", config, "--workdir", str(folder))

    return Work("training", begin, run, run_folder, newest_step)


def run_folder(folder: Path) -> dict[str, Any]:
    """All of a run folder but times: arrays by their digests, metrics, images, names of files."""
    steps = {step: arrays_of(folder, step) for step in complete_steps(folder)}
    rows, damaged = scan_metrics(folder / METRICS_FILE)
    metrics = [{n: x for n, x in row.items() if n not in TIMED} for row in rows]
    files = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    inside = {"/".join(name.split("/")[:2]) if "checkpoints" in name else name for name in files}
    images = {file.name: sha256(file) for file in folder.glob("samples/*")}
    told = [str(finding) for finding in verify_run(folder)]
    return {"steps": steps, "metrics": metrics, "damaged lines": damaged, "images": images,
            "files": sorted(inside), "verify": told}  # fmt: skip


def arrays_of(folder: Path, step: int) -> dict[str, str]:
    """Every array of a checkpoint, the optimiser's too, by the digest of its values."""
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore((folder / "checkpoints" / str(step) / "state").absolute())
    values = {jax.tree_util.keystr(path): np.asarray(x)
              for path, x in jax.tree_util.tree_leaves_with_path(tree)}  # fmt: skip
    return {name: hashlib.sha256(x.tobytes()).hexdigest() for name, x in values.items()}


def newest_step(folder: Path) -> int:
    """The newest save that was finished; -1 where it is not whole."""
    folders = [int(f.name) for f in folder.glob("checkpoints/*") if f.name.isdigit()]
    newest = max(folders, default=0)
    if newest and (newest not in complete_steps(folder) or _is_damaged(folder, newest)):
        return -1
    return newest


def _is_damaged(folder: Path, step: int) -> bool:
    return bool(wrong_parts(folder / "checkpoints" / str(step)))


def encoding(config: str) -> Work:
    """`paella_jax.encode`, behind its flags."""

    def run(folder: Path) -> int:
        options = EncodeOptions(batch_size=4, shard_size=4, validation=4)

        def main() -> int:
            settings = load_config(config)
            encode.encode_together(Cluster("one process", 1), settings, folder, options)
            return 0

        return command(main)

    shards = lambda folder: len(list(folder.glob("*.array_record")))
    return Work("encoding", Path.mkdir, run, all_files, shards)


def comparing(config: str) -> Work:
    """A comparison's claims, trainings and records; what is measured is the trained mean."""

    def measure(folder: Path, name: str) -> None:
        step = complete_steps(folder / "runs" / name)[-1]
        row = {"cell": name, "score": arrays_of(folder / "runs" / name, step)}
        (folder / "measured").mkdir(exist_ok=True)
        write_atomically(folder / "measured" / f"{name}.json", json.dumps(row))

    def run(folder: Path) -> int:
        def main() -> int:
            tasks = []
            for seed in (0, 1):
                settings = load_config(config, [f"--config.seed={seed}"])
                name, place = f"seed_{seed}", folder / "runs" / f"seed_{seed}"
                row = folder / "measured" / f"{name}.json"
                tasks.append(
                    Task(name, partial(is_trained, place),
                         partial(finish, settings, place, build_method))
                )  # fmt: skip
                tasks.append(Task(f"row_{seed}", row.is_file, partial(measure, folder, name)))
            try:
                do_together(tasks[::2], folder)
                for place in (folder / "runs").iterdir():
                    settle(place)  # as a comparison does when it reads what was trained
                do_together(tasks[1::2], folder)
            except Stopped as stopped:
                return cli.ENDED_BY[stopped.by]
            return 0

        return command(main)

    def found(folder: Path) -> Any:
        trained = {f.name: run_folder(f) for f in (folder / "runs").glob("*")}
        return trained | {"records": {f.name: f.read_text() for f in folder.glob("measured/*")},
                          "files": sorted(f.name for f in folder.glob("**/claims/*"))}  # fmt: skip

    def saved(folder: Path) -> int:
        steps = [newest_step(place) for place in (folder / "runs").glob("*")]
        return -1 if -1 in steps else sum(steps) + len(list(folder.glob("measured/*.json")))

    return Work("comparison", Path.mkdir, run, found, saved)


def voting() -> Work:
    """Votes of some visitors; a line is printed for each one that counts as stored."""
    shown = [(f"visitor {v}", f"prompt {p}") for v in range(VISITORS) for p in range(PROMPTS)]

    def run(folder: Path) -> int:
        def main() -> int:
            store = ToldStore(folder / "votes.sqlite")
            study = store.study("a", "b", 0)
            done = {(vote.visitor, vote.shown.prompt) for vote in store.votes(study)}
            for number, (visitor, prompt) in enumerate(shown):
                if (visitor, prompt) not in done:
                    showing = store.show(study, visitor, Showing(prompt, 1, number % 2 == 0))
                    assert store.vote(showing, "left" if number % 3 else "same")
                    print("stored", flush=True)
            return 0

        return command(main)

    def votes(folder: Path) -> Any:
        store = Store(folder / "votes.sqlite")
        return [
            (v.visitor, v.shown.prompt, v.choice) for v in store.votes(store.study("a", "b", 0))
        ]

    def saved(folder: Path) -> int:
        return len(votes(folder)) if (folder / "votes.sqlite").is_file() else 0

    def found(folder: Path) -> Any:
        return votes(folder), sorted(f.name for f in folder.iterdir())

    stops = ("kill", "kill later", "SIGTERM", "full", "EROFS")
    return Work("votes", Path.mkdir, run, found, saved, stops)


def all_files(folder: Path) -> dict[str, str]:
    """Every file by the digest of what is in it; of the list what it says."""
    told = lambda file: _unnamed(file) if file.name == LIST else sha256(file)
    return {f.relative_to(folder).as_posix(): told(f) for f in folder.rglob("*") if f.is_file()}


def _unnamed(file: Path) -> str:
    """What a list of digests says, without the name that was drawn, and the seal over it."""
    content = json.loads(file.read_text())
    return json.dumps({name: x for name, x in content.items() if name not in ("run", "sha256")})


def sha256(file: Path) -> str:
    """Of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def works(folder: Path) -> list[Work]:
    """All of them; their config is put into a folder."""
    config = use_mean_method(folder)
    return [training(config), encoding(config), comparing(config), voting()]
