r"""Times the input pipeline on a data set, beside bare OpenCV on the same files in the same run.

    python scripts/bench_input.py --annotations=.../instances_train2017.json --images=.../train2017

One thread first, in CPU time: batches alternate with bare `cv2.imdecode` + `cv2.resize` of the same
images (files in the page cache), so a busy machine slows both. Then the loader as training runs it,
with 0, 1 and 2 workers, in wall time. Then resident memory over many images. Where PyTorch is
installed, the steps of torchvision's reference pipeline (Pillow, float tensor, normalise, resize,
pad) are timed as well. The last line is JSON.
"""

import argparse
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from atss_jax.data import batch_rows, images, loader
from atss_jax.data.batch_plan import BatchPlan, PlannedBatch
from atss_jax.data.dataset import DetectionDataset
from atss_jax.run.browse_data import DEFAULT_BUCKETS, add_source_arguments, load, parse_buckets

Seconds = dict[str, list[float]]


def clock(seconds: Seconds, name: str, function: Callable, *args, **keywords):
    """Calls a function and adds the CPU time that it took."""
    started = time.thread_time()
    result = function(*args, **keywords)
    seconds.setdefault(name, []).append(time.thread_time() - started)
    return result


def bare_round(dataset: DetectionDataset, rows: PlannedBatch) -> None:
    """Decode and resize with OpenCV and nothing else."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    for record, target in zip(rows.record_index.tolist(), rows.target.tolist(), strict=True):
        data = np.frombuffer(dataset.image_bytes(record), np.uint8)
        image = cv2.imdecode(data, flags)
        if image is None:
            raise ValueError(f"{dataset.file_name(record)}: OpenCV alone does not decode it.")
        cv2.resize(image, (target[1], target[0]), interpolation=cv2.INTER_LINEAR)


def split_round(dataset: DetectionDataset, rows: PlannedBatch, seconds: Seconds) -> None:
    """Where the time of an image goes."""
    for record, target in zip(rows.record_index.tolist(), rows.target.tolist(), strict=True):
        data = clock(seconds, "read", dataset.image_bytes, record)
        image = clock(seconds, "decode", images.decode, data)
        clock(
            seconds,
            "resize",
            cv2.resize,
            image,
            (target[1], target[0]),
            interpolation=cv2.INTER_LINEAR,
        )


def reference_round(dataset: DetectionDataset, rows: PlannedBatch) -> None:
    """The steps of torchvision's detection references and GeneralizedRCNNTransform."""
    import torch  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    batch = torch.zeros(len(rows.record_index), 3, *rows.bucket)
    for row, record in enumerate(rows.record_index.tolist()):
        pixels = np.array(Image.open(io.BytesIO(dataset.image_bytes(record))).convert("RGB"))
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255)
        image = (image - mean) / std
        height, width = rows.target[row].tolist()
        image = torch.nn.functional.interpolate(
            image[None], size=(height, width), mode="bilinear", align_corners=False
        )[0]
        batch[row, :, :height, :width] = image


def one_thread(dataset: DetectionDataset, plan: BatchPlan, rounds: int) -> dict[str, float]:
    """Milliseconds an image: medians over rounds of one batch each."""
    cv2.setNumThreads(1)
    has_torch = importable("torch")
    count = plan.global_batch
    max_boxes = max(1, int(dataset.num_boxes.max()))
    seconds: Seconds = {}
    for step in range(rounds + 2):
        rows = plan.step(step)
        parts: Seconds = {}
        clock(parts, "bare", bare_round, dataset, rows)
        clock(
            parts,
            "ours",
            batch_rows.make_batch,
            dataset,
            rows,
            max_boxes,
            augmentations=plan.augmentations,
        )
        clock(parts, "bare", bare_round, dataset, rows)
        split_round(dataset, rows, parts)
        if has_torch and step < 6:
            clock(parts, "reference", reference_round, dataset, rows)
        if step >= 2:  # two rounds to warm up
            parts["bare"] = [statistics.mean(parts["bare"]) * 2]
            for name, values in parts.items():
                seconds.setdefault(name, []).append(sum(values) / count)
            seconds["bare"][-1] /= 2
    result = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    ratios = [o / b for o, b in zip(seconds["ours"], seconds["bare"], strict=True)]
    return result | {"ratio": statistics.median(ratios)}


def importable(name: str) -> bool:
    """Whether a package is installed, without importing it."""
    from importlib.util import find_spec

    return find_spec(name) is not None


def loader_rate(
    dataset: DetectionDataset, plan: BatchPlan, num_workers: int, seconds: float
) -> float:
    """Images a second that a consumer gets, after the workers have started."""
    max_boxes = max(1, int(dataset.num_boxes.max()))
    with loader.train_batches(
        dataset, plan, num_workers=num_workers, max_boxes=max_boxes, prefetch=2
    ) as batches:
        for _ in range(2 + 4 * num_workers):  # until buffers that were filled ahead are used up
            next(batches)
        started = time.perf_counter()
        count = 0
        while time.perf_counter() - started < seconds or count % max(1, num_workers):
            next(batches)
            count += 1
        return count * plan.global_batch / (time.perf_counter() - started)


def waiting_ms(dataset: DetectionDataset, plan: BatchPlan, num_workers: int) -> float:
    """Median ms that the training thread spends on taking a batch that is ready."""
    max_boxes = max(1, int(dataset.num_boxes.max()))
    taken = []
    with loader.train_batches(
        dataset, plan, num_workers=num_workers, max_boxes=max_boxes, prefetch=2
    ) as batches:
        for step in range(12):
            if step:
                time.sleep(0.25)  # the time of a step, in which batches are prepared
            started = time.perf_counter()
            batch = next(batches)
            taken.append(time.perf_counter() - started)
            del batch
    return 1e3 * statistics.median(taken[2:])


def resident_mb(pid: int | str = "self") -> float:
    """Proportional resident memory of a process, MB."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def memory_over(
    dataset: DetectionDataset, plan: BatchPlan, count: int, num_workers: int
) -> tuple[float, float]:
    """Peak MB of this process and its workers in the first fifth, and in the rest."""
    import multiprocessing

    max_boxes = max(1, int(dataset.num_boxes.max()))
    peaks = [0.0, 0.0]
    steps = -(-count // plan.global_batch)
    with loader.train_batches(
        dataset, plan, num_workers=num_workers, max_boxes=max_boxes, prefetch=2
    ) as batches:
        for step in range(steps):
            next(batches)
            if step % 5 == 4:
                pids = [os.getpid(), *(p.pid for p in multiprocessing.active_children())]
                total = sum(resident_mb(pid) for pid in pids if pid)
                part = int(step >= steps / 5)
                peaks[part] = max(peaks[part], total)
    return peaks[0], peaks[1]


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_source_arguments(parser)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--buckets", type=parse_buckets, default=parse_buckets(DEFAULT_BUCKETS))
    parser.add_argument("--short_side", type=int, default=800)
    parser.add_argument("--max_long_side", type=int, default=1333)
    parser.add_argument("--rounds", type=int, default=20, help="batches on one thread")
    parser.add_argument("--seconds", type=float, default=8, help="for each number of workers")
    parser.add_argument("--workers", type=int, nargs="*", default=(0, 1, 2))
    parser.add_argument("--memory_images", type=int, default=5000, help="0 leaves it out")
    return parser.parse_args()


def make_plan(dataset: DetectionDataset, args: argparse.Namespace, batch_size: int) -> BatchPlan:
    """The plan of plain training: resize, flip, pad."""
    return BatchPlan(
        dataset.sizes,
        buckets=args.buckets,
        global_batch=batch_size,
        seed=0,
        short_sides=(args.short_side,),
        max_long_side=args.max_long_side,
    )


def main() -> None:
    """Measures and prints."""
    args = parse_args()
    dataset = load(args)
    plan = make_plan(dataset, args, args.batch_size)
    # a handful of images leaves some buckets without a full batch; a real set does not
    padding = make_plan(dataset, args, 1).padding
    times = one_thread(dataset, plan, args.rounds)
    rest = times["ours"] - times["read"] - times["decode"] - times["resize"]
    print(f"{dataset.num_records} images, batches of {args.batch_size}, CPU ms per image:")
    for name in ("read", "decode", "resize"):
        print(f"  {name:<36}{times[name]:8.2f}")
    print(f"  {'rest (flip, pad, boxes, batch)':<36}{rest:8.2f}")
    print(f"  {'all of it':<36}{times['ours']:8.2f}")
    print(f"  {'bare read + imdecode + resize':<36}{times['bare']:8.2f}")
    print(f"  {'ratio':<36}{times['ratio']:8.2f}")
    reference = times.get("reference")
    if reference:
        print(f"  {'torchvision reference steps':<36}{reference:8.2f}")
        print(f"  {'reference / ours':<36}{reference / times['ours']:8.2f}")
    rates = {}
    for workers in args.workers:
        rates[workers] = loader_rate(dataset, plan, workers, args.seconds)
        print(f"loader, {workers} workers: {rates[workers]:.0f} images/s")
    waiting = waiting_ms(dataset, plan, max(args.workers))
    print(f"taking a ready batch, {max(args.workers)} workers: {waiting:.2f} ms")
    memory = (0.0, 0.0)
    if args.memory_images:
        memory = memory_over(dataset, plan, args.memory_images, max(args.workers))
        print(
            f"memory over {args.memory_images} images, {max(args.workers)} workers: at most "
            f"{memory[0]:.0f} MB in the first fifth, {memory[1]:.0f} MB later"
        )
    print(f"padding: {100 * padding:.1f} % extra pixels in {len(args.buckets)} buckets")
    scaling = rates[2] / rates[1] if {1, 2} <= rates.keys() else None
    summary = {
        "images_per_s_core": 1e3 / times["ours"],
        "ratio_to_bare": times["ratio"],
        "ratio_to_reference": reference and reference / times["ours"],
        "scaling_2_workers": scaling,
        "ready_batch_ms": waiting,
        "padding": padding,
        "rss_mb": max(memory),
        "rss_mb_first_fifth": memory[0],
        "ms_per_image": times,
        "images_per_s_by_workers": rates,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
