"""A real Slurm for the tests: munged, slurmctld and two nodes on loopback, everything in one folder.

The nodes are two slurmd of this machine. The first has the machine's name, which the processes of a job look up. The
folder's files are the whole installation; ``environment`` is what makes Slurm's commands find it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ctld}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,sched_min_interval=100000,batch_sched_delay=0,requeue_delay=0
JobRequeue=1
KillWait=10
MinJobAge=600
ReturnToService=2
NodeName=DEFAULT CPUs={cpus} RealMemory=1000 State=UNKNOWN
NodeName={host} NodeAddr=127.0.0.1 Port={first}
NodeName={host}-2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; "" if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "slurmctld and slurmd are started by root here"


@dataclass
class Slurm:
    """Start with ``with Slurm(folder) as slurm``; raises ``RuntimeError`` with the end of the logs if it does not."""

    folder: Path
    cpus: int = 4
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """For every process that talks to this Slurm."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": PATH}

    def __enter__(self) -> Slurm:
        host = socket.gethostname().partition(".")[0]
        nodes = (host, f"{host}-2")
        for name in ("state", *(f"spool-{node}" for node in nodes)):
            (self.folder / name).mkdir(parents=True)
        ports = {name: _free_port() for name in ("ctld", "first", "second")}
        config = CONFIG.format(host=host, folder=self.folder, cpus=self.cpus, **ports)
        (self.folder / "slurm.conf").write_text(config)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log"}
        files["seed-file"] = "munged.seed"
        try:
            self._start("munged", "--foreground", "--force", *(f"--{k}={self.folder / v}" for k, v in files.items()))
            self._wait("munged", lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D")
            for node in nodes:
                self._start("slurmd", "-D", "-N", node)
            self._wait("slurmctld and slurmd", lambda: self("sinfo", "-h", "-o", "%T").stdout.strip() == "idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self("scancel", "--full", "--me")
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One of Slurm's commands."""
        env = {**os.environ, **self.environment}
        return subprocess.run(words, capture_output=True, text=True, env=env, timeout=60)

    def jobs(self) -> dict[str, dict[str, str]]:
        """Every job that the controller remembers, by number, as ``scontrol`` shows it."""
        lines = self("scontrol", "show", "job", "--oneliner").stdout.splitlines()
        shown = [dict(item.partition("=")[::2] for item in line.split()) for line in lines if line.startswith("JobId=")]
        return {job["JobId"]: job for job in shown}

    def _start(self, *words: str) -> None:
        env = {**os.environ, **self.environment}
        log = (self.folder / f"{words[0]}.out").open("ab")
        self.daemons.append(subprocess.Popen(words, env=env, stdout=log, stderr=log))

    def _wait(self, what: str, ready: object, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not ready():  # type: ignore[operator]
            dead = [d.args[0] for d in self.daemons if d.poll() is not None]  # type: ignore[index]
            if dead or time.monotonic() > deadline:
                files = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
                logs = "\n".join(f"{file.name}: {file.read_text()[-800:]}" for file in files)
                raise RuntimeError(f"{what} did not start ({dead or 'no answer'})\n{logs}")
            time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
