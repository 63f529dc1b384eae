"""What a Slurm job runs. No torch here: the process that submitit starts only starts another one and waits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

PROGRAM = (sys.executable, "-P", "-m", "contseg.run_benchmark")


@dataclass
class RunStep:
    """The inline command for one step, run as a subprocess by every task of the job.

    submitit calls ``checkpoint`` shortly before the time limit, or at preemption, and requeues what it returns.
    """

    words: tuple[str, ...]
    key: str
    child: Any = field(default=None, repr=False)

    def __call__(self) -> int:
        import submitit

        environment = submitit.JobEnvironment()
        if environment.num_tasks > 1:
            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        call = [*PROGRAM, *self.words, "--launcher", "inline", "--only", self.key]
        own = {"CONTSEG_CORES": os.environ.get("SLURM_CPUS_PER_TASK", "0")}  # not a share of them: this task's
        # Slurm signals every process of the job; this process handles USR2, and tells the step by SIGTERM
        self.child = subprocess.Popen(
            call, env={**os.environ, **own}, preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        )
        code: int = self.child.wait()
        interrupted = code in (128 + signal.SIGTERM, -signal.SIGTERM)
        if code and not (interrupted and environment.global_rank):  # the first process requeues an interrupted job
            raise SystemExit(f"exit code {code}: {' '.join(call)}")  # submitit would print other exceptions at length
        return code

    def checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Let the step write its checkpoint, then ask for a requeue."""
        import submitit

        if self.child is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.child.pid, signal.SIGTERM)
                # not child.wait(): this signal handler may have interrupted it while it holds its lock
                os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(RunStep(self.words, self.key))
