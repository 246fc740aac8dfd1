"""The training loop: restore, then evaluate, save, step, until done or told to stop.

The order within a step number s (updates done): evaluate when due, save when due, then update. So
a checkpoint is exactly what was measured, and `metrics.jsonl` is on disk before the checkpoint
that counts on it.
"""

import dataclasses
import logging
import signal
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from atss_jax.data import loader
from atss_jax.evaluation.coco_metrics import MAIN_METRIC
from atss_jax.run import build, pictures, recipe_io, validation, workdir_files
from atss_jax.run.recipe import Recipe
from atss_jax.run.step_log import StepLog
from atss_jax.run.training_setup import Setup, initial_state, set_up
from atss_jax.runtime import compiled, parallel
from atss_jax.runtime.checkpoint import Checkpointer
from atss_jax.runtime.metric_writer import MetricWriter, Progress, read_rows
from atss_jax.training import train_step
from atss_jax.training.train_step import TrainState

PREEMPTED_EXIT_CODE = 75
"""EX_TEMPFAIL: saved and stopped on a signal; the same command goes on."""


class Preempted(Exception):
    """The run was told to stop, and its state is saved."""


class StopSignal:
    """Remembers SIGTERM and SIGINT (single process); a second one acts at once.

    With several processes the notice reaches all of them through `Checkpointer.preempted`.
    """

    def __init__(self):
        self.received = False
        if jax.process_count() == 1:
            self._old = {
                s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)
            }
        else:
            self._old = {}

    def _receive(self, number: int, _frame: Any) -> None:
        self.received = True
        signal.signal(number, self._old[signal.Signals(number)])

    def restore(self) -> None:
        """Puts the former handlers back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)


def train(config: Recipe, workdir: epath.Path, *, with_evaluation: bool) -> dict[str, Any]:
    """Trains a recipe in a workdir, going on from its newest checkpoint.

    Args:
      config: the recipe.
      workdir: folder of the run.
      with_evaluation: also evaluate, when the recipe says and at the end.

    Returns:
      The content of result.json.

    Raises:
      Preempted: told to stop; saved.
      NonFiniteError: too many steps in a row with non-finite numbers.
    """
    setup = set_up(config)
    workdir_files.claim_workdir(config, workdir, training=True)
    workdir_files.write_classes(workdir, setup.train_set.class_names, setup.train_set.category_ids)
    common = dataclasses.replace(config, run=dataclasses.replace(config.run, process_id=0))
    parallel.assert_same_everywhere(recipe_io.recipe_to_json(common), "the configuration")
    parallel.assert_same_everywhere(setup.plan.fingerprint(), "the data plan")
    compiled.use_compilation_cache(config.run.compilation_cache, workdir)
    checkpointer = Checkpointer(
        workdir / "checkpoints",
        keep_last=config.run.keep_last,
        keep_best=config.run.keep_best,
        keep_every=config.run.keep_every,
    )
    restored = checkpointer.restore_latest(train_step.state_dict(setup.abstract_state))
    if restored is None:
        start, state = 0, initial_state(config, setup)
    else:
        start, state = restored[0], TrainState(**restored[1])
        checkpointer.discard_after(start)
    val = None
    if with_evaluation:
        dataset = build.load_dataset(config, "val")
        validation.check_same_classes(setup.train_set, dataset)
        val = validation.Validation(config, setup.settings.model, setup.mesh, dataset=dataset)
    loop = _Loop(config, workdir, setup, checkpointer, val, start)
    try:
        return loop.run(state)
    finally:
        loop.close()


class _Loop:
    """The loop and what it holds open."""

    def __init__(
        self,
        config: Recipe,
        workdir: epath.Path,
        setup: Setup,
        checkpointer: Checkpointer,
        val: validation.Validation | None,
        start: int,
    ):
        is_first = jax.process_index() == 0
        self._config, self._workdir, self._setup = config, workdir, setup
        self._checkpointer, self._validation, self._start = checkpointer, val, start
        self._writer = MetricWriter(
            workdir, keep_until=start, is_active=is_first, wandb_project=config.run.wandb
        )
        self._progress = Progress(start, setup.num_steps, is_active=is_first)
        self._log = StepLog(config, workdir, setup, self._writer, self._progress)
        self._step = compiled.CompiledByShape(
            train_step.make_train_step(setup.settings, setup.mesh, setup.shardings),
            expected=len(setup.plan.used_buckets),
        )
        self._evaluated = {
            row["step"]: {k.removeprefix("eval/"): v for k, v in row.items() if k != "step"}
            for row in read_rows(workdir / "metrics.jsonl")
            if f"eval/{MAIN_METRIC}" in row
        }
        self._stop: tuple[int, bool] = (-1, False)
        self._signal: StopSignal | None = None
        self._batches: loader.Batches | None = None

    def run(self, state: TrainState) -> dict[str, Any]:
        """From the restored state to the last step; returns result.json."""
        run, num_steps = self._config.run, self._setup.num_steps
        if self._start < num_steps:
            self._compile(state)
            self._batches = loader.train_batches(
                self._setup.train_set,
                self._setup.plan,
                start_step=self._start,
                **build.train_batch_keywords(self._config),
            )
        else:
            self._progress.note(f"all {num_steps} steps are done already")
        self._signal = StopSignal()
        self._progress.pause()
        for step in range(self._start, num_steps + 1):
            done = step == num_steps
            metrics = self._evaluate_when_due(step, state)
            save_due = step % run.checkpoint_every == 0 and step > self._start
            if save_due or done or metrics is not None or self._told_to_stop(step):
                self._save(step, state, metrics, wait=done)
            if self._told_to_stop(step) and not done:
                self._checkpointer.wait()
                raise Preempted(f"saved at step {step}; run the same command again to go on.")
            if not done:
                self._profile(step)
                state = self._update(step, state)
        return self._result()

    def close(self) -> None:
        """Ends workers, pending saves and files."""
        if self._signal is not None:
            self._signal.restore()
        if self._batches is not None:
            self._batches.close()
        self._checkpointer.close()
        self._writer.close()

    def _compile(self, state: TrainState) -> None:
        """Compiles every bucket's program before the first step, and says what the run is."""
        batch_sharding = parallel.batch_sharding(self._setup.mesh)
        for bucket in self._setup.plan.used_buckets:
            shapes = loader.batch_shapes(
                bucket, self._config.data.global_batch, self._config.data.max_boxes
            )
            abstract = jax.tree.map(
                lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=batch_sharding), shapes
            )
            self._step.program(state, abstract)
        self._log.start(state, list(self._step.costs.values()))

    def _update(self, step: int, state: TrainState) -> TrainState:
        """One update; the batch was prepared while the last one ran."""
        waited = time.perf_counter()
        host_batch = next(self._batches)  # type: ignore[arg-type]
        waited = time.perf_counter() - waited
        batch = parallel.shard_batch(host_batch, self._setup.mesh)
        with (
            jax.profiler.StepTraceAnnotation("train", step_num=step),
            jax.transfer_guard("disallow"),
        ):
            state, metrics = self._step(state, batch)
        self._log.add(step, metrics, np.asarray(host_batch.record_index), waited)
        return state

    def _evaluate_when_due(self, step: int, state: TrainState) -> dict[str, float] | None:
        """Metrics, if an evaluation is due at this step and not already recorded."""
        every = self._config.run.eval_every
        due = step == self._setup.num_steps or (every and step and step % every == 0)
        if self._validation is None or not due or step in self._evaluated:
            return None
        self._log.flush(step)
        self._progress.note(f"step {step}: evaluating")
        outcome = self._validation.run(
            train_step.eval_variables(state), should_stop=lambda: self._told_to_stop(step)
        )
        if outcome is None:
            return None
        self._writer.write(step, outcome.metrics, prefix="eval/")
        self._evaluated[step] = outcome.metrics
        self._progress.note(validation.summary(outcome.metrics))
        if jax.process_index() == 0:
            dataset = self._validation.dataset
            validation.write_detections(self._workdir, dataset, outcome.detections)
            pictures.after_evaluation(
                self._config,
                self._workdir,
                self._setup,
                dataset,
                outcome.detections,
                step,
                self._writer,
            )
        self._progress.pause()
        return outcome.metrics

    def _save(self, step: int, state: TrainState, metrics: Any, *, wait: bool) -> None:
        """Saves what was measured; the metrics file is on disk first."""
        self._log.flush(step)
        self._writer.flush()
        wait = wait or not self._config.run.async_checkpoints
        self._checkpointer.save(step, train_step.state_dict(state), metrics, wait=wait)
        self._progress.pause()

    def _told_to_stop(self, step: int) -> bool:
        """True after a signal; several processes agree on the step (asked once a step)."""
        if self._signal is not None and self._signal.received:
            return True
        if self._stop[0] != step:
            self._stop = (step, self._checkpointer.preempted(step))
        return self._stop[1]

    def _profile(self, step: int) -> None:
        """Starts and ends the trace that `run.profile_steps` asks for."""
        steps = self._config.run.profile_steps
        if steps and step == steps[0]:
            jax.profiler.start_trace(str(self._workdir / "profile"))
        elif steps and step == steps[1]:
            jax.profiler.stop_trace()
            logging.warning("profile of steps %s written to %s", steps, self._workdir / "profile")

    def _result(self) -> dict[str, Any]:
        """Writes result.json."""
        num_steps = self._setup.num_steps
        metrics = self._evaluated.get(num_steps, {})
        seconds = self._log.total_seconds()
        if jax.process_index() != 0:
            return {}
        return workdir_files.write_result(
            self._workdir,
            metrics=metrics,
            steps=num_steps,
            wall_seconds=seconds,
            images_per_s=num_steps * self._config.data.global_batch / max(seconds, 1e-9),
        )
