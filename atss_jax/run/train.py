"""Trains a recipe in a workdir: everything is tried first, then the workdir is claimed.

From there on: restore the newest checkpoint, and run the loop.
"""

import contextlib
import dataclasses
import json
import sys
import time
from typing import Any

import jax
from etils import epath

from atss_jax.data import loader
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.plausibility import start_report
from atss_jax.run import (
    auto_fields,
    build,
    classes,
    preflight,
    recipe_changes,
    stop_signal,
    train_data,
    validation,
    workdir_files,
    workdir_lock,
)
from atss_jax.run.limits import Limits, fit_to_time
from atss_jax.run.recipe import Recipe
from atss_jax.run.step_log import NonFiniteError
from atss_jax.run.stop_signal import Preempted, StopSignal
from atss_jax.run.training_loop import Loop
from atss_jax.run.training_setup import Setup, initial_state, print_schedule_change, set_up
from atss_jax.runtime import checkpoint_record, compiled, parallel, peers, screen
from atss_jax.runtime.checkpoint import Checkpointer
from atss_jax.runtime.metric_writer import read_rows
from atss_jax.training import train_step
from atss_jax.training.train_step import TrainState


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
    of_process = stop_signal.of_process()
    if of_process is not None:
        return _train(config, workdir, with_evaluation, of_process)
    stop = StopSignal(is_single=config.run.distributed == "none")
    try:
        return _train(config, workdir, with_evaluation, stop)
    finally:
        stop.restore()


def _train(
    config: Recipe, workdir: epath.Path, with_evaluation: bool, stop: StopSignal
) -> dict[str, Any]:
    """Everything that may fail on a user's mistake first; only then is the workdir touched."""
    limits = Limits(config.run, time.monotonic())
    checkpoint_record.check_folder_name(workdir)
    preflight.check_sinks(config)
    build.join(config)
    if jax.process_count() > 1:
        stop.follow_job()
        stop.at_leaving(peers.announce_stop)
        peers.watch()
    train_set, val_set = _load_sets(config, workdir, with_evaluation)
    config = _in_numbers(config, workdir, train_set, val_set)
    setup = set_up(config, train_set)
    workdir_lock.refuse_if_held(workdir)
    stop.check()
    names, ids = setup.train_set.class_names, setup.train_set.category_ids
    workdir_files.check_workdir(config, workdir, training=True)
    workdir_files.check_classes(workdir, names, ids)
    train_data.check(workdir, setup.train_set)
    print_schedule_change(workdir, config, setup)
    if jax.process_index() == 0 and (advice := preflight.warmup_advice(config, setup.num_steps)):
        screen.show(advice, sys.stderr)
    val = None
    if val_set is not None:
        val = validation.Validation(config, setup.settings.model, setup.mesh, dataset=val_set)
        preflight.check_val_set(config, val)
    if jax.process_index() == 0:
        lines = start_report(
            setup.train_set, val_set, setup.plan.padding, config.eval.max_detections
        )
        screen.show("\n".join(lines))
    loader.check_overflow(setup.train_set, config.data.max_boxes, config.data.on_overflow)
    peers.check_same({"the data": build.data_digest(setup.train_set, setup.plan)})
    stop.check()
    preflight.check_first_batch(config, setup)
    state = None
    compiled.use_compilation_cache(config.run.compilation_cache, workdir)
    if jax.process_index() == 0:
        shapes = f"{len(setup.plan.used_buckets)} shape(s) of batches"
        kept = "" if config.run.compilation_cache == "off" else ", kept for the next start"
        screen.show(f"compiling for {jax.devices()[0].device_kind}: {shapes}{kept}")
        if advice := preflight.tpu_advice(config, setup.mesh):
            screen.show(advice, sys.stderr)
    is_new = parallel.broadcast_text(str(not workdir_files.has_checkpoints(workdir))) == "True"
    if is_new:
        state = initial_state(config, setup)
        preflight.check_finite(state, config.model.init_from or "the initial state")
        if val is not None:
            preflight.check_evaluation(config, val, state)
    stop.check()
    step = preflight.compile_step(config, setup)
    if config.run.max_minutes and state is not None and not (workdir / "config.json").exists():
        stop.check()
        wanted, (config, text) = config, fit_to_time(config, setup, state, step, val, limits)
        if jax.process_index() == 0:
            screen.show(text)
        if config != wanted:  # the length is a constant of the program
            setup = set_up(config, setup.train_set)
            step = preflight.compile_step(config, setup)
    stop.check()
    workdir_files.make_folder(workdir, "--workdir")
    lock = contextlib.ExitStack()
    lock.enter_context(workdir_lock.hold(workdir))
    stop.at_leaving(lock.close)
    with lock:
        return _run_in(config, workdir, setup, val, state, step, stop, limits)


def _load_sets(
    config: Recipe, workdir: epath.Path, with_evaluation: bool
) -> tuple[DetectionDataset, DetectionDataset | None]:
    """Training and validation set, with the classes of the run where it has begun."""
    begun = classes.read_classes(workdir)
    names = () if begun is None else begun[0]
    if with_evaluation:
        return build.load_sets(config, names)
    train_set = build.load_dataset(config, "train")
    if names and config.data.unused_classes == "drop":
        train_set = classes.without_unused(train_set, train_set, names)
    return train_set, None


def _in_numbers(
    config: Recipe,
    workdir: epath.Path,
    train_set: DetectionDataset,
    val_set: DetectionDataset | None,
) -> Recipe:
    """The recipe with every automatic field chosen; says what is chosen.

    A resumed run keeps what it chose.
    """
    if (workdir / "config.json").exists():
        old = workdir_files.read_config(workdir)
        config = recipe_changes.with_chosen(config, old, training=True)
        if workdir_files.has_checkpoints(workdir):
            config = _with_first_weights(config, old, workdir)
        if config.run.max_minutes and old.run.max_minutes and jax.process_index() == 0:
            length = f"{old.optim.num_steps} steps" if old.optim.num_steps else "the whole length"
            if config.assigner.warmup_steps:
                length += f", assigner.warmup_steps={config.assigner.warmup_steps}"
            screen.show(f"run.max_minutes: {length}, as chosen when the run began")
        is_chosen = config.data.image_size == old.data.image_size
        if is_chosen and not recipe_changes.is_left_open(config):
            return config
    if not auto_fields.is_automatic(config):
        return config
    config, lines = auto_fields.resolve(config, train_set, val_set)
    if jax.process_index() == 0:
        screen.show("\n".join(lines))
    return config


def _with_first_weights(config: Recipe, old: Recipe, workdir: epath.Path) -> Recipe:
    """The recipe with the weights that the run did start from; says that none are read again."""
    first, given = old.model.init_from, config.model.init_from
    text = f"the weights are those of the newest checkpoint in {workdir}"
    if first:
        text += f"; {first} was read when the run began"
    if given not in ("", first):
        text = (
            f"config.model.init_from={given!r} is not read: {text}. To start from it, give another "
            "--workdir."
        )
    if (first or given) and jax.process_index() == 0:
        screen.show(text, sys.stderr)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, init_from=first))


def _run_in(
    config: Recipe,
    workdir: epath.Path,
    setup: Setup,
    val: validation.Validation | None,
    state: TrainState | None,
    step: compiled.CompiledByShape,
    stop: StopSignal,
    limits: Limits,
) -> dict[str, Any]:
    """Claims the workdir, restores, and runs the loop."""
    workdir_files.claim_workdir(config, workdir)
    workdir_files.write_classes(workdir, setup.train_set.class_names, setup.train_set.category_ids)
    train_data.write(workdir, setup.train_set)
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
        preflight.check_finite(state, f"checkpoint {start} of {workdir}")
        known = _known_at(workdir, start) if restored.run is None else restored.run
    loop = Loop(config, workdir, setup, checkpointer, val, start, known, step, stop, limits)
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
