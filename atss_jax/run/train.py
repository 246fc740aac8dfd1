"""The training loop: restore, then evaluate, save, step, until done or told to stop.

The order within a step number s (updates done): save when due, evaluate when due and attach the
metrics to that checkpoint, draw, then update. So an evaluation that fails or is stopped loses no
step, a checkpoint is exactly what was measured, and `metrics.jsonl` is on disk before it.
"""

import contextlib
import dataclasses
import json
import logging
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from atss_jax.data import loader
from atss_jax.data.plausibility import start_report
from atss_jax.run import (
    auto_fields,
    build,
    classes,
    evaluation_folder,
    pictures,
    recipe_io,
    train_data,
    validation,
    workdir_files,
    workdir_lock,
)
from atss_jax.run.recipe import Recipe
from atss_jax.run.step_log import NonFiniteError, StepLog
from atss_jax.run.stop_signal import Preempted, StopSignal
from atss_jax.run.training_setup import Setup, initial_state, print_schedule_change, set_up
from atss_jax.runtime import checkpoint_record, compiled, parallel
from atss_jax.runtime.checkpoint import Checkpointer
from atss_jax.runtime.metric_writer import MetricWriter, Progress, read_rows
from atss_jax.training import train_step
from atss_jax.training.train_step import TrainState

PREEMPTED_EXIT_CODE = 75
"""EX_TEMPFAIL: saved and stopped on a signal; the same command goes on."""


class LoopError(RuntimeError):
    """An error after the set-up, with its cause: not a mistake in flags or recipe."""


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
      LoopError: any other error after the set-up.
    """
    stop = StopSignal(is_single=config.run.distributed == "none")
    try:
        return _train(config, workdir, with_evaluation, stop)
    finally:
        stop.restore()


def _train(
    config: Recipe, workdir: epath.Path, with_evaluation: bool, stop: StopSignal
) -> dict[str, Any]:
    """Everything that may fail on a user's mistake first; only then is the workdir touched."""
    checkpoint_record.check_folder_name(workdir)
    if auto_fields.is_automatic(config):
        config = _in_numbers(config, with_evaluation)
    setup = set_up(config)
    stop.check()
    names, ids = setup.train_set.class_names, setup.train_set.category_ids
    workdir_files.check_workdir(config, workdir, training=True)
    workdir_files.check_classes(workdir, names, ids)
    train_data.check(workdir, setup.train_set)
    print_schedule_change(workdir, config, setup)
    val = None
    if with_evaluation:
        dataset = build.load_dataset(config, "val")
        dataset = classes.in_order_of(dataset, names, setup.train_set.name)
        val = validation.Validation(config, setup.settings.model, setup.mesh, dataset=dataset)
        build.eval_batches(config, dataset).close()  # sizes, boxes
    if jax.process_index() == 0:
        val_set = None if val is None else val.dataset
        lines = start_report(setup.train_set, val_set, setup.plan.padding)
        print("\n".join(lines), flush=True)
    loader.check_overflow(setup.train_set, config.data.max_boxes, config.data.on_overflow)
    stop.check()
    state = None
    if not workdir_files.has_checkpoints(workdir):
        state = initial_state(config, setup)
    common = dataclasses.replace(config, run=dataclasses.replace(config.run, process_id=0))
    parallel.assert_same_everywhere(recipe_io.recipe_to_json(common), "the configuration")
    parallel.assert_same_everywhere(setup.plan.fingerprint(), "the data plan")
    workdir_files.make_folder(workdir, "--workdir")
    with workdir_lock.hold(workdir):
        return _run_in(config, workdir, setup, val, state, stop)


def _in_numbers(config: Recipe, with_evaluation: bool) -> Recipe:
    """The recipe with every automatic field chosen; says what was chosen."""
    build.make_mesh(config)  # joins the job: the devices count
    train_set = build.load_dataset(config, "train")
    val_set = build.load_dataset(config, "val") if with_evaluation else None
    config, lines = auto_fields.resolve(config, train_set, val_set)
    for line in lines:
        if jax.process_index() == 0:
            print(line, flush=True)
    return config


def _run_in(
    config: Recipe,
    workdir: epath.Path,
    setup: Setup,
    val: validation.Validation | None,
    state: TrainState | None,
    stop: StopSignal,
) -> dict[str, Any]:
    """Claims the workdir, restores, and runs the loop."""
    workdir_files.claim_workdir(config, workdir)
    workdir_files.write_classes(workdir, setup.train_set.class_names, setup.train_set.category_ids)
    train_data.write(workdir, setup.train_set)
    compiled.use_compilation_cache(config.run.compilation_cache, workdir)
    checkpointer = Checkpointer(
        workdir / "checkpoints",
        keep_last=config.run.keep_last,
        keep_best=config.run.keep_best,
        keep_every=config.run.keep_every,
    )
    restored = checkpointer.restore_latest(train_step.state_dict(setup.abstract_state))
    if restored is None:
        start, known = 0, {}
        state = initial_state(config, setup) if state is None else state
    else:
        start, state = restored.step, TrainState(**restored.state)
        known = _known_at(workdir, start) if restored.run is None else restored.run
    loop = _Loop(config, workdir, setup, checkpointer, val, start, known, stop)
    try:
        stop.check()
        return loop.run(state)
    except (Preempted, NonFiniteError):
        raise
    except Exception as error:  # a ValueError here is no wrong flag: traceback, exit code 1
        raise LoopError(
            f"the run in {workdir} was ended by an error; the same command goes on from its newest "
            "checkpoint."
        ) from error
    finally:
        loop.close()


def _known_at(workdir: epath.Path, start: int) -> dict[str, Any]:
    """What a checkpoint of an older version lacks: read from the files of rows, once."""
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["step"] <= start]
    evaluated = {
        str(row["step"]): {k.removeprefix("eval/"): v for k, v in row.items() if k != "step"}
        for row in rows
        if "eval/AP" in row
    }
    timing = read_rows(workdir / "timing.jsonl")
    seconds = sum(row.get("seconds") or 0.0 for row in timing if row["step"] <= start)
    known = {"evaluated": evaluated, "seconds": seconds, "bad_steps": 0}
    return json.loads(parallel.broadcast_text(json.dumps(known)))


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
        known: dict[str, Any],
        stop: StopSignal,
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
        self._step = compiled.CompiledByShape(
            train_step.make_train_step(setup.settings, setup.mesh, setup.shardings),
            expected=len(setup.plan.used_buckets),
        )
        self._evaluated: dict[str, dict[str, float]] = dict(known.get("evaluated", {}))
        self._stop: tuple[int, bool] = (-1, False)
        self._signal = stop
        self._batches: loader.Batches | None = None

    def run(self, state: TrainState) -> dict[str, Any]:
        """From the restored state to the last step; returns result.json."""
        run, num_steps = self._config.run, self._setup.num_steps
        if self._start < num_steps:
            self._compile(state)
            self._batches = build.train_batches(
                self._config, self._setup.train_set, self._setup.plan, self._start
            )
        else:
            self._progress.note(f"all {num_steps} steps are done already")
        self._signal.check()
        self._progress.pause()
        for step in range(self._start, num_steps + 1):
            done = step == num_steps
            evaluate = self._evaluation_is_due(step)
            save_due = step % run.checkpoint_every == 0 and step > self._start
            if save_due or done or evaluate or self._told_to_stop(step):
                self._save(step, state, wait=done)
            finished = self._evaluate(step, state) if evaluate else True
            if not finished or (self._told_to_stop(step) and not done):
                self._checkpointer.wait()
                raise Preempted(f"saved at step {step}; run the same command again to go on.")
            if not done:
                self._profile(step)
                state = self._update(step, state)
        return self._result()

    def close(self) -> None:
        """Ends workers, pending saves and files."""
        with contextlib.ExitStack() as stack:  # one that fails does not keep the others open
            stack.callback(self._writer.close)
            stack.callback(self._checkpointer.close)
            if self._batches is not None:
                stack.callback(self._batches.close)

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

    def _evaluation_is_due(self, step: int) -> bool:
        """Whether this step is to be evaluated, and its record has no metrics yet."""
        every = self._config.run.eval_every
        due = step == self._setup.num_steps or (every and step and step % every == 0)
        return self._validation is not None and bool(due) and str(step) not in self._evaluated

    def _evaluate(self, step: int, state: TrainState) -> bool:
        """Evaluates the saved state and records it; False when told to stop meanwhile."""
        assert self._validation is not None
        self._progress.note(f"step {step}: evaluating")
        outcome = self._validation.run(
            train_step.eval_variables(state), should_stop=lambda: self._told_to_stop(step)
        )
        if outcome is None:
            return False
        self._writer.write(step, outcome.metrics, prefix="eval/")
        self._writer.flush()
        self._evaluated[str(step)] = outcome.metrics
        self._checkpointer.attach(step, outcome.metrics, self._known())
        if jax.process_index() == 0:
            try:
                self._show(step, outcome)
            except Exception:  # noqa: BLE001 - what people look at must not end the run
                logging.warning("pictures of step %d are not complete", step, exc_info=True)
        self._progress.pause()
        return True

    def _known(self) -> dict[str, Any]:
        """What a resumed run needs beside the state."""
        return {"evaluated": self._evaluated, **self._log.known()}

    def _show(self, step: int, outcome: validation.Outcome) -> None:
        """Prints the metrics; writes detections and pictures."""
        assert self._validation is not None
        if outcome.metrics:
            self._progress.note(validation.summary(outcome.metrics))
        dataset = self._validation.dataset
        evaluation_folder.write_detections(self._workdir, dataset, outcome.detections)
        pictures.after_evaluation(
            self._config,
            self._workdir,
            self._setup,
            dataset,
            outcome.detections,
            step,
            self._writer,
        )

    def _save(self, step: int, state: TrainState, *, wait: bool) -> None:
        """Saves the state; the metrics file is on disk first."""
        self._log.flush(step)
        self._writer.flush()
        wait = wait or not self._config.run.async_checkpoints
        self._checkpointer.save(step, train_step.state_dict(state), run=self._known(), wait=wait)
        self._progress.pause()

    def _told_to_stop(self, step: int) -> bool:
        """True after a signal; several processes agree on the step (asked once a step)."""
        if self._signal.received:
            return True
        if self._stop[0] != step:
            self._stop = (step, self._checkpointer.preempted(step))
        return self._stop[1]

    def _profile(self, step: int) -> None:
        """Starts and ends the trace that `run.profile_steps` asks for."""
        steps = self._config.run.profile_steps
        if steps and step == max(steps[0], self._start) and step < steps[1]:
            jax.profiler.start_trace(str(self._workdir / "profile"))
        elif steps and step == steps[1] and step > self._start:
            jax.profiler.stop_trace()
            logging.warning("profile of steps %s written to %s", steps, self._workdir / "profile")

    def _result(self) -> dict[str, Any]:
        """Writes result.json."""
        num_steps = self._setup.num_steps
        metrics = self._evaluated.get(str(num_steps), {})
        seconds = self._log.total_seconds()
        if jax.process_index() != 0:
            return {}
        return workdir_files.write_result(
            self._workdir,
            about=evaluation_folder.about(self._config, num_steps) if metrics else {},
            metrics=metrics,
            steps=num_steps,
            wall_seconds=seconds,
            images_per_s=num_steps * self._config.data.global_batch / max(seconds, 1e-9),
        )
