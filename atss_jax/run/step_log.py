"""What is known of the steps: rows, progress lines, rates, and the watch over bad numbers.

Metrics stay on the device until a progress line is due, so the loop never waits for a step.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from atss_jax.data import loader
from atss_jax.run.recipe import Recipe
from atss_jax.run.training_setup import Setup
from atss_jax.runtime.compiled import Cost, peak_flops
from atss_jax.runtime.metric_writer import MetricWriter, Progress
from atss_jax.training.train_step import StepMetrics, TrainState

MAX_AHEAD = 2
"""Steps that the host gives to the devices before the last one is done: enough to keep them busy,
and so few that a stop need not wait for many."""


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient."""


class StepLog:
    """Collects the metrics of steps and writes them in order.

    Args:
      config: the recipe.
      workdir: folder of the run.
      setup: the run's constants.
      writer: where rows go.
      progress: where lines go.
      known: what `known()` said at the restored checkpoint; {} for a new run.
    """

    def __init__(
        self,
        config: Recipe,
        workdir: epath.Path,
        setup: Setup,
        writer: MetricWriter,
        progress: Progress,
        known: Mapping[str, Any],
    ):
        self._config, self._workdir, self._setup = config, workdir, setup
        self._writer, self._progress = writer, progress
        self._pending: list[tuple[int, StepMetrics, np.ndarray]] = []
        self._unreported: Mapping[str, np.ndarray] | None = None
        """Metrics of the last written step since the last progress line."""
        self._waited = 0.0
        self._bad_in_a_row = int(known.get("bad_steps", 0))
        self._flops = 0.0
        """Of the steps since the last line, on one device."""
        self._seconds_before = float(known.get("seconds", 0.0))

    def start(self, state: TrainState, costs: list[Cost]) -> None:
        """Prints what is about to run."""
        device = jax.devices()[0]
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        frozen = jax.tree.map(
            lambda p, f: p.size if f else 0, state.params, self._setup.settings.frozen
        )
        flops = max(cost.flops for cost in costs) * self._setup.mesh.size
        memory = max(cost.argument_bytes + cost.temporary_bytes for cost in costs)
        seconds = sum(cost.trace_seconds + cost.compile_seconds for cost in costs)
        rate = float(self._setup.settings.schedule(self._setup.num_steps // 2))
        lines = [
            f"devices: {jax.device_count()} x {device.device_kind}, "
            f"{jax.process_count()} process(es)",
            f"data: {self._setup.train_set.num_records} images, "
            f"{len(self._setup.train_set.class_names)} classes, "
            f"global batch {self._config.data.global_batch} in {self._config.optim.accumulate} "
            f"part(s), {self._setup.num_steps} steps, "
            f"learning rate {rate:.3g} in the middle of the run",
            f"parameters: {count:,}, of which {sum(jax.tree.leaves(frozen)):,} frozen",
            f"programs: {len(costs)}, compiled in {seconds:.1f} s; "
            f"{flops:.3g} FLOP per step; {memory / 2**20:.0f} MiB per device",
        ]
        if int(state.step):
            lines.append(f"going on from the checkpoint of step {int(state.step)}")
        for line in lines:
            self._progress.note(line)

    def add(
        self, step: int, metrics: StepMetrics, records: np.ndarray, waited: float, flops: float
    ) -> None:
        """Takes the device metrics of update number `step` + 1.

        Args:
          step: updates done before it.
          metrics: still on the device.
          records: record indices of this host's images.
          waited: seconds for which the loop waited for the batch.
          flops: of this step's program, on one device.
        """
        self._pending.append((step + 1, metrics, records))
        if len(self._pending) > MAX_AHEAD:
            jax.block_until_ready(self._pending[-1 - MAX_AHEAD][1])
        self._waited += waited
        self._flops += flops
        limit = min(self._config.run.log_every, self._config.run.max_bad_steps)
        if (step + 1) % self._config.run.log_every == 0:
            self.flush(step + 1)
        elif len(self._pending) >= limit:
            self._write_pending()

    def flush(self, step: int) -> None:
        """Writes all rows up to `step`, and a progress line if there are any since the last."""
        self._write_pending()
        last, self._unreported = self._unreported, None
        if last is None:
            return
        before = self._progress.seconds
        texts = {
            "loss": f"{float(last['loss']):.4f}",
            "lr": f"{float(last['learning_rate']):.3g}",
            "positives": f"{float(last['num_positives']):.0f}",
        }
        rate = self._progress.report(step, self._config.data.global_batch, texts)
        seconds = self._progress.seconds - before
        values = {
            "seconds": seconds,
            "images_per_s": rate,
            "input_wait_fraction": min(self._waited / max(seconds, 1e-9), 1.0),
        }
        peak = peak_flops(jax.devices()[0].device_kind)
        if peak is not None:
            values["mfu"] = self._flops / max(seconds, 1e-9) / peak
        self._writer.write_timing(step, values)
        self._waited = self._flops = 0.0

    def known(self) -> dict[str, Any]:
        """What the log needs again after a restart; call `flush` before."""
        return {"bad_steps": self._bad_in_a_row, "seconds": self.total_seconds()}

    def total_seconds(self) -> float:
        """Seconds of training over all starts of the run."""
        return self._seconds_before + self._progress.seconds

    def _write_pending(self) -> None:
        """Fetches and writes what is pending."""
        fetched = jax.device_get([metrics for _, metrics, _ in self._pending])
        for (step, _, records), metrics in zip(self._pending, fetched, strict=True):
            values = {name: float(v) for name, v in metrics.items()}
            self._writer.write(step, values)
            self._watch(step, bool(metrics["is_finite"]), records, values)
        self._pending = []
        if fetched:
            self._unreported = fetched[-1]

    def _watch(
        self, step: int, is_finite: bool, records: np.ndarray, values: dict[str, Any]
    ) -> None:
        """Reports a bad step, keeps what reproduces it, and stops after too many in a row."""
        if is_finite:
            self._bad_in_a_row = 0
            return
        self._bad_in_a_row += 1
        dataset = self._setup.train_set
        image_ids = [dataset.image_id(r) for r in records]
        folder = self._workdir / "bad_steps"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"step_{step}_process_{jax.process_index()}"
        batch = loader.batch_at(
            dataset,
            self._setup.plan,
            step - 1,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            max_boxes=self._config.data.max_boxes,
            on_overflow=self._config.data.on_overflow,
        )
        with (folder / f"{name}.npz").open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **_flat(batch))
        about = {
            "step": step,
            "image_ids": image_ids,
            "metrics": {k: str(v) for k, v in values.items()},
        }
        (folder / f"{name}.json").write_text(json.dumps(about, indent=2) + "\n")
        self._progress.note(
            f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}: update "
            f"skipped; images {image_ids}; batch kept in {folder / name}.npz"
        )
        if self._bad_in_a_row >= self._config.run.max_bad_steps:
            raise NonFiniteError(
                f"{self._bad_in_a_row} steps in a row up to {step} had non-finite numbers "
                f"(run.max_bad_steps={self._config.run.max_bad_steps}). The parameters are those "
                f"before them. Look at {folder}; lower optim.learning_rate, set optim.clip_norm, "
                "or fix the images named there."
            )


def _flat(batch: Any) -> dict[str, Any]:
    """A batch as a flat dict of arrays."""
    fields = batch._asdict()
    truth = fields.pop("ground_truth")._asdict()
    return {**fields, **{f"ground_truth_{k}": v for k, v in truth.items()}}
