"""Checkpoints of the training state, by Orbax: atomic, with fall-back, asynchronous if wanted.

A checkpoint is complete or it is not there: Orbax writes into a temporary folder and renames. What
it holds beside the state is a small dict (`metrics`), by which the best are kept.
"""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies


class Checkpointer:
    """Saves and restores one workdir's training states.

    Args:
      folder: where checkpoints lie; made when missing.
      keep_last: newest checkpoints kept.
      keep_best: best ones by the metric "AP" kept.
      keep_every: every checkpoint at a multiple of this step is kept; 0 for none.
    """

    def __init__(
        self,
        folder: str | epath.Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        keep_every: int = 0,
    ):
        kept: list[policies.PreservationPolicy] = [policies.LatestN(max(keep_last, 1))]
        if keep_best:
            kept.append(
                policies.BestN(
                    get_metric_fn=lambda m: m["AP"],
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        self._folder = epath.Path(folder).absolute()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
            ),
            item_handlers=ocp.StandardCheckpointHandler(),
        )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, rising."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: Any, metrics: Mapping[str, float] | None = None, *, wait=False
    ):
        """Starts a save; returns when the state has been copied, unless `wait`.

        Args:
          step: updates that the state has behind it.
          state: pytree of arrays.
          metrics: evaluation of exactly this state.
          wait: return only when the checkpoint is complete on disk.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics, force=True)
        if wait:
            self._manager.wait_until_finished()

    def restore_latest(self, abstract_state: Any) -> tuple[int, Any] | None:
        """(step, state) of the newest checkpoint that can be read, or None if there is none.

        A damaged checkpoint is reported and the one before it is used.

        Args:
          abstract_state: the state's shapes, dtypes and shardings (`jax.ShapeDtypeStruct`s).

        Raises:
          ValueError: checkpoints exist, but none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, self.restore(step, abstract_state)
            except Exception as error:  # noqa: BLE001 - any damage counts
                logging.warning(
                    "checkpoint %d is damaged (%s: %s); trying the one before",
                    step,
                    type(error).__name__,
                    str(error).splitlines()[0] if str(error) else "",
                )
        if steps:
            raise ValueError(
                f"{self._folder}: none of the checkpoints {steps} can be read with this "
                "configuration. Use the configuration of the workdir, or a new workdir."
            )
        return None

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state of one checkpoint, placed as `abstract_state` says."""
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))

    def discard_after(self, step: int) -> None:
        """Deletes checkpoints newer than `step`: damaged ones that a resumed run writes again."""
        for newer in [s for s in self.steps() if s > step]:
            self._manager.delete(newer)

    def preempted(self, step: int) -> bool:
        """True on all processes at the same step after the cluster announced an eviction."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Returns when all saves are complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes pending saves and frees threads."""
        self._manager.close()


def restore_part(folder: epath.Path, abstract_part: Any) -> tuple[int, Any]:
    """(step, part) of the newest readable checkpoint: only some entries of the saved state.

    Args:
      folder: of the checkpoints.
      abstract_part: shapes, dtypes and shardings of the entries to read.

    Raises:
      FileNotFoundError: no checkpoints there.
      ValueError: none of them can be read with these shapes.
    """
    if not folder.exists():
        raise FileNotFoundError(
            f"{folder}: no checkpoints. Train first (--mode=train), or check --workdir."
        )
    errors = []
    with ocp.CheckpointManager(
        folder.absolute(),
        options=ocp.CheckpointManagerOptions(read_only=True),
        item_handlers=ocp.PyTreeCheckpointHandler(),
    ) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                arguments = ocp.args.PyTreeRestore(
                    item=abstract_part,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_part),
                    partial_restore=True,
                )
                return step, manager.restore(step, args=arguments)
            except Exception as error:  # noqa: BLE001 - any damage counts
                errors.append(f"{step}: {type(error).__name__}: {str(error)[:200]}")
    if not errors:
        raise FileNotFoundError(f"{folder}: no complete checkpoint yet. Train first.")
    raise ValueError(f"{folder}: no checkpoint can be read. " + "; ".join(errors))
