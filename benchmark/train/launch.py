"""Launchers: several local processes, or Slurm jobs through submitit. Claims on steps, and Slurm, do the scheduling.

A launcher takes a plan, the store, and the command line's words, which its processes run ``inline``. It watches them
and returns the exit code, and one line for each failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from contseg.benchmark.plan.build import Plan, StepNode
from contseg.benchmark.plan.config import check_shares
from contseg.benchmark.plan.run_config import LaunchConfig
from contseg.benchmark.store.claims import Claim
from contseg.benchmark.store.files import Store, write_json
from contseg.benchmark.train.slurm_job import PROGRAM, RunStep
from contseg.datasets.errors import UserError
from contseg.datasets.progress import progress

INTERRUPTED = (128 + signal.SIGTERM, -signal.SIGTERM, -9)  # a checkpoint written, nothing begun, killed


def local(plan: Plan, store: Store, words: tuple[str, ...]) -> tuple[int, list[str]]:
    """Several processes on this machine, spread over its GPUs; each takes the next free step.

    Every worker may try a step that fails; its message is reported once. The first Ctrl-C (or SIGTERM, or closing the
    terminal) lets every worker write its checkpoint; a second Ctrl-C kills them.
    """
    claim = Claim(store.out / "logs")  # another launcher may work on this grid; each reads the failures in its own logs
    try:
        own = claim.acquire()
        return _local(plan, store, words, claim.folder / ("" if own else f"{socket.gethostname()}-{os.getpid()}"))
    finally:
        claim.release()


def _local(plan: Plan, store: Store, words: tuple[str, ...], folder: Path) -> tuple[int, list[str]]:
    """``local`` with its logs in ``folder``."""
    n, visible = _local_workers(plan.config.launch)
    logs = [folder / f"worker{i}.log" for i in range(n)]
    logs[0].parent.mkdir(parents=True, exist_ok=True)
    workers: list[subprocess.Popen[bytes]] = []
    call = [*PROGRAM, *words, "--launcher", "inline"]
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(_passing_on(workers))
        for i, log in enumerate(logs):
            if signals:
                break
            file = stack.enter_context(log.open("wb"))
            environment = {**os.environ, **visible(i), "CONTSEG_WORKERS": str(n)}
            # in its own session: Ctrl-C in a terminal reaches only the launcher, which passes it on
            own = subprocess.Popen(
                call, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
            )
            workers.append(own)
            if signals:  # it came while this worker was started, and did not reach it
                _end(own)
        _watch(plan, store, lambda: any(w.poll() is None for w in workers), pause=1)
        codes = [w.wait() for w in workers]
    wrong: dict[str, None] = {}
    done = "ended at once" if -signal.SIGKILL in codes else "the checkpoints are written"
    for code, log in zip(codes, logs, strict=False):  # after a signal not all were started
        failed = [line for line in _lines(log) if line.startswith("failed: ")]
        wrong |= dict.fromkeys(failed)
        if code and not failed and not (signals and code in INTERRUPTED):
            ended = f"{log.stem} ended with exit code {_as_in_a_shell(code)}"
            wrong[f"{ended}; the end of {log}:\n{_tail(log)}"] = None
            done = "not every checkpoint is written"
    if signals:
        return 128 + signals[0], [*wrong, f"interrupted: {done}; run the same command again to resume"]
    return max(map(_as_in_a_shell, codes), default=0), [*wrong]


def _as_in_a_shell(code: int) -> int:
    """The exit code of a process; 128 + the signal that ended it."""
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _passing_on(workers: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass signals to the workers: as SIGTERM, a second SIGINT as SIGKILL. Yields the list of signals that arrived.

    Only SIGKILL of the launcher leaves workers running. A signal that was ignored before (nohup) stays ignored.
    """
    signals: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        signals.append(number)
        for worker in workers:
            _end(worker, at_once=signals.count(signal.SIGINT) > 1)

    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {s: signal.getsignal(s) for s in known if signal.getsignal(s) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield signals
    finally:
        for worker in workers:  # none is alive here, unless watching failed
            _end(worker)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(worker: subprocess.Popen[bytes], at_once: bool = False) -> None:
    """Ask a worker to write its checkpoint and stop; or kill it, with the processes that it started."""
    if worker.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        if at_once and hasattr(os, "killpg"):
            os.killpg(worker.pid, signal.SIGKILL)
        else:
            worker.terminate()


def _local_workers(config: LaunchConfig) -> tuple[int, Callable[[int], dict[str, str]]]:
    import torch

    gpus = torch.cuda.device_count()
    workers = config.workers or gpus or 2
    if gpus:
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")  # numbers or UUIDs; torch counts the existing ones
        names = [n.strip() for n in chosen.split(",")][:gpus] if chosen else [str(i) for i in range(gpus)]
        return workers, lambda i: {"CUDA_VISIBLE_DEVICES": names[i % gpus]}
    threads = max(1, (os.cpu_count() or 1) // workers)
    return workers, lambda i: {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}


def slurm(plan: Plan, store: Store, words: tuple[str, ...]) -> tuple[int, list[str]]:
    """One job a step, with Slurm's own dependencies. Ctrl-C stops the watching, not the jobs; run again to watch."""
    config = plan.config.launch
    check_shares(plan.config.model.norm, plan.trains, config.processes * config.nodes)
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
        _watch(plan, store, alive, pause=30)  # a busy queue should not be asked too often
    except KeyboardInterrupt:
        line = "no longer watching; the jobs continue: run the same command to watch them, scancel to stop them"
        return 128 + signal.SIGINT, [line]
    wrong = []
    for node in plan.to_score_or_train(store):
        if node.key in jobs:
            log = folder / f"{jobs[node.key]}_0_log.out"
            wrong.append(f"failed: {node.title}: job {jobs[node.key]} ended; the end of {log}:\n{_tail(log)}")
    return int(bool(wrong)), wrong


def _queue() -> set[str] | None:
    """This user's waiting and running jobs; ``None`` if Slurm does not answer.

    It asks the queue, because many installations of Slurm have no accounting.
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
    """Submit a step to Slurm, to run after the job ``after``; returns the new job's number."""
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
        "signal_delay_s": _lead(config),
        "additional_parameters": extra,
        "stderr_to_stdout": True,
        # a process that fails ends the job, as the others would wait for it; srun takes no cores from its job
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={config.cpus}"],
        "setup": ["export PYTHONSAFEPATH=1"],  # a job starts in the user's folder: import no module from there
    }
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=1000, python=shlex.quote(sys.executable))
        executor.update_parameters(**{k: v for k, v in asked.items() if v is not None})
        return str(executor.submit(RunStep(words, node.key)).job_id)
    except (submitit.core.utils.FailedJobError, RuntimeError, FileNotFoundError) as error:
        lines = [line for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()[-1:]
        raise UserError(f"Slurm refuses the job: {' '.join(lines)}") from None


def _lead(config: LaunchConfig) -> int:
    """Seconds between the signal and the time limit. ``UserError`` if they leave no time to work."""
    if not 0 <= config.signal_seconds < 60 * config.minutes:
        raise UserError(
            f"launch.signal_seconds={config.signal_seconds} leaves nothing of launch.minutes={config.minutes}: it is "
            "the time between the signal and the limit (0: a tenth of the limit, at most ten minutes)"
        )
    return config.signal_seconds or min(600, 6 * config.minutes)


def _known_jobs(folder: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        known: dict[str, str] = json.loads((folder / "jobs.json").read_text())
        return known
    return {}


def _watch(plan: Plan, store: Store, alive: Callable[[], bool], pause: float) -> None:
    """Show a bar of images trained on, in steps under way too, while somebody trains; looks every ``pause`` s."""
    left, total = [k for k in plan.nodes if not plan.trained(store, k)], plan.shared()
    trained = total - sum(plan.nodes[k].images - _images_done(plan.nodes[k], store) for k in left)
    with progress(None, unit="image", total=total, initial=trained) as bar:
        while True:
            working = alive()
            left = [k for k in left if not plan.trained(store, k)]
            bar.n = total - sum(plan.nodes[k].images - _images_done(plan.nodes[k], store) for k in left)
            bar.set_description_str(f"{len(plan.nodes) - len(left)} of {len(plan.nodes)} steps", refresh=False)
            at_work = [plan.nodes[k].title for k in left if Claim(store.step(k)).path.exists()]
            bar.set_postfix_str("; ".join(at_work[:2]) + (f" and {n} more" if (n := len(at_work) - 2) > 0 else ""))
            if not working:
                return
            time.sleep(min(pause, max(1.0, bar.format_dict["elapsed"] / 20)))


def _images_done(node: StepNode, store: Store) -> int:
    """Training images of a step under way, as its process said last."""
    return node.images * min(store.updates_said(node.key), node.updates) // max(1, node.updates)


def _tail(log: Path) -> str:
    return "\n".join(f"  {line}" for line in _lines(log)[-15:] or [f"(no {log})"])


def _lines(log: Path) -> list[str]:
    """The lines of a log as a screen shows them: without overwritten and empty ones."""
    try:
        lines = log.read_bytes().decode(errors="replace").split("\n")
    except OSError:
        return []
    return [shown for line in lines if (shown := line.rstrip().rpartition("\r")[2])]


LAUNCHERS: dict[str, Callable[[Plan, Store, tuple[str, ...]], tuple[int, list[str]]]] = {"local": local, "slurm": slurm}
