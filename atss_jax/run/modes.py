"""Runs one mode of the command line, and turns outcomes into exit codes."""

import logging
import sys
import traceback

import jax
from etils import epath

from atss_jax.errors import UserError
from atss_jax.run import (
    describe,
    recipe_changes,
    step_log,
    stop_signal,
    train,
    workdir_files,
)
from atss_jax.run.mode_table import MODES
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import peers, screen, xla_flags
from atss_jax.runtime.metric_writer import configure_logging


def run(mode: str, config: Recipe, workdir: str, checkpoint: str = "last") -> int:
    """Runs a mode; returns the exit code.

    Args:
      mode: one of `mode_table.MODES`.
      config: the recipe.
      workdir: folder of the run; "" for describe without one.
      checkpoint: what eval, predict and export read: "last", "best" or a step.
    """
    configure_logging()
    if note := xla_flags.note():
        logging.warning(note)
    if not workdir:  # nothing of a run is read: no other process is waited for
        return _call(mode, config, None, checkpoint)
    try:
        code = _call(mode, config, epath.Path(workdir), checkpoint)
    except Exception as error:
        if jax.process_count() == 1:
            raise
        stop = stop_signal.of_process()
        if stop is not None and stop.received and peers.is_of_runtime(error):
            screen.say("another process was stopped first")
            stop.leave(stop_signal.PREEMPTED_EXIT_CODE)
        code = 1
        if isinstance(error, UserError):
            code = 2
            screen.show_error(error)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        peers.await_verdict(error)
        peers.announce_failure(code, f"{type(error).__name__}: {error}")
        peers.end_together(code)
    stop = stop_signal.of_process()
    if stop is not None and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        peers.end_together(code)
    if stop is not None and code == stop_signal.PREEMPTED_EXIT_CODE:
        stop.leave(code)  # even if a blocked thread lives on
    return code


def _call(mode: str, config: Recipe, workdir: epath.Path | None, checkpoint: str) -> int:
    """Calls the mode's function; returns the exit code."""
    row = MODES[mode]
    if row.reads_checkpoint:
        assert workdir is not None  # `main` asks for it
        config = recipe_changes.with_chosen(config, workdir_files.read_config(workdir))
    code = row.load()(config, workdir, checkpoint)
    return code if isinstance(code, int) else 0


def train_and_eval(config: Recipe, workdir: epath.Path, checkpoint: str) -> int:
    """Trains, with evaluations; returns the exit code.

    Args:
      config: the recipe.
      workdir: of the run.
      checkpoint: not read: training goes on from the newest.
    """
    del checkpoint
    return _train(config, workdir, with_evaluation=True)


def train_only(config: Recipe, workdir: epath.Path, checkpoint: str) -> int:
    """As `train_and_eval`, without evaluations.

    Args:
      config: the recipe.
      workdir: of the run.
      checkpoint: not read: training goes on from the newest.
    """
    del checkpoint
    return _train(config, workdir, with_evaluation=False)


def _train(config: Recipe, workdir: epath.Path, *, with_evaluation: bool) -> int:
    try:
        train.train(config, workdir, with_evaluation=with_evaluation)
    except train.Preempted as stop:
        screen.say(str(stop))
        return stop_signal.PREEMPTED_EXIT_CODE
    except step_log.NonFiniteError as error:
        screen.say(f"error: {error}")
        return 1
    return 0


def print_description(config: Recipe, workdir: epath.Path | None, checkpoint: str) -> None:
    """Prints what the recipe is: parameters, sizes, memory.

    Args:
      config: the recipe.
      workdir: of a run, or None.
      checkpoint: not read.
    """
    del checkpoint
    place = jax.default_backend()
    screen.say(f"compiling for {place}: one image forward, and with gradients; half a minute")
    print(describe.describe(config, workdir))
