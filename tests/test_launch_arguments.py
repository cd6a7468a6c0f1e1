"""What scripts of launch/ do with arguments that they do not know, and what they end with."""

from __future__ import annotations

import subprocess

import pytest
import small
from fake_commands import Fakes
from test_icons import STOPPABLE
from test_launch import SCONTROL, SRUN, run_slurm

LAUNCH = small.ROOT / "launch"
# Every measurement but the one that $GOOD names fails; $SLOW writes a row and never ends.
MEASURING = """#!/usr/bin/env bash
set -e
case "$*" in
  *"--table"*) shift 3; printf '%s\\n' "$@" >"$FAKE/table"; echo "a table of $#" ;;
  *"/${GOOD:-none}.json "*) echo "$*" >>"$FAKE/order" ;;
  *"/${SLOW:-none}.json "*)
    trap 'echo INT >>"$FAKE/signals"' INT
    trap 'echo TERM >>"$FAKE/signals"; exit 1' TERM
    echo row >"$6"
    while true; do sleep 0.2; done ;;
  *) exit 3 ;;
esac
"""


def installed(folder, fakes):
    """What tells launch/setup.sh that a fake python is the package's."""
    (folder / "venv" / "bin").mkdir(parents=True)
    (fakes.bin / "python").rename(folder / "venv" / "bin" / "python")
    pyproject = (small.ROOT / "pyproject.toml").read_bytes()
    checksum = subprocess.run(["cksum"], input=pyproject, capture_output=True).stdout.decode()
    (folder / "venv" / ".installed").write_text(f"{checksum.strip()} \n")
    return {"PAELLA_VENV": str(folder / "venv"), "PAELLA_EXTRA": ""}


@pytest.mark.parametrize(
    "script, arguments, words",
    [
        ("quickstart.sh", ["out", "--config.num_steps=3"], "takes one WORKDIR alone"),
        ("quickstart.sh", ["--config.num_steps=3"], "takes one WORKDIR alone"),
        ("wuerstchen.sh", ["out", "more"], "takes one WORKDIR alone"),
        ("icons.sh", ["--config.num_steps=3"], "takes WORKDIR before '--config.num_steps=3'"),
        ("fuzz.sh", ["1", "2", "3"], "takes MINUTES and SEED alone"),
        ("fuzz.sh", ["soon"], "MINUTES must be a number"),
        ("gpu_day.sh", ["out", "abc"], "MINUTES must be a whole number of at least 1, not 'abc'"),
        ("gpu_day.sh", ["out", "5", "more"], "takes FOLDER and MINUTES alone"),
    ],
)
def test_unknown_arguments_are_refused(script, arguments, words, tmp_path):
    done = Fakes(tmp_path / "fakes").run(LAUNCH / script, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"fakes"}


@pytest.mark.parametrize("good, code", [("none", 1), ("amused", 0)])
def test_a_day_without_any_measurement_is_no_success(good, code, tmp_path):
    fakes = Fakes(tmp_path / "fakes", python=MEASURING)
    settings = installed(tmp_path, fakes)
    done = fakes.run(LAUNCH / "gpu_day.sh", tmp_path / "out", "5", GOOD=good, **settings)
    assert done.returncode == code, done.stderr
    assert ("none of 11 measurements" in done.stderr) == bool(code)


def test_a_deadline_leaves_a_report(tmp_path):
    """A benchmark that does not even hear INT, as while XLA compiles, is killed; its rows stay."""
    fakes = Fakes(tmp_path / "fakes", python=MEASURING)
    # A deadline that is played: the clock stands, and `timeout` waits for a second.
    (fakes.bin / "timeout").write_text(
        '#!/usr/bin/env bash\necho "$1 $2 $3 $4" >>"$FAKE/given"\nshift 5\n'
        'exec /usr/bin/timeout -s INT -k 1 1 "$@"\n'
    )
    (fakes.bin / "timeout").chmod(0o755)
    settings = installed(tmp_path, fakes)
    done = fakes.run(LAUNCH / "gpu_day.sh", tmp_path / "out", "5", SLOW="small", **settings)
    assert done.returncode == 0, done.stderr
    assert fakes.note("signals") == ["INT"] and fakes.note("given")[0].startswith("-s INT -k 20")
    assert (tmp_path / "out" / "report.md").read_text() == "a table of 1\n"
    assert fakes.note("table") == [str(tmp_path / "out" / "small.json")]
    assert "small ended early" in done.stderr


def test_a_stop_beside_stays_a_stop(tmp_path):
    """143 of the background's training, which a launcher takes as `goes on when called again`."""
    stopped = STOPPABLE.replace("exit 130", "exit 143").replace("sleep 9 & wait", "exit 143")
    fakes = Fakes(tmp_path / "fakes", python=stopped)
    settings = installed(tmp_path, fakes)
    for name in ("train-0.tar", "heldout-0.tar"):
        (tmp_path / name).write_bytes(b"")
    done = fakes.run(LAUNCH / "icons.sh", tmp_path / "out", SHARDS=str(tmp_path), STOPPED="none",
                     **settings)  # fmt: skip
    assert done.returncode == 143, done.stderr


@pytest.mark.parametrize("form", ["--workdir=~/run", "--workdir ~/run"])
def test_slurm_finds_checkpoints_below_the_home_folder(form, tmp_path):
    """Else crashes with progress in between were counted as crashes in a row."""
    fakes = Fakes(tmp_path / "fakes", srun=SRUN, scontrol=SCONTROL)
    (tmp_path / "run" / "checkpoints" / "70").mkdir(parents=True)
    run_slurm(fakes, *form.split(), codes="137\n143\n", HOME=str(tmp_path))
    assert (fakes.folder / "logs" / "crashes").read_text() == "1 70\n"
