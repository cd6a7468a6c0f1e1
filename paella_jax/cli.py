"""What every command-line entry shares: flags, compilation cache, short error messages."""

from __future__ import annotations

import argparse
import ctypes
import difflib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from paella_jax.files import interrupts

if interrupts.is_command():  # before all other imports, which take their time
    interrupts.end_while_importing()

from paella_jax.config import (
    CONFIGS,
    StoppedAtOnce,
    UserError,
    flatten_config,
    load_config,
    load_module,
    preset_names,
)
from paella_jax.fields.table import described
from paella_jax.files.disk import describe_disk, is_outage
from paella_jax.files.library_noise import silence_late_answers
from paella_jax.outside import escaped

# Mostly mistakes of the user too; PAELLA_JAX_TRACEBACK=1 shows where they come from.
LIKELY_USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError)
FAILED = 1
MOST_FILES = (2**16, 10240)  # that are open at once, as far as the system lets us
INTERRUPTED = interrupts.INTERRUPTED
TERMINATED = 143  # exit code after a save on SIGTERM, so that a launcher knows to start again
ENDED_BY = {"SIGINT": INTERRUPTED, "SIGTERM": TERMINATED}  # a training that has saved


class Parser(argparse.ArgumentParser):
    """Flags without abbreviations; a wrong one is told in one line with what was probably meant."""

    def __init__(self, prog: str | None = None, overrides: bool = False, **options: Any) -> None:
        """As argparse's, with `allow_abbrev=False`.

        Args:
          prog: the command's name.
          overrides: whether `--config.section.field=value` are taken as well.
          **options: as argparse's.
        """
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog, **options | {"allow_abbrev": False})
        self._overrides = overrides
        self._given: list[str] = []

    def format_help(self) -> str:
        """As argparse's, with the presets there are where configs can be chosen."""
        if self._overrides and self.epilog is None:
            self.epilog = help_on_configs(self._given)
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, once every flag is known: what is missing may be there, mistyped."""
        given = self._given = list(sys.argv[1:] if args is None else args)
        end = given.index("--") if "--" in given else len(given)
        for flag in (word.partition("=")[0] for word in given[:end]):
            long = flag if flag.startswith("--") else f"-{flag}"
            is_flag = re.match("--?[A-Za-z]", flag) and " " not in flag
            override = self._overrides and flag.startswith("--config.")
            if is_flag and flag not in self._option_string_actions and not override:
                flags = sorted(f for f in self._option_string_actions if f.startswith("--"))
                known = ", ".join(flags)
                self.error(f"unknown flag {flag}{did_you_mean(long, flags)}; known: {known}")
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        """Ends with one line and exit code 2."""
        wrong = re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if wrong:
            flag, given, known = wrong.groups()
            choices = [choice.strip(" '") for choice in known.split(",")]
            close = did_you_mean(given, choices)
            message = f"{flag} {given!r} is none of {', '.join(choices)}{close}"
        self.exit(2, escaped(f"error: {message} (--help says more)") + "\n")


def did_you_mean(given: str, known: Sequence[str]) -> str:
    """ "; did you mean X?" where there is something like it, else nothing."""
    close = difflib.get_close_matches(given, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def path(text: str) -> str:
    """A path given as a flag; `~` is the home folder, also behind `=` where a shell leaves it."""
    return os.path.expanduser(text)


def help_on_configs(given: Sequence[str] = ()) -> str:
    """The presets of every config and what their fields may be, for the end of a help page.

    Args:
      given: the command's other words; a --config among them is the one whose fields are shown.
    """
    pairs = zip(("", *given), (*given, ""), strict=True)
    named = [word.partition("=")[2] or after for word, after in pairs if is_config(word)]
    spec = named[-1] if named else ""
    rows = [f"  {name:14} {', '.join(presets)}" for name, presets in preset_names().items()]
    lines = (
        "presets, as --config NAME:PRESET (configs/NAME.py says what each is for):",
        *rows,
        "",
        "any field of a config can be given as --config.section.field=value, for example",
        "  --config.num_steps=1000 --config.optim.learning_rate=3e-4 --config.data.folder=IMAGES",
        "",
        *help_on_fields(spec),
    )
    return "\n".join(lines)


def is_config(word: str) -> bool:
    """Whether a word of a command line is the flag --config."""
    return word.partition("=")[0] == "--config"


def help_on_fields(spec: str) -> list[str]:
    """Lines on the fields of a config; of none given, on those that every training has."""
    if spec:
        values = flatten_config(load_config(spec))
        return [f"fields of {spec}, with their values, ranges and meanings:", *described(values)]
    every = flatten_config(load_module(CONFIGS / "common.py").base())
    return [
        "fields of every training, with their ranges and meanings; --config NAME:PRESET --help",
        "shows all fields of a preset with their values:",
        *described(dict.fromkeys(every, "")),
    ]


def setup_jax() -> None:
    """Turns on the persistent compilation cache."""
    from paella_jax.files.compile_cache import keep_programs

    keep_programs()


def _keep_freed_memory() -> None:
    """Lets glibc reuse freed memory instead of returning it to the kernel after every step.

    XLA:CPU allocates its temporaries anew in each step; getting the pages back from the kernel cost
    a quarter of the small Paella's step. Must come before any thread gets an arena of its own.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # not glibc: nothing to do
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    for option, value in (
        (trim_threshold, 2**31 - 1),
        (top_pad, 2**28),
        (mmap_max, 0),
        (arena_max, 1),
    ):
        mallopt(option, value)


def _open_more_files() -> None:
    """Raises the limit on open files: a set of thousands of shards has as many."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in MOST_FILES:  # some systems allow less than they say
        wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return


@contextmanager
def helped_by(command: Sequence[str], count: int) -> Iterator[None]:
    """Runs a command in `count` more processes, which end with the block however it ends.

    Each process, this one too, keeps to its share of the processors: threads of several that wait
    for each other on the same ones make small networks slower (docs/speed.md 5.1). To be called
    before JAX starts its threads.
    """
    free = processors()
    shares = [free[place :: count + 1] for place in range(count + 1)]
    others = []
    try:
        for share in shares[1:]:
            _keep_to(share or free)
            others.append(subprocess.Popen(command))
        _keep_to(shares[0] or free)
        yield
    finally:
        _keep_to(free)
        for other in others:
            other.terminate()
            other.wait()


def processors() -> list[int]:
    """The numbers of the processors that this process may use; empty where nobody knows."""
    allowed = getattr(os, "sched_getaffinity", lambda pid: ())  # Linux alone has it
    return sorted(allowed(0))


def _keep_to(numbers: Sequence[int]) -> None:
    """Uses these processors from now on, where that can be chosen."""
    if numbers:
        with suppress(OSError):  # some containers forbid it
            os.sched_setaffinity(0, numbers)


def workers(text: str) -> int:
    """The value of --workers. Raises ArgumentTypeError below 1."""
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {count}")
    return count


def run(main: Callable[[], int]) -> None:
    """Runs an entry point; a user's mistake ends in one clear line and exit code 2.

    So does Ctrl-C, with exit code 130; PAELLA_JAX_TRACEBACK=1 shows where that was.
    """
    _keep_freed_memory()
    _open_more_files()
    for stream in (sys.stdout, sys.stderr):  # a log file shows each line when it is written
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    from absl import logging

    # orbax warns about its own details, and tells in a page what it raises as well.
    shown = bool(os.environ.get("PAELLA_JAX_TRACEBACK"))
    logging.set_verbosity(logging.ERROR if shown else logging.FATAL)
    logging.use_absl_handler()
    silence_late_answers()
    try:
        with interrupts.remembered():
            sys.exit(main())
    except StoppedAtOnce:
        print("stopped at once", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # threads that save are not waited for
    except KeyboardInterrupt:
        if os.environ.get("PAELLA_JAX_TRACEBACK"):
            raise
        interrupts.forget_signal()
        print("stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (UserError, *LIKELY_USER_ERRORS) as error:
        if not isinstance(error, UserError) and os.environ.get("PAELLA_JAX_TRACEBACK"):
            raise
        print(escaped(f"error: {error}"), file=sys.stderr)
        sys.exit(FAILED if is_outage(error) else 2)
    except OSError as error:
        line = describe_disk(error)
        if not line or os.environ.get("PAELLA_JAX_TRACEBACK"):
            raise
        print(escaped(f"error: {line}"), file=sys.stderr)
        sys.exit(FAILED)
