"""What these tests stand on: a real SLURM of two nodes on this machine, as whichever user runs them."""

import importlib.metadata
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager

import pytest

PATH = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"  # where the daemons lie, for everybody
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv")
PACKAGES = ("hydra-joblib-launcher", "hydra-ray-launcher", "hydra-submitit-launcher", "moto", "optuna", "s3fs")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits for the credentials of its first start to expire: here for seconds, by default for two minutes.
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


def pytest_configure(config):
    missing = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    if missing:
        raise pytest.UsageError(f"no {', '.join(missing)} here: apt-get install munge slurm-wlm util-linux, as root")
    installed = {each.name for each in importlib.metadata.distributions()}
    if missing := [name for name in PACKAGES if name not in installed]:
        command = f"{sys.executable} -m pip install --editable '.[dev,cluster]' --constraint constraints.txt"
        raise pytest.UsageError(f"no {', '.join(missing)} in this environment: {command}")


class Slurm:
    """A cluster: call it with a command and its arguments for what that prints.

    Attributes:
        environment: by which any command finds the cluster.
    """

    def __init__(self, folder):
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}

    def __call__(self, *command, timeout=60):
        finished = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout)
        assert finished.returncode == 0, (command, finished.stdout, finished.stderr)
        return finished.stdout


@contextmanager
def daemon(folder, environment, name, *arguments):
    """A process that ends with this block, or with this process, however that ends."""
    with open(folder / f"{name}.log", "w") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *arguments],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until(said, seconds=60):
    """Call a function until it returns something true, which is returned."""
    end = time.monotonic() + seconds
    while not (answer := said()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)
    return answer


def pid_of(run):
    """The process that trains in a run directory, by the name of its newest event file."""
    return int(max((run / "tensorboard").glob("events*")).name.rpartition(".")[2])


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A SLURM of two nodes of a CPU each; ``slurm("squeue", "--me")`` is what the command prints there."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    with ExitStack() as bound:
        listening = [bound.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(3)]
        ports = [each.getsockname()[1] for each in listening]
    names = {"host": socket.gethostname().partition(".")[0], "user": pwd.getpwuid(os.getuid()).pw_name}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, ports=ports, **names))
    cluster = Slurm(folder)
    options = {"key-file": key, **{f"{each}-file": folder / f"munged.{each}" for each in ("log", "pid", "seed")}}
    options["socket"] = folder / "munge.socket"
    with ExitStack() as running:
        for name, *command in (
            ("munged", "munged", "--foreground", "--force", *(f"--{option}={value}" for option, value in options.items())),
            ("slurmctld", "slurmctld", "-D"),
            ("n1", "slurmd", "-D", "-N", "n1"),
            ("n2", "slurmd", "-D", "-N", "n2"),
        ):
            if name == "slurmctld":
                wait_until(options["socket"].exists)
            running.enter_context(daemon(folder, cluster.environment, name, *command))
        try:
            wait_until(lambda: _idle(cluster) == ["idle", "idle"])
        except AssertionError as error:
            logs = "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in folder.glob("*.log"))
            raise AssertionError(f"SLURM didn't start\n{logs}") from error
        yield cluster
        cluster("scancel", "--me")  # a step outlives the daemon of its node
        wait_until(lambda: not cluster("squeue", "--noheader"))


def _idle(cluster):
    """The state of each node, as far as the controller answers."""
    command = ["sinfo", "--Node", "--partition=all", "--noheader", "--format=%T"]
    finished = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=60)
    return finished.stdout.split()
