"""Training that stands still on several processes ends, so that a launcher starts it again."""

from __future__ import annotations

import subprocess
import sys

import small

PROGRAM = """
import sys, time
import jax
jax.process_count = lambda: int(sys.argv[1])
from paella_jax.training.watchdog import Watchdog
watchdog = Watchdog(0.5)
for _ in range(int(sys.argv[2])):
    time.sleep(0.1)
    watchdog.beat()
if len(sys.argv) > 3:
    watchdog.stop()
time.sleep(float(1.5))
print("went on")
"""


def watched(*arguments):
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, cwd=small.ROOT, capture_output=True, text=True, timeout=100)


def test_updates_that_stop_coming_end_the_process():
    done = watched("2", "8")
    assert done.returncode == 1 and "went on" not in done.stdout
    assert "no update was finished for" in done.stderr and "File " in done.stderr


def test_training_that_is_over_and_of_one_process_is_left_alone():
    for arguments in (("2", "1", "stop"), ("1", "1")):
        done = watched(*arguments)
        assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
