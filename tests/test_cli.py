"""What all commands share: mistyped names are answered, paths have a home, long work is told."""

from __future__ import annotations

import gc
import io
import json
import logging
import re
import sys
import threading
import time
import weakref

import jax.numpy as jnp
import pytest

from paella_jax import __main__ as entry
from paella_jax import cli, train
from paella_jax.cli import Parser, help_on_configs, path
from paella_jax.config import ConfigError, load_config, preset_names
from paella_jax.training import pulse


def refused(capsys, parser, *words):
    with pytest.raises(SystemExit) as ended:
        parser.parse_known_args(words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def parser(**options):
    made = Parser("sample", **options)
    made.add_argument("--checkpoint", required=True)
    made.add_argument("--num_steps", type=int)
    made.add_argument("--sampler", choices=("random", "confidence"))
    return made


@pytest.mark.parametrize(
    "words, message",
    [
        ("--chekpoint x", "error: unknown flag --chekpoint; did you mean --checkpoint?"),
        ("--checkpoint x -num_steps 3", "unknown flag -num_steps; did you mean --num_steps?"),
        ("--checkpoint x --zzzz=3", "unknown flag --zzzz; known: --checkpoint, --help,"),
        ("--checkpoint x --sampler randm", "--sampler 'randm' is none of random, confidence; did"),
        ("--checkpoint x --config.seed=3", "unknown flag --config.seed"),
        ("--num_steps 3", "required: --checkpoint"),
        ("--checkpoint x --num_steps a", "--num_steps: invalid int value"),
    ],
)
def test_a_mistyped_flag_is_answered_in_one_line(capsys, words, message):
    assert message in refused(capsys, parser(), *words.split())


def test_what_looks_like_a_flag_and_is_none_passes():
    own = parser(overrides=True)
    own.add_argument("--weights")
    own.add_argument("rest", nargs="*")
    found, overrides = own.parse_known_args(
        ["--checkpoint=-x", "--weights", "-1", "--config.a.b=-c", "--", "--zzz"]
    )
    assert (found.checkpoint, found.weights, found.rest) == ("-x", "-1", ["--zzz"])
    assert overrides == ["--config.a.b=-c"]


def test_help_names_presets_and_overrides(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", "--help"])
    with pytest.raises(SystemExit):
        train.main()
    shown = capsys.readouterr().out
    assert help_on_configs() in shown and "--config.section.field=value" in shown
    presets = preset_names()
    for name, known in presets.items():
        assert re.search(rf"^  {name} +{known[0]}", shown, re.MULTILINE)
        load_config(f"{name}:{known[-1]}")
    assert {"paella", "muse", "vqgan", "stage_c"} <= set(presets)


@pytest.mark.parametrize(
    "name, close",
    [("palla:tiny", "did you mean 'paella'"), ("paella:shape", "did you mean 'shapes'")],
)
def test_mistyped_configs_and_presets_are_answered(name, close):
    with pytest.raises(ConfigError, match=close):
        load_config(name)


def test_a_mistyped_command_is_answered(monkeypatch):
    monkeypatch.setattr("sys.argv", ["paella_jax", "smaple"])
    with pytest.raises(SystemExit, match="did you mean sample"):
        entry.main()


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path("~/runs/x") == f"{tmp_path}/runs/x" and path("a~b") == "a~b"
    config = load_config("paella:tiny", ["--config.tokenizer=~/vqgan"])
    assert config.tokenizer == f"{tmp_path}/vqgan"


def test_lines_of_a_log_file_are_written_at_once(monkeypatch, tmp_path):
    with (tmp_path / "log").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)

        def main():
            print("a line")
            seen.append((tmp_path / "log").read_text())
            return 0

        seen = []
        monkeypatch.setattr(cli, "_keep_freed_memory", lambda: None)
        with pytest.raises(SystemExit):
            cli.run(main)
    assert seen == ["a line\n"]


def test_ctrl_c_ends_in_one_line(monkeypatch, capsys):
    def main():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_keep_freed_memory", lambda: None)
    monkeypatch.delenv("PAELLA_JAX_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == cli.INTERRUPTED and capsys.readouterr().err == "stopped\n"


def test_a_log_file_is_told_what_goes_on(monkeypatch, capsys):
    """At its begin, in between with seconds, and at its end."""
    monkeypatch.setattr(pulse, "FIRST_SECONDS", 0.001)
    told = threading.Event()

    def say(line):
        print(line, file=sys.stderr)
        if "so far" in line:
            told.set()

    monkeypatch.setattr(pulse, "_say", say)
    with pulse.pulse("compiling the sampler"):
        assert told.wait(60)
    first, *between, last = capsys.readouterr().err.splitlines()
    assert first == "compiling the sampler ..."
    assert all(re.fullmatch(r"compiling the sampler \.\.\. \d+ s so far", x) for x in between)
    assert re.fullmatch(r"compiling the sampler: \d+\.\d s", last)


def test_a_terminal_has_a_line_that_counts(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with pulse.pulse("compiling the sampler"):
        pass
    assert "compiling the sampler ... 00:00" in sys.stderr.getvalue()


def test_each_program_is_told_once(capsys):
    program = pulse.Program("the sum", lambda x, plus: x + plus, static_argnames="plus")
    for length, plus in ((2, 1), (2, 1), (3, 1), (2, 2), (3, 1)):
        assert program(jnp.ones(length), plus=plus).shape == (length,)
    assert capsys.readouterr().err.count("compiling the sum ...") == 3 == program.count


def test_the_programs_of_the_last_shapes_are_kept(capsys, monkeypatch):
    """JAX forgets the others."""
    monkeypatch.setattr(pulse, "MOST", 2)
    program, made = pulse.Program("the sum", lambda x: x + 1), []
    for length in (1, 2, 1, 3, 1, 2):  # 2 goes when 3 comes, and 3 when 2 comes again
        assert program(jnp.ones(length)).shape == (length,)
        made.append(weakref.ref(next(reversed(program._kept.values()))))
    assert program.count == 2
    assert capsys.readouterr().err.count("compiling the sum ...") == 4
    gc.collect()
    assert [one() is not None for one in made] == [True, False, True, False, True, True]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("absl", "Metadata file does not exist: a/_METADATA"),
        ("transformers", "PyTorch was not found."),
    ],
)
def test_only_lines_of_libraries_about_themselves_are_left_out(caplog, name, line):
    logger = logging.getLogger(name)
    with caplog.at_level(logging.WARNING, logger=name):
        logger.addHandler(caplog.handler)
        try:
            logger.warning(line)
            logger.warning("the disk is full")
        finally:
            logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"the disk is full"}


@pytest.mark.skipif(len(cli.processors()) < 2, reason="one processor cannot be shared out")
@pytest.mark.parametrize("count", [1, 3])
def test_processes_that_divide_work_share_the_processors_out(tmp_path, count):
    """None has all of them, each has one, and this process has all again afterwards."""
    free = cli.processors()
    write = (
        "import os, sys, pathlib; out = pathlib.Path(sys.argv[1]) / str(os.getpid());"
        "out.with_suffix('.part').write_text(str(sorted(os.sched_getaffinity(0))));"
        "os.replace(out.with_suffix('.part'), out)"
    )
    with cli.helped_by([sys.executable, "-c", write, str(tmp_path)], count):
        own, deadline = cli.processors(), time.monotonic() + 60
        named = lambda: [file for file in tmp_path.iterdir() if file.name.isdigit()]
        while len(named()) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        shares = [own, *(json.loads(file.read_text()) for file in named())]
    assert cli.processors() == free
    assert len(shares) == count + 1 and all(shares)
    if len(free) > count:
        assert sorted(one for share in shares for one in share) == free
