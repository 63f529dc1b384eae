"""Where steps run: several local processes, or Slurm jobs by submitit. The steps' claims and Slurm do the scheduling.

Each launcher takes a plan, the store, and the words of the command line that the processes run ``inline``; it watches
them and gives the exit code, and what went wrong in lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmark.claims import Claim
from benchmark.config import LaunchConfig, check_shares
from benchmark.job import PROGRAM, RunStep
from benchmark.plan import Plan, StepNode
from benchmark.store import Store, write_json
from datasets.errors import UserError


def local(plan: Plan, store: Store, words: tuple[str, ...]) -> tuple[int, list[str]]:
    """Some processes side by side on this machine, spread over its GPUs; each takes steps as they come free.

    A step that fails may be tried by every worker; what they say of it is given once.
    """
    workers, visible = _local_workers(plan.config.launch)
    logs = store.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    processes: list[tuple[subprocess.Popen[bytes], Path]] = []
    with contextlib.ExitStack() as stack:
        for i in range(workers):
            log = logs / f"worker{i}.log"
            file = stack.enter_context(log.open("wb"))
            environment = {**os.environ, **visible(i)}
            call = [sys.executable, str(PROGRAM), *words, "--launcher", "inline"]
            processes.append((subprocess.Popen(call, stdout=file, stderr=file, env=environment), log))
        try:
            _watch(plan, store, lambda: any(p.poll() is None for p, _ in processes), pause=1)
        except KeyboardInterrupt:
            for process, _ in processes:
                process.send_signal(signal.SIGTERM)
        codes = [p.wait() for p, _ in processes]
    wrong: dict[str, None] = {}
    for code, (_, log) in zip(codes, processes, strict=True):
        failed = [line for line in _lines(log) if line.startswith("failed: ")]
        wrong |= dict.fromkeys(failed)
        if code and not failed:
            wrong[f"{log.stem} ended with exit code {code}; the end of {log}:\n{_tail(log)}"] = None
    return max((abs(c) for c in codes), default=0), [*wrong]


def _local_workers(config: LaunchConfig) -> tuple[int, Callable[[int], dict[str, str]]]:
    import torch

    gpus = torch.cuda.device_count()
    workers = config.workers or gpus or 2
    if gpus:
        return workers, lambda i: {"CUDA_VISIBLE_DEVICES": str(i % gpus)}
    threads = max(1, (os.cpu_count() or 1) // workers)
    return workers, lambda i: {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}


def slurm(plan: Plan, store: Store, words: tuple[str, ...]) -> tuple[int, list[str]]:
    """One job a step, with Slurm's own dependencies. Ctrl-C stops watching, not the jobs; run again to watch on."""
    config = plan.config.launch
    check_shares(plan.config, config.processes * config.nodes)
    folder = store.out.absolute() / "logs" / "slurm"
    known, queue = _known_jobs(folder), _queue()
    jobs: dict[str, str] = {}
    for node in plan.to_score_or_train(store):
        job = known.get(node.key)
        if job is None or (queue is not None and job not in queue):
            after = jobs.get(node.parent.key) if node.parent else None
            job = _submit(config, folder, node, words, after)
        jobs[node.key] = job
        write_json(folder / "jobs.json", {**known, **jobs})
    print(f"{len(jobs)} jobs: {', '.join(jobs.values()) or 'none'}; logs in {folder}", flush=True)

    def alive() -> bool:
        queue = _queue()
        return queue is None or any(job in queue for job in jobs.values())

    try:
        _watch(plan, store, alive, pause=30)  # a busy queue is not to be asked too often
    except KeyboardInterrupt:
        line = "no longer watching; the jobs go on: run the same command to watch them, scancel to end them"
        return 128 + signal.SIGINT, [line]
    wrong = []
    for node in plan.to_score_or_train(store):
        if node.key in jobs:
            log = folder / f"{jobs[node.key]}_0_log.out"
            wrong.append(f"failed: {node.title}: job {jobs[node.key]} ended; the end of {log}:\n{_tail(log)}")
    return int(bool(wrong)), wrong


def _queue() -> set[str] | None:
    """This user's jobs that wait or run; ``None`` if Slurm does not answer.

    Asked of the queue and not of the accounting, which many a Slurm has not.
    """
    try:
        call = ["squeue", "--me", "--noheader", "--format=%A"]
        answer = subprocess.run(call, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        raise UserError("there is no Slurm here: squeue is not installed; use --launcher local") from None
    except subprocess.SubprocessError:
        return None
    return set(answer.stdout.split())


def _submit(config: LaunchConfig, folder: Path, node: StepNode, words: tuple[str, ...], after: str | None) -> str:
    """Hand a step to Slurm, to be run after a job; the new job's number."""
    import submitit

    extra: dict[str, Any] = dict(o.partition("=")[::2] for o in config.options)
    if after is not None:
        extra |= {"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"}
    asked = {
        "job_name": f"contseg-{node.key[:8]}",
        "partition": config.partition or None,
        "account": config.account or None,
        "time": config.minutes,
        "nodes": config.nodes,
        "ntasks_per_node": config.processes,
        "cpus_per_task": config.cpus,
        "gpus_per_node": config.processes if config.gpus else None,
        "mem": config.memory or None,
        "signal_delay_s": config.signal_seconds,
        "additional_parameters": extra,
        "stderr_to_stdout": True,
        "setup": [f"export PYTHONPATH={shlex.quote(str(PROGRAM.parent))}:$PYTHONPATH"],  # for RunStep
    }
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=1000, python=shlex.quote(sys.executable))
        executor.update_parameters(**{k: v for k, v in asked.items() if v is not None})
        return str(executor.submit(RunStep(words, node.key)).job_id)
    except (submitit.core.utils.FailedJobError, RuntimeError, FileNotFoundError) as error:
        lines = [line for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()[-1:]
        raise UserError(f"Slurm does not take the job: {' '.join(lines)}") from None


def _known_jobs(folder: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        known: dict[str, str] = json.loads((folder / "jobs.json").read_text())
        return known
    return {}


def _watch(plan: Plan, store: Store, alive: Callable[[], bool], pause: float) -> None:
    """A bar over the plan's steps for as long as somebody works on them; looks every ``pause`` seconds at most."""
    left = [k for k in plan.nodes if not store.trained(k)]
    with tqdm(total=len(plan.nodes), initial=len(plan.nodes) - len(left), desc="steps", unit="step") as bar:
        while True:
            working = alive()
            left = [k for k in left if not store.trained(k)]
            bar.n = len(plan.nodes) - len(left)
            at_work = [plan.nodes[k].title for k in left if Claim(store.step(k)).path.exists()]
            bar.set_postfix_str("; ".join(at_work[:2]) + (f" and {n} more" if (n := len(at_work) - 2) > 0 else ""))
            if not working:
                return
            time.sleep(min(pause, max(1.0, bar.format_dict["elapsed"] / 20)))


def _tail(log: Path) -> str:
    return "\n".join(f"  {line}" for line in _lines(log)[-15:] or [f"(no {log})"])


def _lines(log: Path) -> list[str]:
    """What a log shows on a screen: of lines written over one another, the last; no empty ones."""
    try:
        lines = log.read_bytes().decode(errors="replace").split("\n")
    except OSError:
        return []
    return [shown for line in lines if (shown := line.rstrip().rpartition("\r")[2])]


LAUNCHERS: dict[str, Callable[[Plan, Store, tuple[str, ...]], tuple[int, list[str]]]] = {"local": local, "slurm": slurm}
