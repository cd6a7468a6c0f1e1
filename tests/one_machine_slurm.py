"""A real SLURM of two nodes on this machine, in a folder of its own, while a test takes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue", "scancel")
# Debian has the daemons where ordinary users' PATH does not lead.
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
# To jax the first node's name is the coordinator's address: these resolve without /etc/hosts.
NODES = ("127.0.0.1", "127.0.0.2")


def missing() -> list[str]:
    """What a SLURM on one machine needs and this machine lacks."""
    lacking = [program for program in PROGRAMS if not shutil.which(program, path=PATH)]
    return lacking + (["root"] if os.geteuid() else [])


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def configuration(folder: Path) -> str:
    """slurm.conf: root starts everything, nothing is outside of the folder but the ports."""
    controller, *ports = free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={name} NodeAddr=127.0.0.1 Port={port} CPUs={os.cpu_count()} State=UNKNOWN"
        for name, port in zip(NODES, ports, strict=True)
    )
    return f"""ClusterName=one
SlurmctldHost={socket.gethostname()}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
KillWait=60
MailProg=/bin/true
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=all Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """Runs SLURM's commands against the cluster in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        # The test's own XLA settings are not the job's; neither is a SLURM around this one.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "XLA_", "JAX_"))}
        self.environment = kept | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def run(self, *command: str, **environment: str) -> str:
        """The command's output; raises with what it said when it fails."""
        done = subprocess.run(
            command,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows about a job, such as JobState, ExitCode and Restarts."""
        fields = self.run("scontrol", "show", "job", "--oneliner", number).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def idle(self) -> bool:
        """Whether no node has a job, nor what is left of one."""
        states = self.run("sinfo", "--noheader", "--Node", "--format=%t").split()
        return states == ["idle"] * len(NODES)

    def wait(self, number: str, *states: str, seconds: float = 180) -> dict[str, str]:
        """Waits until the job is in one of the states; raises with what it is in when it is not."""
        end = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < end, f"job {number} is not in {states}: {job}"
            time.sleep(0.2)
        return job


@contextmanager
def one_machine_slurm(folder: Path):
    """Starts munged, the controller and two nodes; ends them all, by their process ids."""
    (folder / "state").mkdir(parents=True)
    for name in NODES:
        (folder / f"spool-{name}").mkdir()
    (folder / "slurm.conf").write_text(configuration(folder))
    (folder / "munge.key").write_bytes(os.urandom(256))
    (folder / "munge.key").chmod(0o400)
    slurm = Slurm(folder)
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D", "-i"],
        *(["slurmd", "-D", "-N", name] for name in NODES),
    ]
    daemons = []
    with (folder / "daemons.log").open("w") as log:
        try:
            for command in commands:
                # Sessions of their own: SLURM signals process groups, and this is not one of its.
                daemons.append(
                    subprocess.Popen(command, env=slurm.environment, stdout=log, stderr=log,
                                     start_new_session=True)
                )  # fmt: skip
                time.sleep(0.5 if command[0] == "munged" else 0)
            await_nodes(slurm, daemons)
            yield slurm
        finally:
            end_all(slurm, daemons)


def await_nodes(slurm: Slurm, daemons: list[subprocess.Popen], seconds: float = 60) -> None:
    """Until every node takes jobs."""
    end = time.monotonic() + seconds
    up = False
    while not up:
        ended = [daemon.args for daemon in daemons if daemon.poll() is not None]
        assert not ended, f"{ended} ended:\n{(slurm.folder / 'daemons.log').read_text()}"
        assert time.monotonic() < end, f"the nodes do not come up, see {slurm.folder}"
        time.sleep(0.2)
        with suppress(AssertionError):  # the controller does not answer yet
            up = slurm.idle()


def end_all(slurm: Slurm, daemons: list[subprocess.Popen]) -> None:
    """Jobs first, as they outlive the daemons; the daemons after them, the last one first."""
    if all(daemon.poll() is None for daemon in daemons):
        cancel = ["scancel", "--user=root", "--full"]
        for command in ([*cancel, "--signal=KILL"], cancel):
            subprocess.run(command, env=slurm.environment, capture_output=True, timeout=60)
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
