"""Times inference on this machine: forward pass and post-processing apart, latency and throughput.

    python scripts/bench_inference.py --height 800 --width 1344 --threads 1
    python scripts/bench_inference.py --threads 1 --recipes quickstart atss_r50_fpn_1x

With --recipes, each is timed as a whole on one image of its largest bucket, from random weights.
Post-processing runs on made-up dense scores, as torchvision's does in the same run where PyTorch
and torchvision are installed: about 1000 candidates on each of P3..P5 ("typical"), and an
undecided classifier with every pair a candidate ("saturated"). Prints a table and, last, one line
of JSON.
"""

import argparse
import functools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def main() -> None:
    """Reads the arguments, sets the threads before JAX starts, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--batch", type=int, default=4, help="images of the throughput rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all")
    parser.add_argument("--no-forward", action="store_true", help="post-processing only")
    parser.add_argument("--recipes", nargs="+", help="time these recipes instead")
    arguments = parser.parse_args()
    if arguments.threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.threads :])
    if arguments.recipes:
        show(recipe_rows(arguments), arguments)
        return
    rows = jax_rows(arguments)
    try:
        import torch  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError:
        print("torchvision is not installed: no comparison", file=sys.stderr)
    else:
        rows += torch_rows(arguments)
    show(rows, arguments)


def show(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Prints the table and the line of JSON."""
    print(f"{'what':46} {'median ms':>10} {'fastest':>9} {'CPU ms':>9} {'images/s':>9}")
    for row in rows:
        print(
            f"{row['what']:46} {row['median_ms']:10.2f} {row['fastest_ms']:9.2f} "
            f"{row['cpu_ms']:9.2f} {row['images_per_s']:9.2f}"
        )
    print(json.dumps({"threads": arguments.threads or os.cpu_count(), "rows": rows}))


def timed(what: str, call: Callable[[], Any], images: int, repeats: int) -> dict[str, Any]:
    """Wall and CPU time of a call (median, fastest), after one that does not count.

    CPU time is that of all threads of this process: what counts on a machine with other work.
    """
    call()
    wall, cpu = [], []
    for _ in range(repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    median = statistics.median(wall)
    return {
        "what": what,
        "median_ms": round(1e3 * median, 3),
        "fastest_ms": round(1e3 * min(wall), 3),
        "cpu_ms": round(1e3 * statistics.median(cpu), 3),
        "images_per_s": round(images / median, 3),
    }


def scene(kind: str, shapes: list[tuple[int, int]], classes: int) -> dict[str, list[np.ndarray]]:
    """Made-up raw outputs of one image: class logits [h*w, K], deltas [h*w, 4], centerness [h*w].

    "typical": one pair in eighty is a candidate, more than 1000 on each of P3, P4, P5.
    "saturated": every pair is a candidate.
    """
    rng = np.random.default_rng(0)
    outputs: dict[str, list[np.ndarray]] = {"cls": [], "box": [], "centerness": []}
    for height, width in shapes:
        count = height * width
        logits = rng.normal(-6 if kind == "typical" else 0, 1.4, (count, classes))
        outputs["cls"].append(logits.astype(np.float32))
        outputs["box"].append(rng.normal(0, 1, (count, 4)).astype(np.float32))
        outputs["centerness"].append(rng.normal(0, 1, count).astype(np.float32))
    return outputs


def jax_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of this package."""
    import jax
    import jax.numpy as jnp

    from atss_jax.evaluation.postprocess import PostprocessSettings, postprocess_batch
    from atss_jax.evaluation.predict_step import make_predict_step
    from atss_jax.geometry.anchors import AnchorGrid
    from atss_jax.geometry.config import AnchorConfig
    from atss_jax.models.config import ModelConfig
    from atss_jax.models.detector import DetectorNetwork, normalize_images
    from atss_jax.models.normalization import Normalization
    from atss_jax.structures import HeadOutputs

    grid = AnchorGrid((arguments.height, arguments.width))
    rows = []

    @jax.jit
    def finish(outputs, sizes, scales):
        return postprocess_batch(outputs, grid, sizes, scales)

    def sizes_of(batch: int):
        return jnp.tile(jnp.array(grid.image_shape, jnp.int32), (batch, 1)), jnp.ones((batch, 2))

    for kind in ("typical", "saturated"):
        made = scene(kind, list(grid.level_shapes), arguments.classes)
        above = [int((1 / (1 + np.exp(-logits)) > 0.05).sum()) for logits in made["cls"]]
        maps = {
            name: tuple(
                jnp.asarray(array).reshape(1, *shape, 1, *array.shape[1:])
                for array, shape in zip(arrays, grid.level_shapes, strict=True)
            )
            for name, arrays in made.items()
        }
        outputs = HeadOutputs(maps["cls"], maps["box"], maps["centerness"])
        call = functools.partial(finish, outputs, *sizes_of(1))
        row = timed(
            f"atss_jax post-processing, {kind}",
            lambda call=call: jax.block_until_ready(call()),
            1,
            4 * arguments.repeats,
        )
        rows.append({**row, "above_threshold": above})
    if arguments.no_forward:
        return rows
    model = DetectorNetwork(ModelConfig(backbone=arguments.backbone), arguments.classes)
    variables = jax.jit(model.init)(
        jax.random.key(0), jnp.zeros((1, 64, 96, 3)), jnp.array([[64, 96]])
    )

    normalization = Normalization(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    predict_step = make_predict_step(model, AnchorConfig(), normalization, PostprocessSettings())

    @jax.jit
    def forward(images, sizes):
        normalized = normalize_images(images, sizes, **normalization._asdict())
        return model.apply(variables, normalized, sizes)

    rng = np.random.default_rng(1)
    for batch in sorted({1, arguments.batch}):
        images = jnp.asarray(rng.integers(0, 256, (batch, *grid.image_shape, 3), np.uint8))
        sizes, scales = sizes_of(batch)
        name = f"{arguments.backbone}, batch {batch}"
        rows.append(
            timed(
                f"atss_jax forward, {name}",
                lambda a=images, s=sizes: jax.block_until_ready(forward(a, s)),
                batch, arguments.repeats,
            )
        )  # fmt: skip
        rows.append(
            timed(
                f"atss_jax whole, {name}",
                lambda a=images, s=sizes, f=scales: jax.block_until_ready(
                    predict_step(variables, a, s, f)
                ),
                batch, arguments.repeats,
            )
        )  # fmt: skip
    return rows


def recipe_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One image with post-processing, for each recipe."""
    import jax
    import jax.numpy as jnp

    from atss_jax.models.detector import DetectorNetwork, init_variables
    from atss_jax.run import predict_steps, recipe_files, recipe_io

    rows = []
    for name in arguments.recipes:
        recipe = recipe_io.recipe_from_mapping(recipe_files.load_recipe(name).to_dict())
        shape = max(recipe.data.buckets, key=math.prod)
        model = DetectorNetwork(recipe.model, arguments.classes, recipe.anchors.num_per_location)
        variables = init_variables(model, shape, 0)
        step = predict_steps.predict_step(recipe, model)
        images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (1, *shape, 3), np.uint8))
        given = (variables, images, jnp.array([shape], jnp.int32), jnp.ones((1, 2)))
        what = f"{name}, {shape[0]}x{shape[1]}"
        call = functools.partial(step, *given)
        rows.append(
            timed(what, lambda call=call: jax.block_until_ready(call()), 1, arguments.repeats)
        )
        print(f"{what}: {rows[-1]['cpu_ms']:.0f} ms of CPU", file=sys.stderr)
    return rows


def torch_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """torchvision's FCOS: its post-processing at a score threshold of 0.05, and its forward."""
    import torch  # pyright: ignore[reportMissingImports, reportUnusedImport]
    import torchvision  # pyright: ignore[reportMissingImports, reportUnusedImport]

    from atss_jax.geometry.anchors import AnchorGrid

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shape = (arguments.height, arguments.width)
    grid = AnchorGrid(shape)
    model = torchvision.models.detection.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=arguments.classes, score_thresh=0.05,
        min_size=min(shape), max_size=max(shape),
    ).eval()  # fmt: skip
    rows = []
    anchors = [
        torch.from_numpy(part.copy())
        for part in np.split(grid.boxes(), np.cumsum(grid.num_per_level)[:-1])
    ]
    with torch.inference_mode():
        for kind in ("typical", "saturated"):
            made = scene(kind, list(grid.level_shapes), arguments.classes)
            outputs = {
                "cls_logits": [torch.from_numpy(a)[None] for a in made["cls"]],
                "bbox_regression": [torch.from_numpy(np.abs(a))[None] for a in made["box"]],
                "bbox_ctrness": [torch.from_numpy(a)[None, :, None] for a in made["centerness"]],
            }
            call = functools.partial(model.postprocess_detections, outputs, [anchors], [shape])
            rows.append(
                timed(f"torchvision post-processing, {kind}", call, 1, 4 * arguments.repeats)
            )
        if not arguments.no_forward:
            for batch in sorted({1, arguments.batch}):
                images = list(torch.rand(batch, 3, *shape))
                call = functools.partial(model, images)
                name = f"torchvision fcos_resnet50 whole, batch {batch}"
                rows.append(timed(name, call, batch, arguments.repeats))
    return rows


if __name__ == "__main__":
    main()
