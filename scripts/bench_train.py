r"""Times the training step of a recipe: rate, compilation, memory, waiting for input.

    python scripts/bench_train.py --config=configs/quickstart.py --data=real
    python scripts/bench_train.py --config=configs/atss_r50_fpn_1x.py \
      --set "data.buckets=((256,256),)" data.global_batch=2
    python scripts/bench_train.py ... --torchvision              # beside torchvision's FCOS R-50
    python scripts/bench_train.py ... --torchvision=other/python # of another environment

Synthetic data are noise images of the first bucket's size, written as JPEG and read back through
the pipeline; real data are the recipe's. Weights are random. The network, the optimizer and the
loop are those of training. With --torchvision both sides run in one call, a few steps each in turn,
with the same shapes, batch, frozen layers and threads; the last line is JSON. Compare on a quiet
machine only: where other processes want the cores, PyTorch's threads wait for each other and its
steps take many times longer. The load average is part of the figures. peak_rss_mib is the largest
resident set while training, compile_peak_rss_mib the one before, while compiling twice.
"""

import argparse
import ast
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peak_memory import forget_peak_memory, peak_memory_mib
from torchvision_training import BOXES_PER_IMAGE, NUM_CLASSES, TorchvisionTraining

ROOT = Path(__file__).resolve().parents[1]


def read_recipe(text: str, changes: list[str]) -> dict[str, Any]:
    """The recipe's values as nested dicts.

    Args:
      text: path of the recipe, with its argument after a colon.
      changes: "group.field=value", value a Python literal or a plain string.

    Raises:
      ValueError: no such file, or a change that is no "group.field=value" of a known field.
    """
    from atss_jax.run import recipe_io

    path, _, argument = text.partition(":")
    if not Path(path).is_file():
        raise ValueError(f"--config={text}: no such file. Give it as in configs/quickstart.py:arg.")
    spec = importlib.util.spec_from_file_location("recipe", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values = module.get_config(argument).to_dict()
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set {change}: give GROUP.FIELD=VALUE, as in data.global_batch=2.")
        if name not in recipe_io.field_names():
            raise ValueError(f"--set {change}: {recipe_io.unknown_field_message(name)}")
        group, field = name.split(".")
        try:
            values[group][field] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            values[group][field] = value
    values["model"]["init_from"] = ""
    return values


def use_synthetic_images(values: dict[str, Any], folder: Path) -> None:
    """Writes a COCO set of noise images as large as the first bucket, and points the recipe at it.

    Args:
      values: the recipe, changed in place.
      folder: for images and annotations.
    """
    import cv2
    import numpy as np

    data = values["data"]
    height, width = data["buckets"][0]
    random = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(max(8, data["global_batch"])):
        small = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        name = f"{index}.jpg"
        cv2.imwrite(str(folder / name), cv2.resize(small, (width, height)))
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for _ in range(min(BOXES_PER_IMAGE, data["max_boxes"])):
            w, h = random.uniform(0.1, 0.6, 2) * (width, height)
            x, y = random.uniform(0, 1, 2) * (width - w, height - h)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": int(random.integers(1, NUM_CLASSES + 1)),
                    "bbox": [float(v) for v in (x, y, w, h)],
                    "area": float(w * h),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(NUM_CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content))
    data.update(source="coco_json", name="synthetic", buckets=((height, width),))
    data.update(train_annotations=str(folder / "train.json"), train_images=str(folder))
    data.update(short_side=min(height, width), max_long_side=max(height, width))
    data.update(train_short_sides=(), augmentations=("flip(0.5)",))


class OurTraining:
    """A recipe, compiled, fed and stepped as `atss_jax.run.train` does it.

    Args:
      values: the recipe.
      folder: for compiled programs.
      with_warm: whether it is compiled a second time, from the cache, for `report`.
    """

    def __init__(self, values: dict[str, Any], folder: Path, *, with_warm: bool = True):
        import jax
        from etils import epath

        from atss_jax.data import loader
        from atss_jax.run import build
        from atss_jax.run.recipe_io import recipe_from_mapping
        from atss_jax.run.training_setup import initial_state, set_up
        from atss_jax.runtime import compiled, parallel
        from atss_jax.training import train_step

        self.config = config = recipe_from_mapping(values)
        self.setup = setup = set_up(config)
        self._shard = parallel.shard_batch
        self.state = initial_state(config, setup)
        compiled.use_compilation_cache(str(folder / "cache"), epath.Path(folder))
        sharding = parallel.batch_sharding(setup.mesh)
        self.compile_seconds = []
        for _ in ("cold", "warm") if with_warm else ("cold",):
            jax.clear_caches()
            step = train_step.make_train_step(setup.settings, setup.mesh, setup.shardings)
            self._step = compiled.CompiledByShape(step, expected=len(setup.plan.used_buckets))
            for bucket in setup.plan.used_buckets:
                shapes = loader.batch_shapes(
                    bucket, config.data.global_batch, config.data.max_boxes
                )
                abstract = jax.tree.map(
                    lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes
                )
                self._step.program(self.state, abstract)
            costs = self._step.costs.values()
            self.trace_seconds = sum(c.trace_seconds for c in costs)
            self.compile_seconds.append(sum(c.compile_seconds for c in costs))
        self.compile_peak_mib = peak_memory_mib()
        forget_peak_memory()
        self._batches = build.train_batches(config, setup.train_set, setup.plan, start_step=0)
        self.waited = 0.0

    def run(self, steps: int) -> list[float]:
        """Seconds of each of so many steps, each waited for."""
        import jax

        seconds = []
        for _ in range(steps):
            started = time.perf_counter()
            host_batch = next(self._batches)
            self.waited += time.perf_counter() - started
            batch = self._shard(host_batch, self.setup.mesh)
            self.state, metrics = self._step(self.state, batch)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - started)
        return seconds

    def report(self, seconds: list[float]) -> dict[str, Any]:
        """The figures of the steps timed."""
        import jax

        from atss_jax.runtime.compiled import peak_flops

        costs = list(self._step.costs.values())
        median = statistics.median(seconds)
        kind = jax.devices()[0].device_kind
        flops, peak = max(c.flops for c in costs), peak_flops(kind)
        cold, warm = self.compile_seconds
        return {
            "device": f"{jax.device_count()} x {kind}",
            "buckets": [list(b) for b in self.setup.plan.used_buckets],
            "global_batch": self.config.data.global_batch,
            "step_ms": 1e3 * median,
            "images_per_s": self.config.data.global_batch / median,
            "flops_per_step": flops * jax.device_count(),
            "mfu": flops / median / peak if peak else None,
            "trace_s": self.trace_seconds,
            "compile_cold_s": cold,
            "compile_warm_s": warm,
            "argument_mib": max(c.argument_bytes for c in costs) / 2**20,
            "temporary_mib": max(c.temporary_bytes for c in costs) / 2**20,
            "compile_peak_rss_mib": self.compile_peak_mib,
            "peak_rss_mib": peak_memory_mib(),
            "input_wait_fraction": self.waited / sum(seconds),
        }

    def close(self) -> None:
        """Ends the loader."""
        self._batches.close()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs everything; returns the figures."""
    values = read_recipe(options.config, options.set)
    if options.data == "synthetic":
        use_synthetic_images(values, folder)
    load = os.getloadavg()[0]
    ours = OurTraining(values, folder)
    rival = None
    seconds, rival_seconds = [], []
    try:
        ours.run(options.warmup)
        ours.waited = 0.0
        if options.torchvision:
            shape = ours.setup.plan.used_buckets[0]
            rival = TorchvisionTraining(options.torchvision, shape, values["data"]["global_batch"])
        for _ in range(options.rounds):
            seconds += ours.run(options.steps)
            if rival is not None:
                rival_seconds += rival.run(options.steps)
        report = {"config": options.config, "data": options.data, "load_average_before": load}
        report.update(ours.report(seconds))
        if rival is not None:
            other = statistics.median(rival_seconds)
            report["torchvision_step_ms"] = 1e3 * other
            report["torchvision_peak_rss_mib"] = rival.peak_rss_mib
            report["step_time_ratio"] = report["step_ms"] / (1e3 * other)
        return report
    finally:
        ours.close()
        if rival is not None:
            rival.close()


def main() -> None:
    """Reads the command line and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(ROOT / "configs/quickstart.py"), help="recipe:arg")
    parser.add_argument("--set", nargs="+", default=[], metavar="GROUP.FIELD=VALUE")
    parser.add_argument("--data", choices=("synthetic", "real"), default="synthetic")
    parser.add_argument("--warmup", type=int, default=2, help="steps that are not timed")
    parser.add_argument("--steps", type=int, default=5, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torchvision", nargs="?", const=sys.executable, metavar="PYTHON")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # for `configs`
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = measure(options, Path(folder))
        except (FileNotFoundError, ValueError) as error:
            parser.error(str(error))
    for name, value in report.items():
        print(f"{name:26}{value:.4g}" if isinstance(value, float) else f"{name:26}{value}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
