"""The loop of a training run: save, evaluate, step, until done or told to stop.

The order within a step number s (updates done): save when due, evaluate when due and attach the
metrics to that checkpoint, draw, then update. So an evaluation that fails or is stopped loses no
step, a checkpoint is exactly what was measured, and `metrics.jsonl` is on disk before it.
"""

import contextlib
import logging
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from atss_jax.data import loader
from atss_jax.errors import UserError
from atss_jax.evaluation.coco_metrics import known_or_none
from atss_jax.run import (
    build,
    closing,
    evaluation_folder,
    limits,
    pictures,
    preflight,
    recipe_io,
    stop_signal,
    validation,
    workdir_files,
    workdir_lock,
)
from atss_jax.run.recipe import Recipe
from atss_jax.run.step_log import NonFiniteError, StepLog
from atss_jax.run.stop_signal import Preempted, StopSignal
from atss_jax.run.training_setup import Setup
from atss_jax.runtime import compiled, parallel
from atss_jax.runtime.checkpoint import Checkpointer
from atss_jax.runtime.metric_writer import MetricWriter, Progress
from atss_jax.training import train_step
from atss_jax.training.train_step import TrainState


@contextlib.contextmanager
def _warning_only(text: str) -> Generator[None, None, None]:
    """What people look at must not end the run."""
    try:
        yield
    except Exception:  # noqa: BLE001
        logging.warning(text, exc_info=True)


class Loop:
    """The loop and what it holds open.

    Args:
      config: the recipe.
      workdir: folder of the run.
      setup: the run's constants.
      checkpointer: of the workdir.
      val: evaluates; None never does.
      start: step of the restored checkpoint; 0 for a new run.
      known: what its record says of the run; {} for a new run.
      step: the compiled training step.
      stop: the wish to stop.
      run_limits: may end the run before its last step.
    """

    def __init__(
        self,
        config: Recipe,
        workdir: epath.Path,
        setup: Setup,
        checkpointer: Checkpointer,
        val: validation.Validation | None,
        start: int,
        known: dict[str, Any],
        step: compiled.CompiledByShape,
        stop: StopSignal,
        run_limits: limits.Limits,
    ):
        is_first = jax.process_index() == 0
        self._config, self._workdir, self._setup = config, workdir, setup
        self._checkpointer, self._validation, self._start = checkpointer, val, start
        self._writer = MetricWriter(
            workdir,
            keep_until=start,
            is_evaluated=str(start) in known.get("evaluated", {}),
            is_active=is_first,
            wandb_project=config.run.wandb,
            config=recipe_io.recipe_to_dict(config),
        )
        self._progress = Progress(start, setup.num_steps, is_active=is_first)
        self._log = StepLog(config, workdir, setup, self._writer, self._progress, known)
        self._step = step
        self._is_profiling = False
        self._evaluated: dict[str, dict[str, float]] = dict(known.get("evaluated", {}))
        self._stop: tuple[int, bool] = (-1, False)
        self._signal, self._limits = stop, run_limits
        run_limits.resume(known)
        self._batches: loader.Batches | None = None

    def run(self, state: TrainState) -> dict[str, Any]:
        """From the restored state to the last step; returns result.json."""
        run, num_steps = self._config.run, self._setup.num_steps
        ended = self._limits.reason(self._start, self._evaluated)
        if self._start < num_steps and not ended:
            self._log.start(state, list(self._step.costs.values()))
            self._batches = build.train_batches(
                self._config, self._setup.train_set, self._setup.plan, self._start
            )
        elif ended:
            self._progress.note(f"ended at step {self._start}: {ended}")
        else:
            self._progress.note(f"all {num_steps} steps are done already")
        self._signal.check()
        self._signal.enter("the step ends, and its state is saved", stop_signal.STEP_SECONDS)
        self._progress.pause()
        for step in range(self._start, num_steps + 1):
            ended = self._limits.reason(step, self._evaluated)
            done = step == num_steps or bool(ended)
            evaluate = self._evaluation_is_due(step, done)
            save_due = step % run.checkpoint_every == 0 and step > self._start
            if save_due or done or evaluate or self._told_to_stop(step):
                self._save(step, state, wait=done or evaluate)
            finished = self._evaluate(step, state) if evaluate else True
            if not finished or self._told_to_stop(step):
                self._checkpointer.wait()
                raise Preempted(f"saved at step {step}; run the same command again to go on.")
            if evaluate and not done:
                ended = self._limits.reason(step, self._evaluated)
            if done or ended:
                return self._result(step, ended)
            self._profile(step)
            updated = self._update(step, state)
            if updated is None:  # its batch did not come: the state before it is saved
                self._save(step, state, wait=True)
                raise Preempted(
                    f"the batch of step {step + 1} did not come; saved at step {step}; run the "
                    "same command again to go on."
                )
            state = updated
        raise AssertionError("the last step returns")

    def close(self) -> None:
        """Ends workers, pending saves and files."""
        with contextlib.ExitStack() as stack:  # one that fails does not keep the others open
            stack.callback(self._progress.close)
            stack.callback(self._writer.close)
            stack.callback(self._checkpointer.close)
            if self._is_profiling:
                stack.callback(jax.profiler.stop_trace)
            if self._batches is not None:
                stack.callback(self._batches.close)

    def _update(self, step: int, state: TrainState) -> TrainState | None:
        """One update; the batch was prepared while the last one ran. None without the batch."""
        assert self._batches is not None
        waited = time.perf_counter()
        host_batch = self._batches.next_unless(self._is_told)
        if host_batch is None:
            return None
        waited = time.perf_counter() - waited
        batch = parallel.shard_batch(host_batch, self._setup.mesh)
        with (
            jax.profiler.StepTraceAnnotation("train", step_num=step),
            jax.transfer_guard("disallow"),
        ):
            state, metrics = self._step(state, batch)
        flops = self._step.cost(batch).flops
        self._log.add(step, metrics, np.asarray(host_batch.record_index), waited, flops)
        return state

    def _evaluation_is_due(self, step: int, done: bool) -> bool:
        """Whether this step is to be evaluated, and its record has no metrics yet."""
        every = self._config.run.eval_every
        due = done or (every and step and step % every == 0)
        return self._validation is not None and bool(due) and str(step) not in self._evaluated

    def _evaluate(self, step: int, state: TrainState) -> bool:
        """Evaluates the saved state and records it; False when told to stop meanwhile."""
        assert self._validation is not None
        self._progress.note(f"step {step}: evaluating")
        started = time.monotonic()
        self._signal.enter(
            "the evaluation is broken off; its state is saved", stop_signal.EVALUATION_SECONDS
        )
        outcome = self._validation.run(
            train_step.eval_variables(state), should_stop=lambda: self._told_to_stop(step)
        )
        if outcome is None:
            return False
        self._signal.enter("the evaluation is recorded", None)
        known = {k: v for k, v in known_or_none(outcome.metrics).items() if v is not None}
        self._writer.write(step, known, prefix="eval/")
        self._writer.flush()
        if jax.process_index() == 0:
            (self._workdir / "result.json").unlink(missing_ok=True)  # of a run that was shorter
            with _warning_only(f"detections.json of step {step} is not written"):
                dataset = self._validation.dataset
                evaluation_folder.write_detections(self._workdir, dataset, outcome.detections)
        self._evaluated[str(step)] = outcome.metrics
        self._checkpointer.attach(step, outcome.metrics, self._known())
        self._signal.enter(
            "pictures are broken off; all else is saved", stop_signal.EVALUATION_SECONDS
        )
        if jax.process_index() == 0:
            with _warning_only(f"pictures of step {step} are not complete"):
                self._show(step, outcome)
        self._limits.evaluation_seconds = time.monotonic() - started
        self._signal.enter("the step ends, and its state is saved", stop_signal.STEP_SECONDS)
        self._progress.pause()
        return True

    def _known(self) -> dict[str, Any]:
        """What a resumed run needs beside the state."""
        return {"evaluated": self._evaluated, **self._limits.known(), **self._log.known()}

    def _show(self, step: int, outcome: validation.Outcome) -> None:
        """Prints the metrics; writes pictures."""
        assert self._validation is not None
        if outcome.metrics:
            self._progress.note(validation.summary(outcome.metrics))
        pictures.after_evaluation(
            self._config,
            self._workdir,
            self._setup,
            self._validation.dataset,
            outcome.detections,
            step,
            self._writer,
        )

    def _save(self, step: int, state: TrainState, *, wait: bool) -> None:
        """Saves the state; the metrics file is on disk first.

        Raises:
          NonFiniteError: numbers of the state are not finite; nothing is saved.
          RuntimeError: the workdir vanished, or is another run's.
        """
        self._signal.enter("the checkpoint is completed", None)
        self._log.flush(step)
        workdir_lock.check_still_held(self._workdir)
        preflight.check_finite(state, f"the state after step {step}", NonFiniteError)
        self._writer.flush()
        wait = wait or not self._config.run.async_checkpoints
        self._checkpointer.save(step, train_step.state_dict(state), run=self._known(), wait=wait)
        self._signal.enter("the step ends, and its state is saved", stop_signal.STEP_SECONDS)
        self._progress.pause()

    def _told_to_stop(self, step: int) -> bool:
        """True after a signal; several processes agree on the step (asked once a step)."""
        if self._is_told():
            return True
        if self._stop[0] != step:
            self._stop = (step, self._checkpointer.preempted(step))
        return self._stop[1]

    def _is_told(self) -> bool:
        """True after a signal that this process may follow alone."""
        return self._signal.received and jax.process_count() == 1

    def _profile(self, step: int) -> None:
        """Starts and ends the trace that `run.profile_steps` asks for, also when resumed inside."""
        steps = self._config.run.profile_steps
        if not steps:
            return
        if steps[0] <= step < steps[1] and not self._is_profiling:
            jax.profiler.start_trace(str(self._workdir / "profile"))
            self._is_profiling = True
        elif step >= steps[1] and self._is_profiling:
            jax.profiler.stop_trace()
            self._is_profiling = False
            logging.warning("profile of steps %s written to %s", steps, self._workdir / "profile")

    def _result(self, num_steps: int, ended: str) -> dict[str, Any]:
        """Writes result.json.

        Args:
          num_steps: done.
          ended: why the run ends before its last step; "" where it does not.
        """
        metrics = self._evaluated.get(str(num_steps), {})
        seconds = self._log.total_seconds()
        self._signal.enter("the run is complete", stop_signal.COMPLETE_SECONDS, code=0)
        if jax.process_index() != 0:
            return {}
        old: dict[str, Any] = {}
        with contextlib.suppress(UserError):  # a damaged one is written anew
            old = workdir_files.read_result(self._workdir / "result.json")
        is_same = old.get("steps") == num_steps and bool(old.get("metrics")) == bool(metrics)
        if self._start == num_steps and is_same:
            self._close_with_table(num_steps, ended)
            return old  # nothing was left to do
        result = workdir_files.write_result(
            self._workdir,
            about=self._about(num_steps, ended) if metrics else {},
            metrics=metrics,
            steps=num_steps,
            wall_seconds=seconds,
            images_per_s=num_steps * self._config.data.global_batch / max(seconds, 1e-9),
        )
        if self._config.run.report and metrics:
            self._report()
        self._close_with_table(num_steps, ended)
        return result

    def _about(self, step: int, ended: str) -> dict[str, Any]:
        """What the metrics are of, which step was best, and why the run ended early."""
        about = evaluation_folder.about(self._config, step)
        about |= {"best_step": limits.best_step(self._evaluated)}
        return about | ({"ended_by": ended} if ended else {})

    def _close_with_table(self, step: int, ended: str) -> None:
        """Says what the run reached and what to do next."""
        if self._validation is None or not self._evaluated.get(str(step)):
            return
        dataset, evaluated = self._validation.dataset, self._evaluated
        with _warning_only("the closing table is not shown"):
            text = closing.closing_text(
                dataset,
                evaluated,
                step=step,
                ended=ended,
                training_seconds=self._log.total_seconds(),
                seconds=self._limits.seconds,
            )
            self._progress.note(text)
            commands = closing.next_commands(
                *(str(self._workdir), dataset, evaluated),
                step=step,
                program=closing.program_name(),
            )
            self._progress.note(commands, is_wrapped=False)

    def _report(self) -> None:
        """Writes report.html; what people look at must not end the run."""
        from atss_jax.run import report  # Matplotlib: half a second of a start

        with _warning_only("the report is not written"):
            self._writer.flush()
            self._progress.note(f"report: {report.write_report(Path(self._workdir))}")
