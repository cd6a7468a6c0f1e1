"""What the processes of a run do together: start, wait for one another, agree, and end."""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from paella_jax.config import UserError, differing_fields, from_json, to_json
from paella_jax.files.atomic import write_atomically
from paella_jax.files.disk import describe_disk, is_outage
from paella_jax.outside import say
from paella_jax.training.cluster import Cluster, ClusterError, LateError
from paella_jax.training.lifeline import CRASHED, Lifeline

START_SECONDS = float(os.environ.get("PAELLA_JAX_START_SECONDS", "300"))
PREPARE_SECONDS = 3600.0  # copies of frozen networks of tens of gigabytes
SHARED_SECONDS = START_SECONDS / 10  # network file systems show new files late
HEARTBEAT_SECONDS = 60  # until jax takes a host that went silent for lost
MISTAKE, INTERRUPTED = 2, 130
# In front of an error that process 0 tells, by what the others then end with.
FAILED = {MISTAKE: "mistake: ", CRASHED: "crash: "}
# How a process reads its data may differ from host to host.
PER_HOST = (
    "data.folder",
    "data.validation_folder",
    "data.image_file",
    "data.encoded",
    "data.shards",
    "data.array_record",
    "data.parquet",
    "data.tfds",
    "data.tfds_folder",
    "data.validation_files",
    "data.threads",
    "data.prefetch",
)
_numbers = itertools.count()  # all processes wait in the same order


@contextmanager
def joined(cluster: Cluster) -> Iterator[None]:
    """Starts JAX on all processes of a cluster, and ends it on all of them alike.

    An error or the loss of one process ends the others within seconds, with one line each; where
    JAX itself asks for the others (TPU), within its heartbeat's limit. A mistake of the user is
    told whole by process 0 and shortly by the others.

    Raises:
      ClusterError: not all processes are there, in time.
    """
    if cluster.num_processes == 1:
        if cluster.local_device_ids is not None:
            shown = ",".join(str(i) for i in cluster.local_device_ids)
            jax.config.update("jax_cuda_visible_devices", shown)
        yield
        return
    lifeline = None
    try:
        lifeline = Lifeline(cluster, START_SECONDS) if cluster.num_processes else None
        _initialize(cluster)
        if lifeline is not None:
            lifeline.watch()
        yield
        barrier("end")
        if lifeline is not None:
            lifeline.finish()
    except BaseException as error:
        _end(error, cluster, lifeline)


def _initialize(cluster: Cluster) -> None:
    if not cluster.num_processes:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        return
    jax.distributed.initialize(
        cluster.coordinator_address,
        cluster.num_processes,
        cluster.process_id,
        cluster.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=int(START_SECONDS),
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )


def _end(error: BaseException, cluster: Cluster, lifeline: Lifeline | None) -> NoReturn:
    """Ends this process at once: JAX's orderly end would wait for the others for minutes."""
    code, of_disk = exit_code(error), describe_disk(error)
    first_line = of_disk or _first_line(error)
    if lifeline is not None:
        lifeline.fail(first_line, code)
    if not isinstance(error, UserError | SystemExit) and not of_disk:
        traceback.print_exception(error)
    number = jax.process_index() if jax.distributed.is_initialized() else cluster.process_id
    shown = (
        f"error: {of_disk or (first_line if isinstance(error, SystemExit) else error)}"
        if number == 0
        else f"error on process {number}: {first_line[:300]}"
    )
    sys.stdout.flush()
    say(shown, sys.stderr)
    os._exit(code)


def exit_code(error: BaseException) -> int:
    """What a process ends with: a launcher does not try again after a mistake (2).

    A mistake is only what we name so, as a ValueError may come from anywhere, and not where a disk,
    the network or JAX failed first.
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit) and isinstance(error.code, int):  # by a signal
        return error.code
    failed = isinstance(error.__cause__, jax.errors.JaxRuntimeError) or is_outage(error)
    mistake = isinstance(error, UserError) and not isinstance(error, LateError)
    return MISTAKE if mistake and not failed else CRASHED


def describe_processes(cluster: Cluster, mesh: Mesh) -> str:
    """One line: how many processes and devices, the mesh, and which process this is."""
    count, index = jax.process_count(), jax.process_index()
    here, kind = jax.local_device_count(), jax.devices()[0].device_kind
    sizes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    return (
        f"{count} process{'es' if count > 1 else ''} ({cluster.found}), {jax.device_count()} "
        f"{kind} devices, mesh {sizes}; process {index} on {socket.gethostname()} has {here}"
    )


def barrier(name: str, seconds: float = START_SECONDS) -> None:
    """Waits for all processes. Raises ClusterError naming who did not come in time."""
    if jax.process_count() > 1:
        key = _key(name)
        _gather(key, "", seconds)
        _announce(key, "", 2 * seconds)


def first_alone(name: str, work: Callable[[], Any]) -> None:
    """Process 0 does some work on files; the others wait until it is done.

    Raises:
      ClusterError: on the others, with the first line of process 0's error; LateError where that
        is no mistake.
    """
    if jax.process_count() == 1:
        work()
        return
    key = _key(name)
    if jax.process_index() == 0:
        try:
            work()
        except Exception as error:
            _fail(key, error)
            raise
    _announce(key, "", PREPARE_SECONDS)


def check_same_config(config: ConfigDict) -> None:
    """Raises ClusterError where a process was started with another config than process 0."""
    if jax.process_count() == 1:
        return
    key = _key("configs")
    texts = _gather(key, to_json(config), START_SECONDS)
    for number, text in sorted(texts.items()):
        changes = differing_fields(config, from_json(text), ignore=PER_HOST)
        if changes:
            message = f"process {number} was started with another config: {', '.join(changes)}"
            error = ClusterError(f"{message}; start all with the same command (here -> there)")
            _fail(key, error)
            raise error
    _announce(key, "", 2 * START_SECONDS)


def check_same_start(step: int | None, data: Mapping[str, Any]) -> None:
    """Compares what each process is about to train from and on.

    Args:
      step: of the checkpoint that it goes on from.
      data: what its samples are, by names for messages.

    Raises:
      ClusterError: other data than process 0's.
      LateError: another checkpoint: a network file system may show new files late.
    """
    if jax.process_count() == 1:
        return
    key = _key("the start")
    texts = _gather(key, json.dumps({"step": step, **data}), START_SECONDS)
    for number, text in sorted(texts.items()):
        theirs = json.loads(text)
        error: ClusterError | None = None
        for name in (name for name in data if theirs.get(name) != data[name]):
            error = ClusterError(
                f"process {number} has other training data ({name} {theirs.get(name)}, process 0 "
                f"{data[name]}): give all hosts the same"
            )
        if theirs["step"] != step:
            error = LateError(
                f"process {number} sees the checkpoint of step {theirs['step']} as the newest, "
                f"process 0 that of {step}: does the run folder's file system show them late?"
            )
        if error is not None:
            _fail(key, error)
            raise error
    _announce(key, "", 2 * START_SECONDS)


def failed_alike(name: str, failed: bool) -> bool:
    """Whether some work failed, or went well, on all processes alike.

    A process on which it failed does not wait for long: others may stand in that work for ever.

    Raises:
      LateError: others did not come in time.
    """
    if jax.process_count() == 1:
        return True
    key = _key(name)
    found = set(_gather(key, str(failed), SHARED_SECONDS).values())
    seconds = 2 * SHARED_SECONDS if failed else PREPARE_SECONDS
    return _announce(key, "alike" if len(found) == 1 else "unlike", seconds) == "alike"


def check_shared(workdir: Path) -> None:
    """Raises ClusterError where a process does not see the run folder of process 0."""
    if jax.process_count() == 1:
        return
    mark, key = workdir / ".processes", _key("the run folder")
    if jax.process_index() == 0:
        write_atomically(mark, str(time.time()))
        _announce(key, mark.read_text(), 0)
    else:
        wanted, deadline = _announce(key, "", START_SECONDS), time.monotonic() + SHARED_SECONDS
        while not (mark.is_file() and mark.read_text() == wanted):
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{socket.gethostname()} does not see the run folder {workdir} that process 0 "
                    "prepared: choose a --workdir on a file system that all hosts share"
                )
            time.sleep(0.2)
    barrier("the run folder", 2 * SHARED_SECONDS)
    if jax.process_index() == 0:
        mark.unlink(missing_ok=True)


# --- messages through jax's coordinator, which all kinds of clusters have


def _key(name: str) -> str:
    return f"paella_jax/{next(_numbers)}/{name}"


def _client() -> Any:
    return jax._src.distributed.global_state.client  # there is no public name for it


def _gather(key: str, value: str, seconds: float) -> dict[int, str]:
    """Every process's value, by its number, on process 0; the others only give theirs."""
    client, count = _client(), jax.process_count()
    client.key_value_set(f"{key}/from/{jax.process_index()}", value)
    deadline, wait = time.monotonic() + seconds, 0.01
    while jax.process_index() == 0:
        found = {int(n.rpartition("/")[2]): v for n, v in client.key_value_dir_get(f"{key}/from/")}
        if len(found) == count:
            return found
        if time.monotonic() > deadline:
            missing = ", ".join(str(n) for n in range(count) if n not in found)
            raise LateError(
                f"process {missing} did not come to {_name(key)!r} within {seconds:.0f} s; its log "
                "may tell why"
            )
        time.sleep(wait)
        wait = min(2 * wait, 0.5)
    return {}


def _announce(key: str, message: str, seconds: float) -> str:
    """Process 0 tells a message, for which the others wait; returns it."""
    if jax.process_index() == 0:
        _client().key_value_set(f"{key}/go", message)
        return message
    try:
        told = _client().blocking_key_value_get(f"{key}/go", int(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise LateError(
            f"process 0 did not finish {_name(key)!r} within {seconds:.0f} s"
        ) from error
    for code, mark in FAILED.items():
        if told.startswith(mark):
            kind = ClusterError if code == MISTAKE else LateError
            raise kind(f"process 0: {told.removeprefix(mark)}")
    return told


def _fail(key: str, error: Exception) -> None:
    """Process 0 tells the others of an error that they are to end with, too."""
    mistake = exit_code(error) == MISTAKE
    _announce(key, FAILED[MISTAKE if mistake else CRASHED] + _first_line(error), 0)


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _first_line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"stopped, exit code {error.code}"
    return (str(error).strip() or type(error).__name__).split("\n")[0]
