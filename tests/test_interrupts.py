"""Ctrl-C before a training has its own handler: one line, exit code 130, none is lost."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
import small

from paella_jax import cli
from paella_jax.config import StoppedAtOnce
from paella_jax.files import interrupts
from paella_jax.training.loop import _stop_signals


@pytest.fixture
def python_s_handler():
    """As in a command that a shell started in front."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ended(main, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert capsys.readouterr().err == "stopped\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return end.value.code


def test_an_interrupt_in_an_import_waits_for_its_end(
    python_s_handler, tmp_path, monkeypatch, capsys
):
    """Or numpy prints a page, and compiled modules make an ImportError of it."""
    done = []
    monkeypatch.setattr(interrupts, "done", done, raising=False)
    (tmp_path / "slow_module.py").write_text(
        "import signal, paella_jax.files.interrupts as seen\n"
        "signal.raise_signal(signal.SIGINT)\nseen.done.append('imported')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def main():
        import slow_module

        assert slow_module
        threading.Event().wait(60)
        return 0

    assert ended(main, capsys) == 130 and done == ["imported"]


def test_an_interrupt_that_is_lost_comes_again(python_s_handler, capsys):
    """As in a callback of the garbage collection: nobody is above it who could be told."""

    def lose(phase, info):
        if phase == "start":
            gc.callbacks.remove(lose)
            signal.raise_signal(signal.SIGINT)

    def main():
        gc.callbacks.append(lose)
        gc.collect()
        threading.Event().wait(60)
        return 0

    assert ended(main, capsys) == 130


def test_no_update_is_made_after_an_interrupt_that_a_library_lost(python_s_handler, capsys):
    def main():
        with suppress(KeyboardInterrupt):  # a library loses it
            signal.raise_signal(signal.SIGINT)
        with _stop_signals():
            raise AssertionError("it goes on")

    assert ended(main, capsys) == 130
    with _stop_signals() as came:  # of another command
        assert came == []


def test_a_handler_of_another_program_stays(monkeypatch):
    mine = lambda *_: None
    before = signal.signal(signal.SIGINT, mine)
    try:
        with interrupts.remembered():
            assert signal.getsignal(signal.SIGINT) is mine
        assert not interrupts.is_command()
        monkeypatch.setattr(sys, "argv", ["paella_jax train", "--help"])
        assert interrupts.is_command()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_one_still_ends_at_once(python_s_handler, monkeypatch):
    codes = []

    def main():
        with _stop_signals() as came:
            signal.raise_signal(signal.SIGINT)
            assert came == ["SIGINT"]
            signal.raise_signal(signal.SIGINT)
        return 0

    monkeypatch.setattr(os, "_exit", codes.append)
    cli.run(main)
    assert codes == [130] and issubclass(StoppedAtOnce, KeyboardInterrupt)


# Seen by every Python that starts; raises the signal where a module is first asked for.
STOP_AT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["STOP_AT"]:
            sys.meta_path.remove(self)
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Stop())
"""


@pytest.mark.parametrize("module", ["ml_collections", "numpy", "jax._src.core"])
def test_a_command_is_stopped_while_it_imports(tmp_path, module):
    """Real processes: in the command's own imports, and in those of its work."""
    (tmp_path / "sitecustomize.py").write_text(STOP_AT)
    command = [sys.executable, "-m", "paella_jax.train", "--config", "vqgan:tiny"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{small.ROOT}", "STOP_AT": module}
    result = subprocess.run(
        [*command, "--workdir", str(tmp_path / "run")],
        cwd=small.ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 130 and result.stderr.endswith("stopped\n"), result.stderr
    assert "Traceback" not in result.stderr and "Error" not in result.stderr
    assert not list(tmp_path.glob("run/checkpoints/*")), "it was trained all the same"


def test_the_exit_code_is_130_even_where_python_would_end_by_the_signal():
    """Python remembers an interrupt that came through a text that is executed."""
    program = (
        "import signal; from paella_jax import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.run(lambda: exec('signal.raise_signal(signal.SIGINT)'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=small.ROOT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (130, "stopped\n")
