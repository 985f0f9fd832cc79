"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd, on free ports.

Any user can start it.
"""

import os
import pwd
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TypeVar

Answer = TypeVar("Answer")

PATH = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"  # where the daemons are
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv")
"""What must be installed: Debian's munge, slurm-wlm and util-linux."""

_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits for the credentials of its first start to expire: seconds, not two minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]} CPUs=1
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[2]} CPUs=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP GraceTime=5
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10
"""


class Slurm:
    """A cluster: call it with a command and its arguments for what that prints.

    Attributes:
        environment: by which any command finds the cluster.
    """

    def __init__(self, folder: Path) -> None:
        """Take the folder of its configuration."""
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def __call__(self, *command: str) -> str:
        """Run a command.

        Raises:
            RuntimeError: it failed.
        """
        finished = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=180
        )
        if finished.returncode:
            raise RuntimeError(f"{' '.join(command)}: {finished.stdout}{finished.stderr}")
        return finished.stdout


@contextmanager
def two_nodes(folder: Path) -> Iterator[Slurm]:
    """Run a cluster of two nodes of a CPU each, its files in a folder; its jobs end with it."""
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    with ExitStack() as bound:
        listening = [
            bound.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(3)
        ]
        ports = [each.getsockname()[1] for each in listening]
    names = {
        "host": socket.gethostname().partition(".")[0],
        "user": pwd.getpwuid(os.getuid()).pw_name,
    }
    (folder / "slurm.conf").write_text(_CONFIGURATION.format(folder=folder, ports=ports, **names))
    cluster = Slurm(folder)
    options = {
        "key-file": key,
        **{f"{each}-file": folder / f"munged.{each}" for each in ("log", "pid", "seed")},
    }
    options["socket"] = folder / "munge.socket"
    with ExitStack() as running:
        for name, *command in (
            (
                "munged",
                "munged",
                "--foreground",
                "--force",
                *(f"--{option}={value}" for option, value in options.items()),
            ),
            ("slurmctld", "slurmctld", "-D"),
            ("n1", "slurmd", "-D", "-N", "n1"),
            ("n2", "slurmd", "-D", "-N", "n2"),
        ):
            if name == "slurmctld":
                wait_until(options["socket"].exists)
            running.enter_context(_daemon(folder, cluster.environment, name, *command))
        try:
            wait_until(lambda: _states(cluster) == ["idle", "idle"])
        except TimeoutError as error:
            logs = "\n".join(
                f"{file.name}: {file.read_text()[-2000:]}" for file in folder.glob("*.log")
            )
            raise RuntimeError(f"SLURM didn't start\n{logs}") from error
        try:
            yield cluster
        finally:
            cluster("scancel", "--me")  # a step outlives the daemon of its node
            wait_until(lambda: not cluster("squeue", "--noheader"))


def wait_until(said: Callable[[], Answer], seconds: float = 60) -> Answer:
    """Call a function until it returns something true, which is returned.

    Raises:
        TimeoutError: it doesn't.
    """
    end = time.monotonic() + seconds
    while not (answer := said()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.2)
    return answer


def _states(cluster: Slurm) -> list[str]:
    """Return the state of each node, as far as the controller answers."""
    command = ["sinfo", "--Node", "--partition=all", "--noheader", "--format=%T"]
    return subprocess.run(
        command, env=cluster.environment, capture_output=True, text=True, timeout=60
    ).stdout.split()


@contextmanager
def _daemon(
    folder: Path, environment: dict[str, str], name: str, *arguments: str
) -> Iterator[None]:
    """Run a process that ends with this block, or with this process, however that ends."""
    command = ["setpriv", "--pdeathsig", "TERM", *arguments]
    with open(folder / f"{name}.log", "w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
