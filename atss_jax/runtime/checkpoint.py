"""Checkpoints of the training state, by Orbax: atomic, with fall-back, asynchronous if wanted.

A checkpoint is complete or it is not there: Orbax writes into a temporary folder and renames. Its
record (`checkpoint_record`) holds checksums, and what a resumed run must know beside the state.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from atss_jax.errors import UserError
from atss_jax.runtime import checkpoint_record, parallel
from atss_jax.runtime.checkpoint_record import DamagedError


class Restored(NamedTuple):
    """A checkpoint that was read."""

    step: int
    state: Any
    run: dict[str, Any] | None
    """What was given to `Checkpointer.save` as `run`; None for an older version's checkpoint."""


class _BestOnDisk(policies.PreservationPolicy):
    """Keeps the best by the AP in the records: they outlive the process, Orbax's metrics do not."""

    def __init__(self, folder: epath.Path, count: int):
        self._folder, self._count = folder, count

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Marks the `count` best of the measured checkpoints."""
        del context
        metrics = {}
        for checkpoint in checkpoints:
            with contextlib.suppress(DamagedError):
                record = checkpoint_record.read_record(self._folder, checkpoint.step)
                metrics[checkpoint.step] = (record or {}).get("metrics")
        best = checkpoint_record.best_first(metrics)[: self._count]
        return [checkpoint.step in best for checkpoint in checkpoints]


class Checkpointer:
    """Saves and restores one workdir's training states.

    Args:
      folder: where checkpoints lie; made when missing.
      keep_last: newest checkpoints kept.
      keep_best: best ones by the metric "AP" kept.
      keep_every: every checkpoint at a multiple of this step is kept; 0 for none.

    Raises:
      UserError: the path holds characters of a pattern.
    """

    def __init__(
        self,
        folder: str | epath.Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        keep_every: int = 0,
    ):
        self._folder = epath.Path(folder).absolute()
        checkpoint_record.check_folder_name(self._folder)
        kept: list[policies.PreservationPolicy] = [policies.LatestN(max(keep_last, 1))]
        if keep_best:
            kept.append(_BestOnDisk(self._folder, keep_best))
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        self._unrecorded: dict[int, dict[str, Any]] = {}
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
            ),
            item_handlers=ocp.StandardCheckpointHandler(),
        )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: Any,
        metrics: Mapping[str, float] | None = None,
        *,
        run: Mapping[str, Any] | None = None,
        wait: bool = False,
    ) -> None:
        """Starts a save; returns when the state has been copied, unless `wait`.

        Args:
          step: updates that the state has behind it.
          state: pytree of arrays.
          metrics: evaluation of exactly this state, if it is known already.
          run: JSON values that a resumed run needs beside the state.
          wait: return only when the checkpoint is complete on disk.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        self._unrecorded[step] = {"metrics": dict(metrics or {}), "run": dict(run or {})}
        self._manager.save(step, args=ocp.args.StandardSave(state), force=True)
        if wait:
            self.wait()

    def attach(self, step: int, metrics: Mapping[str, float], run: Mapping[str, Any]) -> None:
        """Adds what an evaluation found to the record of a saved step."""
        self.wait()
        if jax.process_index() == 0:
            old = checkpoint_record.read_record(self._folder, step) or {}
            checkpoint_record.write_record(
                self._folder, step, {**old, "metrics": dict(metrics), "run": dict(run)}
            )

    def restore_latest(self, abstract_state: Any) -> Restored | None:
        """The newest checkpoint that is whole, or None if there is none.

        A damaged one is reported and the one before it is used; it is renamed to `<step>.damaged`
        once another was restored. Process 0 decides, all restore the same step.

        Args:
          abstract_state: the state's shapes, dtypes and shardings (`jax.ShapeDtypeStruct`s).

        Raises:
          ValueError: checkpoints exist, but none can be read.
          OSError: the storage does not answer; nothing is renamed.
        """

        def read(step: int) -> Any:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))

        found, damaged = _newest(self._folder, self.steps(), read)
        if found is None:
            return None
        if damaged and jax.process_index() == 0:
            for step in damaged:
                _set_aside(self._folder, step)
        if damaged:
            parallel.barrier("damaged checkpoints renamed")
            self._manager.reload()
        return found

    def preempted(self, step: int) -> bool:
        """True on all processes at the same step after the cluster announced an eviction."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Returns when all saves are complete on disk, with their records."""
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            for step, record in self._unrecorded.items():
                if (self._folder / str(step)).exists():
                    files = checkpoint_record.checksums(self._folder / str(step))
                    checkpoint_record.write_record(self._folder, step, {**record, "files": files})
            if self._unrecorded:
                self._remove_stale_records()
        self._unrecorded = {}

    def close(self) -> None:
        """Finishes pending saves and frees threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _remove_stale_records(self) -> None:
        """Deletes the records of checkpoints that were not kept."""
        for path in self._folder.iterdir():
            is_record = path.suffix == ".json" and path.stem.isdigit()
            if is_record and not (self._folder / path.stem).exists():
                path.unlink(missing_ok=True)


def _set_aside(folder: epath.Path, step: int) -> None:
    """Renames a damaged checkpoint and its record: kept for whoever wants to look."""
    target, number = folder / f"{step}.damaged", 1
    while target.exists():
        number += 1
        target = folder / f"{step}.damaged-{number}"
    (folder / str(step)).rename(target)
    record = checkpoint_record.record_path(folder, step)
    if record.exists():
        record.rename(target / "record.json")
    logging.warning("the damaged checkpoint %d is now %s", step, target)


def _newest(
    folder: epath.Path, steps: Sequence[int], read: Callable[[int], Any]
) -> tuple[Restored | None, list[int]]:
    """The newest checkpoint that is whole and can be read, and the damaged ones after it.

    Args:
      folder: of the checkpoints.
      steps: of the complete ones.
      read: restores one.

    Raises:
      ValueError: there are checkpoints, but none can be read.
      OSError: one could not be read, after retries.
    """
    damaged, reasons = [], []
    for step in sorted(json.loads(parallel.broadcast_text(json.dumps(list(steps)))), reverse=True):
        reason, run, is_verified = "", None, False
        if jax.process_index() == 0:
            try:
                is_verified = checkpoint_record.verify(folder, step)
                record = checkpoint_record.read_record(folder, step)
                run = None if record is None else record["run"]
            except DamagedError as error:
                reason = str(error)
        reason, run, is_verified = json.loads(
            parallel.broadcast_text(json.dumps([reason, run, is_verified]))
        )
        if not reason:
            if not is_verified:
                logging.warning("checkpoint %d has no checksums: restored unchecked", step)
            try:
                state = checkpoint_record.with_retries(lambda step=step: read(step))
                return Restored(step, state, run), damaged
            except Exception as error:
                failed_read = isinstance(error, OSError) and not isinstance(
                    error, FileNotFoundError
                )
                if failed_read or jax.process_count() > 1:
                    raise  # several processes cannot agree on what one of them saw
                reason = f"{type(error).__name__}: {str(error)[:200]}"
                if is_verified:  # whole, as saved: it is the configuration that does not fit
                    raise UserError(
                        f"{folder}: checkpoint {step} is whole, but does not fit this "
                        f"configuration ({reason}). Use the configuration and data of the workdir."
                    ) from error
        logging.warning("checkpoint %d is damaged (%s); trying the one before", step, reason)
        damaged.append(step)
        reasons.append(f"{step}: {reason}")
    if damaged:
        raise ValueError(f"{folder}: no checkpoint can be read. " + "; ".join(reasons))
    return None, []


def restore_part(folder: epath.Path, abstract_part: Any, which: str = "last") -> tuple[int, Any]:
    """(step, part) of a checkpoint: only some entries of the saved state.

    A damaged one is reported and left where it is: the folder may be read-only. Instead of the
    last, the one before it is read then.

    Args:
      folder: of the checkpoints.
      abstract_part: shapes, dtypes and shardings of the entries to read.
      which: see `checkpoint_record.chosen_steps`.

    Raises:
      UserError: no checkpoints there, or not this one.
      ValueError: none of them can be read with these shapes.
      OSError: the storage does not answer.
    """
    if not folder.exists():
        raise UserError(f"{folder}: no checkpoints. Train first, or check --workdir.")
    folder = folder.absolute()
    checkpoint_record.check_folder_name(folder)
    with ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(read_only=True),
        item_handlers=ocp.PyTreeCheckpointHandler(),
    ) as manager:

        def read(step: int) -> Any:
            arguments = ocp.args.PyTreeRestore(
                item=abstract_part,
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_part),
                partial_restore=True,
            )
            return manager.restore(step, args=arguments)

        steps = manager.all_steps()
        if not steps:
            raise UserError(f"{folder}: no complete checkpoint yet. Train first.")
        found, _ = _newest(folder, checkpoint_record.chosen_steps(folder, steps, which), read)
    assert found is not None
    return found.step, found.state
