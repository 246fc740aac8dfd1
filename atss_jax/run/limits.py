"""When a run ends before its last step: `run.max_minutes` and `run.patience`.

With `run.max_minutes`, the length of a new run is chosen from measured times, so that the learning
rate's schedule ends in time. The workdir's config.json holds it as `optim.num_steps`, and
`assigner.warmup_steps` in proportion; a resumed run does not choose again. Should steps become
slower than measured, the run ends on the limit.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from atss_jax.data import loader
from atss_jax.errors import UserError
from atss_jax.evaluation.coco_metrics import MAIN_METRIC
from atss_jax.run import build
from atss_jax.run.recipe import Recipe
from atss_jax.run.training_setup import Setup
from atss_jax.run.validation import Validation
from atss_jax.runtime import checkpoint_record, parallel
from atss_jax.runtime.compiled import CompiledByShape
from atss_jax.runtime.config import RunConfig
from atss_jax.structures import Batch
from atss_jax.training.train_step import TrainState

TIMED_STEPS = 3
"""Steps whose median is a step's time, after one that is not timed."""
MARGIN = 0.05
"""Share of the time that is not planned: for checkpoints, and for steps slower than measured."""


class Limits:
    """The clock of a run, and the question whether it ends.

    Args:
      config: group "run".
      started: `time.monotonic()` at the start of the process' work.
    """

    def __init__(self, config: RunConfig, started: float):
        self._config, self._started = config, started
        self._before = 0.0
        self._is_late = False
        self.evaluation_seconds = 0.0
        """Of one evaluation: as estimated, then as last measured."""

    def known(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"seconds_in_all": self.seconds, "evaluation_seconds": self.evaluation_seconds}

    def resume(self, known: Mapping[str, Any]) -> None:
        """Adds what the run spent before this start, and what an evaluation took there.

        Args:
          known: what `known` gave, in a record that may hold more.
        """
        self._before = float(known.get("seconds_in_all", known.get("seconds", 0.0)))
        self.evaluation_seconds = float(known.get("evaluation_seconds", 0.0))

    @property
    def seconds(self) -> float:
        """Spent on the run over all starts: reading, compiling, training, evaluating."""
        return self._before + time.monotonic() - self._started

    @property
    def seconds_left(self) -> float:
        """Until the limit; infinite without one."""
        limit = self._config.max_minutes
        return 60 * limit - self.seconds if limit else math.inf

    def reason(self, step: int, evaluated: Mapping[str, Mapping[str, float]]) -> str:
        """Why the run ends at this step; "" where it goes on.

        Several processes ask about the same steps, and process 0's clock counts.

        Args:
          step: updates done.
          evaluated: metrics of each evaluated step.
        """
        patience, best = self._config.patience, best_step(evaluated)
        if patience and best is not None:
            waited = sum(int(s) > best for s in evaluated)
            if waited >= patience:
                value = evaluated[str(best)][MAIN_METRIC]
                return (
                    f"run.patience: no better AP in {waited} evaluations than {value:.4f} of "
                    f"step {best}"
                )
        if self._config.max_minutes and not self._is_late:
            is_asked = jax.process_count() == 1 or step % self._config.log_every == 0
            if is_asked:
                is_late = self.seconds_left < self.evaluation_seconds
                self._is_late = parallel.broadcast_text(str(is_late)) == "True"
        return f"run.max_minutes={self._config.max_minutes:g} are over" if self._is_late else ""


def best_step(evaluated: Mapping[str, Mapping[str, float]]) -> int | None:
    """The first step with the highest AP; None without an evaluation that has one.

    >>> best_step({"10": {"AP": 0.2}, "20": {"AP": 0.4}, "30": {"AP": 0.4}})
    20
    """
    found = checkpoint_record.best_first({int(step): m for step, m in evaluated.items()})
    return found[0] if found else None


def fit_to_time(
    config: Recipe,
    setup: Setup,
    state: TrainState,
    step: CompiledByShape,
    val: Validation | None,
    limits: Limits,
) -> tuple[Recipe, str]:
    """The recipe with as many steps as `run.max_minutes` allow, and a line about them.

    Steps and an evaluation are timed. The recipe's own length stays where it fits.

    Args:
      config: the recipe; run.max_minutes is above 0.
      setup: of that recipe.
      state: to train from; left as it is.
      step: the compiled step.
      val: evaluates; None never does.
      limits: the run's clock; takes the estimate of an evaluation.

    Raises:
      UserError: not a single step fits.
    """
    seconds = _seconds_per_step(config, setup, state, step)
    if val is not None:
        limits.evaluation_seconds = val.estimated_seconds(state)
    compiling = sum(cost.trace_seconds + cost.compile_seconds for cost in step.costs.values())
    wanted = setup.num_steps
    fitting = steps_in(
        limits.seconds_left - compiling,
        seconds_per_step=seconds,
        seconds_per_evaluation=limits.evaluation_seconds,
        eval_every=config.run.eval_every,
    )
    steps = int(parallel.broadcast_text(str(min(wanted, fitting))))
    if steps < 1:
        raise UserError(
            f"config.run.max_minutes={config.run.max_minutes:g}: not one step fits. Until now the "
            f"run took {limits.seconds:.0f} s, a step takes {seconds:.3g} s and an evaluation "
            f"{limits.evaluation_seconds:.3g} s; reading and compiling count. Give more minutes, "
            "or smaller images."
        )
    line = (
        f"run.max_minutes={config.run.max_minutes:g}: {seconds:.3g} s per step, "
        f"{limits.evaluation_seconds:.3g} s per evaluation"
    )
    if steps == wanted:
        return config, f"{line}; all {wanted} steps fit"
    line += f"; {steps} of {wanted} steps fit"
    config = shortened(config, steps, of=wanted)
    if config.assigner.warmup_steps:
        line += f", with assigner.warmup_steps={config.assigner.warmup_steps}"
    return config, line


def shortened(config: Recipe, steps: int, *, of: int) -> Recipe:
    """The recipe with another length, and the assigner's warm-up in proportion.

    Args:
      config: the recipe.
      steps: of the run, at least 1.
      of: steps that the recipe has.
    """
    assigner = config.assigner
    if assigner.warmup_steps:
        warmup_steps = max(1, assigner.warmup_steps * steps // of)
        assigner = dataclasses.replace(assigner, warmup_steps=warmup_steps)
    length = dataclasses.replace(config.optim, num_steps=steps, num_epochs=0.0)
    return dataclasses.replace(config, assigner=assigner, optim=length)


def steps_in(
    seconds: float, *, seconds_per_step: float, seconds_per_evaluation: float, eval_every: int
) -> int:
    """Steps that fit, with the evaluations between them and the one at the end.

    Args:
      seconds: left.
      seconds_per_step: of training.
      seconds_per_evaluation: 0 without.
      eval_every: steps between evaluations; 0 for one at the end alone.

    >>> steps_in(100.0, seconds_per_step=1.0, seconds_per_evaluation=5.0, eval_every=0)
    90
    >>> steps_in(100.0, seconds_per_step=1.0, seconds_per_evaluation=5.0, eval_every=10)
    60
    """
    usable = (1 - MARGIN) * seconds - seconds_per_evaluation
    between = seconds_per_evaluation / eval_every if eval_every else 0.0
    return max(0, int(usable / (seconds_per_step + between)))


def _seconds_per_step(
    config: Recipe, setup: Setup, state: TrainState, step: CompiledByShape
) -> float:
    """Median over `TIMED_STEPS` steps of a copy of the state, the wait for the batch included."""
    state = jax.tree.map(jnp.copy, state)  # the step takes the buffers that it is given
    batches = build.train_batches(config, setup.train_set, setup.plan, 0)
    seconds = []
    try:
        for batch in _first(batches, TIMED_STEPS + 1):
            started = time.monotonic()
            state, metrics = step(state, parallel.shard_batch(batch, setup.mesh))
            jax.block_until_ready(metrics)
            seconds.append(time.monotonic() - started)
    finally:
        batches.close()
    return statistics.median(seconds[1:])


def _first(batches: loader.Batches, count: int) -> Iterator[Batch]:
    for _ in range(count):
        yield next(batches)
