"""Times every assigner, and ATSS against its usual form with a distance matrix.

    python scripts/bench_assigner.py                     # one CPU thread
    python scripts/bench_assigner.py --device default    # the default device, such as a GPU

22,400 anchors (800 x 1344), a batch of 16. The distance-matrix form gets the same inputs, and every
anchor must agree before anything is timed. Prints a table and, last, one line of JSON.
"""

import argparse
import functools
import json
import os
import time

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
PARSER.add_argument("--device", choices=("cpu", "default"), default="cpu", help="cpu: one thread")
PARSER.add_argument("--slots", type=int, nargs="+", default=[1, 7, 20, 100, 1000])
PARSER.add_argument("--batch", type=int, default=16)
PARSER.add_argument("--seconds", type=float, default=1.0, help="of timing for each row")


def use_one_cpu_thread() -> None:
    """Before JAX starts: its thread pools take their size from the cores they may use."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def assign_atss_by_matrix(grid, image_size, gt, *, candidates_per_level=9, in_box_margin=0.01):
    """ATSS as it is usually written: distance and IoU of every anchor with every object."""
    import jax.numpy as jnp
    from jax import lax

    from atss_jax.geometry import boxes as box_math
    from atss_jax.structures import Assignment

    anchors, centers = jnp.array(grid.boxes()), jnp.array(grid.centers())
    own = grid.own_mask(image_size)
    iou = box_math.pairwise_iou(anchors, gt.boxes)  # [A, G]
    gaps = centers[:, None] - box_math.box_centers(gt.boxes)[None]
    distance = jnp.where(own[:, None], jnp.sum(gaps**2, axis=2), jnp.inf)
    indices = []
    for start, count in zip(grid.level_starts, grid.num_per_level, strict=True):
        k = min(candidates_per_level * grid.num_per_location, count)
        indices.append(start + lax.top_k(-distance[start : start + count].T, k)[1])
    index = jnp.concatenate(indices, axis=1).T  # [N, G]
    slot_iou = jnp.take_along_axis(iou, index, axis=0)
    threshold = jnp.mean(slot_iou, axis=0) + jnp.std(slot_iou, axis=0, ddof=1)
    objects = jnp.arange(gt.boxes.shape[0])
    is_candidate = jnp.zeros(iou.shape, bool).at[index, objects].set(True)
    ltrb = box_math.points_to_ltrb(centers[:, None], gt.boxes[None])
    claims = is_candidate & (iou >= threshold) & (jnp.min(ltrb, axis=2) > in_box_margin)
    claims = claims & gt.is_valid
    best = jnp.where(claims, iou, -1)
    is_positive = jnp.any(claims, axis=1)
    gt_index = jnp.where(is_positive, jnp.argmax(best, axis=1), 0)
    return Assignment(gt_index.astype(jnp.int32), is_positive, ~own)


def random_scenes(batch: int, slots: int, seed: int = 0):
    """Objects of COCO-like sizes, all slots filled, in whole px so that ties are exact."""
    import jax.numpy as jnp
    import numpy as np

    from atss_jax.structures import GroundTruth

    rng = np.random.default_rng(seed)
    limits = np.array([1333, 800])
    centers = rng.uniform(0, 1, (batch, slots, 2)) * limits
    sides = 2 ** rng.uniform(3, 9.5, (batch, slots, 2))
    low = np.clip(np.round(centers - sides / 2), 0, limits - 4)
    high = np.clip(np.round(centers + sides / 2), low + 4, limits)
    boxes = jnp.array(np.concatenate([low, high], axis=2), jnp.float32)
    sizes = jnp.tile(jnp.array([[800, 1333]], jnp.int32), (batch, 1))
    labels = jnp.zeros((batch, slots), jnp.int32)
    return sizes, GroundTruth(boxes, labels, jnp.ones((batch, slots), bool))


def compile_for(assign, grid, scenes):
    """The compiled, batched assigner and its temporary memory in bytes per image."""
    import jax

    compiled = jax.jit(jax.vmap(functools.partial(assign, grid))).lower(*scenes).compile()
    memory = compiled.memory_analysis()
    batch = scenes[0].shape[0]
    return compiled, (memory.temp_size_in_bytes if memory is not None else 0) / batch


def time_per_image(compiled, scenes, seconds: float) -> float:
    """Milliseconds an image: the fastest of as many calls as fit, at least three."""
    import jax

    times = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*scenes))
        times.append(time.perf_counter() - start)
    return min(times) * 1e3 / scenes[0].shape[0]


def main() -> None:
    """Runs the benchmark."""
    args = PARSER.parse_args()
    if args.device == "cpu":
        use_one_cpu_thread()
    import jax
    import numpy as np

    from atss_jax.assigners import ASSIGNERS
    from atss_jax.geometry.anchors import AnchorGrid

    grid = AnchorGrid((800, 1344))
    forms = dict(ASSIGNERS) | {"atss, distance matrix": assign_atss_by_matrix}
    print(f"{jax.devices()[0].device_kind}, {grid.num_anchors} anchors, batch {args.batch}")
    print(f"{'assigner':24}{'slots':>6}{'ms/image':>11}{'temp MB/image':>15}")
    times, temps, atss = {}, {}, {}
    for slots in args.slots:
        for name, assign in forms.items():
            if name == "atss, distance matrix" and slots > 100:
                continue  # hundreds of MB an image
            scenes = random_scenes(args.batch, slots)
            compiled, temp = compile_for(assign, grid, scenes)
            if name == "atss, distance matrix":
                windowed = compile_for(ASSIGNERS["atss"], grid, scenes)[0]
                for a, b in zip(compiled(*scenes), windowed(*scenes), strict=True):
                    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
            if name == "atss":
                atss[slots] = compiled, scenes
            times[name, slots] = time_per_image(compiled, scenes, args.seconds)
            temps[name, slots] = temp / 1e6
            print(
                f"{name:24}{slots:6}{times[name, slots]:11.3f}{temps[name, slots]:15.2f}",
                flush=True,
            )
    print("every anchor of the two forms of ATSS is equal")
    for _ in range(5):  # in turns, so that a busy machine is unfair to none
        for slots, (compiled, scenes) in atss.items():
            again = time_per_image(compiled, scenes, args.seconds / 3)
            times["atss", slots] = min(times["atss", slots], again)
    print(
        "atss again, in turns: " + ", ".join(f"{n} slots {times['atss', n]:.3f} ms" for n in atss)
    )
    result = {"device": jax.devices()[0].device_kind}
    if 100 in args.slots:
        result["atss_ms_100"] = round(times["atss", 100], 4)
        ratio = times["atss, distance matrix", 100] / times["atss", 100]
        result["speedup_vs_distance_matrix"] = round(ratio, 1)
        result["temp_mb_100"] = round(temps["atss", 100], 3)
    if 1000 in args.slots:
        result["ms_1000"] = round(times["atss", 1000], 4)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
