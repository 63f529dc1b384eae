"""Walk a plan: train what is missing, score what is not scored, write the records. Nothing is trained twice."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs, InitProcessGroupKwargs

from contseg.benchmark.plan.build import Plan, Run, StepNode
from contseg.benchmark.plan.config import Config
from contseg.benchmark.store import tracker
from contseg.benchmark.store.claims import Claim
from contseg.benchmark.store.files import LostStateError, Store, read_sealed, write_sealed
from contseg.benchmark.train.distributed import InterruptedStepError, check_stop, gather
from contseg.benchmark.train.step_record import make_record
from contseg.benchmark.train.step_runner import NotScoredError, Outcome, StepRunner
from contseg.benchmark.train.watch import NonFiniteLossError
from contseg.datasets.errors import UserError
from contseg.methods.faults import is_a_plugins
from contseg.methods.registry import reason

PATIENCE = timedelta(hours=6)  # the first process reads all label maps while the others wait; NCCL's own: ten minutes


def make_accelerator(config: Config, out: Path) -> Accelerator:
    """The accelerator of this process; ``out``: where a tracker writes its files.

    Accelerate joins the processes of a launcher only on GPUs, or where it is told to use the CPU: without a GPU it is.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.allow_tf32 = False
    accelerator = Accelerator(
        mixed_precision="no",  # the trainer's own autocast ends with the networks, and casts nothing that no term reads
        **tracker.options(config.run.tracker, out),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )
    if config.run.deterministic and accelerator.device.type == "cuda":
        # where torch only warns, the backward passes of its fused attentions add in any order
        for enable in ("enable_flash_sdp", "enable_mem_efficient_sdp", "enable_cudnn_sdp"):
            getattr(torch.backends.cuda, enable)(False)
    if config.train.precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("train.precision=fp16 needs a GPU: on a CPU set train.precision=bf16, or no")
    return accelerator


class Runner:
    """Works through one plan, with the processes of one program. ``tell`` is called for every record it writes."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        accelerator: Accelerator,
        say: Callable[[str], None] = print,
        *,
        tell: Callable[[Run, dict[str, Any]], None] = lambda run, record: None,
    ) -> None:
        self.plan, self.store, self.accelerator, self.say, self.tell = plan, store, accelerator, say, tell
        self.steps = StepRunner(plan, store, accelerator, say=say, stop=self._stop)
        self.outcome: Outcome = self.steps.outcome
        self._signal: int | None = None
        self._failed_keys: set[str] = set()
        self._not_scored: set[str] = set()  # trained steps with an evaluation that failed
        self._said = ""
        self._places: dict[str, list[tuple[Run, int]]] = {key: [] for key in plan.nodes}  # the runs that contain a step
        for run in plan.runs:
            for t, cell in enumerate(run.cells):
                self._places[cell.node.key].append((run, t))

    def run(self, only: Collection[str] = ()) -> Outcome:
        """Train and score everything that is missing, or only the steps with these keys.

        If a step fails, only its descendants are not trained. Other programs may work on the same grid.
        """
        before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._walk(only)
            while not gather(self._write_records(self.plan.nodes))[0]:
                self._walk(only)
        except InterruptedStepError:
            self.outcome.interrupted = self._signal or signal.SIGTERM
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)
        if self.accelerator.is_main_process:
            self._remove_dead_claims()
        self.accelerator.wait_for_everyone()
        return self.outcome

    def _remove_dead_claims(self) -> None:
        """Remove the claims that dead processes left on finished steps."""
        for claim in (Claim(self.store.step(key)) for key in self.plan.nodes):
            if claim.path.exists() and claim.acquire():
                claim.release()

    def _walk(self, only: Collection[str]) -> None:
        """Take an unclaimed step whose parent is trained, or wait, until all steps are done."""
        while not self.outcome.branched:
            check_stop(self._stop)
            choice = gather(self._choose(only) if self.accelerator.is_main_process else None)[0]
            if choice is None:
                return
            if choice == "wait":
                time.sleep(1)
                continue
            key, work, left = choice
            try:
                do = self.steps.train if work == "train" else self.steps.score
                self._guarded(self.plan.nodes[key], f"[{left} left]", do)
                self._write_records([key])
            finally:
                if self.accelerator.is_main_process:
                    self._claim.release()

    def _choose(self, only: Collection[str]) -> tuple[str, str, int] | str | None:
        """Claim a step: key, work, number of steps left. "wait" if others have claimed all, ``None`` at the end."""
        todo, missing = self._todo(only)
        for node in todo:
            parent_missing = node.parent is not None and node.parent.key in missing
            failed = self._failed_ancestor(node)
            if failed is not None or (parent_missing and only and node.parent not in todo):
                self._fail_step(node, f"not trained, because {(failed or node.parent or node).title} is missing")
            elif not parent_missing or node.key not in missing:
                self._claim = Claim(self.store.step(node.key))
                self._refuse_other_code(node)
                if self._claim.acquire():
                    again, missing = self._todo(only)  # another program may have done it meanwhile
                    if node in again:
                        return node.key, "train" if node.key in missing else "score", len(todo)
                    self._claim.release()
        left = [n for n in todo if n.key not in self._failed_keys]
        if left:
            self._say_waiting(left)
        return "wait" if left else None

    def _todo(self, only: Collection[str]) -> tuple[list[StepNode], set[str]]:
        """Steps to train or to score, and the keys of those to train."""
        over = self._failed_keys | self._not_scored
        todo = [n for n in self.plan.to_score_or_train(self.store) if n.key not in over]
        missing = {n.key for n in self.plan.to_train(self.store)}
        return [n for n in todo if not only or n.key in only], missing

    def _refuse_other_code(self, node: StepNode) -> None:
        """``UserError`` if another program, with other code, has replaced a step that was trained here."""
        key, origins = node.key, self.plan.origins
        if key in self.steps.trained and origins.kept(key, self.store) and origins.differs(key, self.store):
            raise UserError(
                f"{node.title} was trained by this program, and again by another program with other code: stop one of "
                "them, or give each its own folder with --out"
            )

    def _say_waiting(self, left: list[StepNode]) -> None:
        """Say once who holds the step that is waited for."""
        held = [n for n in left if Claim(self.store.step(n.key)).path.exists()]
        if held:
            line = f"waiting: {held[0].title} is being trained by {Claim(self.store.step(held[0].key)).holder()}"
            if line != self._said:
                self.say(line)
            self._said = line

    # --- one step -------------------------------------------------------------------------------------------------

    def _failed_ancestor(self, node: StepNode) -> StepNode | None:
        ancestor = node.parent
        while ancestor is not None and ancestor.key not in self._failed_keys:
            ancestor = ancestor.parent
        return ancestor

    def _guarded(self, node: StepNode, count: str, work: Callable[[StepNode], None]) -> None:
        """Do a step's work. A failure becomes one line of the outcome; interruptions and ``UserError`` are raised."""
        began = time.perf_counter()
        try:
            work(node)
        except (InterruptedStepError, UserError):
            raise
        except LostStateError as error:
            self.say(f"{error}: its step will be retrained")  # the plan lists it again
        except NonFiniteLossError as error:
            self._fail_step(node, str(error))
        except NotScoredError as failed:
            self._not_scored.add(node.key)
            for title, one in failed.errors.items():
                self._fail(title, _explained(one))
        except Exception as error:
            if self.accelerator.num_processes > 1:
                raise  # the other processes wait in a collective operation: the launcher stops all
            self._fail_step(node, _explained(error))
        else:
            if self.accelerator.is_main_process:
                self.say(f"{count} {node.title}: {time.perf_counter() - began:.0f} s")
        finally:
            self.accelerator.free_memory()  # Accelerate keeps every model and optimiser that it has prepared

    def _fail_step(self, node: StepNode, reason: str) -> None:
        self._failed_keys.add(node.key)
        self._fail(node.title, reason)

    def _fail(self, title: str, reason: str) -> None:
        self.outcome.failed[title] = reason
        self.say(f"failed: {title}: {reason}")

    # --- records --------------------------------------------------------------------------------------------------

    def _write_records(self, keys: Iterable[str]) -> bool:
        """Write the missing records of these steps' scored cells. False if a score or metadata is lost."""
        if not self.accelerator.is_main_process:
            return True
        whole = True
        for run, t in (place for key in keys for place in self._places[key]):
            cell = run.cells[t]
            path = self.store.score(cell.node.key, cell.score)
            if not self.plan.scored(self.store, cell) or self.plan.recorded(self.store, cell):
                continue
            score = read_sealed(path)
            try:
                meta = self.store.meta(cell.node.key)
            except LostStateError:
                path.unlink(missing_ok=True)  # nothing tells which training was scored
                score = None
            if score is None:
                whole = False
            else:
                record = make_record(self.plan, run, t, score, meta)
                write_sealed(self.store.records / cell.path, record)
                self.tell(run, record)
        return whole

    def _stop(self) -> bool:
        return self._signal is not None

    def _on_signal(self, number: int, frame: Any) -> None:
        """Stop after a checkpoint; a second Ctrl-C stops at once.

        A second SIGTERM does not: launchers and Slurm repeat it to processes that are stopping already, before SIGKILL.
        """
        if self._signal is not None and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._signal = self._signal or number


def _explained(error: Exception) -> str:
    """A failure in one line; what is no plugin's shows its traceback too."""
    if not is_a_plugins(error):
        traceback.print_exception(error, file=sys.stderr)
    return reason(error)
