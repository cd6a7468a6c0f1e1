"""One TCP connection from every process to process 0: the roll call, and news of a failure.

JAX's own start-up ends a process with a C++ stack where another one is late, and tells of a lost
one after a minute. Here process 0 calls the roll on the coordinator's port before JAX takes it
over: who is missing, or there twice, is named. The connections stay open: a process that dies
closes its own at once, and process 0 tells the others.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from typing import Any

from paella_jax.outside import say
from paella_jax.training.cluster import Cluster, ClusterError, LateError

RETRY_SECONDS = 0.3
HELLO_SECONDS = 5.0  # for a connection that says nothing, as a port scanner's
LONGEST = 2**16  # bytes of a message
# Firewalls forget connections on which nothing is sent for some minutes; and a host that went
# silent is noticed after 60 + 8 * 15 seconds.
KEEP_ALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 8))
NEWS_SECONDS = 5.0  # longer than process 0 waits, to hear from it who was late
CRASHED = 1


class Lifeline:
    """The open connections of a process; `watch` ends it with the others."""

    def __init__(self, cluster: Cluster, seconds: float) -> None:
        """Waits until all processes are there.

        Args:
          cluster: with a coordinator's address.
          seconds: how long to wait.

        Raises:
          ClusterError: on every process that is there, naming who is missing, or which number was
            given twice; or that process 0 does not answer.
        """
        self.cluster = cluster
        self.ending = threading.Event()
        first = cluster.process_id == 0
        self.peers = _call_roll(cluster, seconds) if first else _answer(cluster, seconds)
        for connection in self.peers.values():
            _keep_alive(connection)

    def watch(self) -> None:
        """From now on this process ends, with one line, when another one fails or is lost."""
        for name, connection in self.peers.items():
            threading.Thread(target=self._listen, args=(name, connection), daemon=True).start()

    def fail(self, message: str, code: int) -> None:
        """Tells the other processes to end."""
        self.ending.set()
        who = f"process {self.cluster.process_id} on {socket.gethostname()}"
        self._tell({"failed": f"{who}: {message}", "code": code})

    def finish(self) -> None:
        """Tells that the end of this process is no failure."""
        self.ending.set()
        self._tell({"done": True})

    def _tell(self, news: dict[str, Any]) -> None:
        for connection in self.peers.values():
            try:
                _send(connection, news)
            except OSError:
                continue  # gone already

    def _listen(self, name: str, connection: socket.socket) -> None:
        connection.settimeout(None)
        news = _receive(connection)
        if news is not None and "done" in news:
            return
        if news is None:
            news = {"failed": f"{name} is gone", "code": CRASHED}
        if self.ending.is_set():
            return
        self.ending.set()
        if self.cluster.process_id == 0:
            self._tell(news)
        number, count = self.cluster.process_id, self.cluster.num_processes
        sys.stdout.flush()
        say(f"process {number} of {count} stops: {news['failed']}", sys.stderr)
        os._exit(news["code"])


def _call_roll(cluster: Cluster, seconds: float) -> dict[str, socket.socket]:
    """Process 0: connections by the processes' names, once all are there."""
    deadline = time.monotonic() + seconds
    present: dict[int, tuple[str, socket.socket]] = {}
    with _listener(cluster) as listener:
        while len(present) < cluster.num_processes - 1:
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                missing = set(range(1, cluster.num_processes)) - set(present)
                message = f"{_listed(missing)} did not start within {seconds:.0f} s"
                _refuse(present, message)
                raise LateError(f"{message}; their logs may tell why") from None
            connection.settimeout(HELLO_SECONDS)
            hello = _receive(connection)
            if hello is None or "process" not in hello:
                connection.close()
                continue
            number, host = hello["process"], hello["host"]
            wrong = _disagreement(cluster, present, number, hello)
            present[number if number not in present else -1] = (host, connection)
            if wrong:
                _refuse(present, wrong)
                raise ClusterError(f"{wrong}; give each its own, and start all of them again")
    for _, connection in present.values():
        _send(connection, {"go": True})
    return {f"process {n} on {host}": connection for n, (host, connection) in present.items()}


def _disagreement(
    cluster: Cluster, present: dict[int, Any], number: int, hello: dict[str, Any]
) -> str:
    """What speaks against one more process; empty if nothing."""
    count = cluster.num_processes
    if hello["of"] != count:
        return f"process 0 was told of {count} processes, process {number} of {hello['of']}"
    if number in present or number == 0:
        hosts = present[number][0] if number else socket.gethostname()
        return f"two processes have the number {number} (on {hosts} and {hello['host']})"
    return ""


def _refuse(present: dict[int, tuple[str, socket.socket]], message: str) -> None:
    for _, connection in present.values():
        _send(connection, {"refused": message})


def _listed(numbers: set[int]) -> str:
    shown = ", ".join(str(n) for n in sorted(numbers)[:20])
    return f"process{'es' if len(numbers) > 1 else ''} {shown}{', ...' * (len(numbers) > 20)}"


def _listener(cluster: Cluster) -> socket.socket:
    port = cluster.coordinator_address.rpartition(":")[2]
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(
            ("", int(port)), family=family, dualstack_ipv6=dual, backlog=cluster.num_processes
        )
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"process 0 cannot listen on port {port} of this host ({error}): another process 0 may "
            "be running here, or an old run; end it, or give another port"
        ) from error


def _answer(cluster: Cluster, seconds: float) -> dict[str, socket.socket]:
    """The others: the connection to process 0, once it has seen all."""
    host, _, port = cluster.coordinator_address.rpartition(":")
    deadline = time.monotonic() + seconds + NEWS_SECONDS
    hello = {"process": cluster.process_id, "of": cluster.num_processes,
             "host": socket.gethostname()}  # fmt: skip
    reason = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=left)
            _send(connection, hello)
            reply = _receive(connection)
        except OSError as error:
            reason, reply = str(error), None
        if reply is not None and "refused" in reply:
            raise ClusterError(f"process 0 refused the start: {reply['refused']}")
        if reply is not None:
            return {"process 0": connection}
        time.sleep(RETRY_SECONDS)
    raise LateError(
        f"process 0 did not answer at {cluster.coordinator_address} within {seconds:.0f} s "
        f"({reason}): is it running, is this its host's name, and is the port open?"
    )


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE:
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(connection: socket.socket, news: dict[str, Any]) -> None:
    connection.sendall(json.dumps(news).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """One line; None where the other end is closed, silent or says something else."""
    data = b""
    try:
        # Byte by byte: what follows the line belongs to the next call.
        while not data.endswith(b"\n") and len(data) < LONGEST:
            part = connection.recv(1)
            if not part:
                return None
            data += part
        news = json.loads(data)
    except (OSError, ValueError):
        return None
    return news if isinstance(news, dict) else None
