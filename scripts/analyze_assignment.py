"""What the assigners do to a data set: positives by object size and by level. No training, CPU.

    python scripts/analyze_assignment.py --annotations=instances.json --images=images/

Boxes are scaled as in training (short side 800, long side at most 1333). For each assigner: mean
positives of an object by COCO size class (in the original image), the share of objects with none,
positives by level. For ATSS also the candidates' IoU statistics, and positives against the paper's
claim of about 0.2 k L (Sec. 4.1). Prints tables; writes `assignment.json` and `assignment.png`.
"""

import argparse
import functools
import json
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from atss_jax import assigners
from atss_jax.data.coco import load_coco
from atss_jax.data.config import DataConfig
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.structures import GroundTruth

ASSIGNERS = {
    "ATSS": assigners.assign_atss,
    "max IoU (RetinaNet)": assigners.assign_max_iou,
    "max IoU, in box": functools.partial(assigners.assign_max_iou, positives_in_box=True),
    "FCOS": assigners.assign_spatial_scale,
    "FCOS, center sampling": functools.partial(assigners.assign_spatial_scale, center_radius=1.5),
    "top 9 by IoU": assigners.assign_top_k_iou,
}
SIZES = (("tiny", 0, 16), ("small", 16, 32), ("medium", 32, 96), ("large", 96, np.inf))
"""Names with lower and upper side, sqrt(area) px; COCO's classes, tiny apart from small."""
LEVELS = ("P3", "P4", "P5", "P6", "P7")
K = 9
BATCH = 8


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--annotations", required=True, help="COCO-format JSON file")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--out", default="analysis", help="folder for assignment.json and .png")
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--max-long-side", type=int, default=1333)
    parser.add_argument("--limit", type=int, default=0, help="images to look at; 0 for all")
    return parser.parse_args()


def read_scenes(args: argparse.Namespace):
    """(sizes [N, 2], boxes scaled, sides sqrt(area) in the original) of images with objects."""
    dataset = load_coco(
        args.annotations, args.images, name="analysis", config=DataConfig(on_error="skip")
    )
    sizes, boxes, sides = [], [], []
    for record in range(dataset.num_records):
        original = dataset.boxes(record)
        if len(original) == 0 or 0 < args.limit <= len(sizes):
            continue
        height, width = dataset.sizes[record]
        scale = min(args.short_side / min(height, width), args.max_long_side / max(height, width))
        sizes.append(np.round(np.array([height, width]) * scale).astype(np.int32))
        boxes.append((original * scale).astype(np.float32))
        sides.append(np.sqrt(np.prod(original[:, 2:] - original[:, :2], axis=1)))
    if not sizes:
        raise SystemExit(f"{args.annotations}: no image with objects.")
    return np.stack(sizes), boxes, sides


def count_positives(assign, grid, image_size, gt):
    """Positives [G, L] of each object by level; one image."""
    assignment = assign(grid, image_size, gt)
    level = np.repeat(np.arange(grid.num_levels), grid.num_per_level)
    counts = jnp.zeros((gt.boxes.shape[0], grid.num_levels), jnp.int32)
    return counts.at[assignment.gt_index, level].add(assignment.is_positive)


def atss_statistics(grid, image_size, gt):
    """Mean, standard deviation and threshold of the candidates' IoUs, [3, G]; one image."""
    candidates = assigners.select_candidates(grid, image_size, gt, candidates_per_level=K)
    return jnp.stack(assigners.iou_thresholds(candidates))


def over_all_images(function, sizes, boxes, grid, num_slots):
    """`function(grid, image_size, gt)` over images in batches; rows of the real objects only."""
    compiled = jax.jit(jax.vmap(functools.partial(function, grid)))
    rows = []
    for start in range(0, len(boxes), BATCH):
        index = np.minimum(np.arange(start, start + BATCH), len(boxes) - 1)
        padded = np.zeros((BATCH, num_slots, 4), np.float32)
        for i, image in enumerate(index):
            padded[i, : len(boxes[image])] = boxes[image]
        valid = np.arange(num_slots) < np.array([len(boxes[image]) for image in index])[:, None]
        gt = GroundTruth(padded, np.zeros(valid.shape, np.int32), valid)
        found = np.asarray(compiled(sizes[index], gt))
        rows += [
            found[i][: len(boxes[image])] for i, image in enumerate(index) if image == start + i
        ]
    return np.concatenate(rows)


def summarize(counts: np.ndarray, sides: np.ndarray) -> dict:
    """Numbers of one assigner from positives [M, L] of all objects."""
    totals = counts.sum(axis=1)
    summary = {
        "positives_per_object": float(totals.mean()),
        "share_without_positives": float((totals == 0).mean()),
        "positives_std": float(totals.std()),
        "share_by_level": dict(zip(LEVELS, (counts.sum(0) / counts.sum()).tolist(), strict=True)),
        "by_size": {},
    }
    for name, low, high in SIZES:
        chosen = (sides >= low) & (sides < high)
        if chosen.any():
            summary["by_size"][name] = {
                "objects": int(chosen.sum()),
                "positives_per_object": float(totals[chosen].mean()),
                "share_without_positives": float((totals[chosen] == 0).mean()),
            }
    return summary


def print_tables(result: dict) -> None:
    """The summary, for people."""
    sizes = result["objects_by_size"]
    print(
        f"{result['images']} images, {result['objects']} objects: "
        + ", ".join(f"{count} {name}" for name, count in sizes.items())
    )
    names = list(sizes)
    print("\npositives an object (share of objects without any)")
    print(f"{'':24}{'all':>15}" + "".join(f"{name:>15}" for name in names))
    for title, summary in result["assigners"].items():
        cells = [summary] + [summary["by_size"][name] for name in names]
        print(
            f"{title:24}"
            + "".join(
                f"{cell['positives_per_object']:7.1f} ({cell['share_without_positives']:5.1%})"
                for cell in cells
            )
        )
    print("\nshare of positives by level")
    print(f"{'':24}" + "".join(f"{level:>8}" for level in LEVELS))
    for title, summary in result["assigners"].items():
        cells = "".join(f"{share:8.1%}" for share in summary["share_by_level"].values())
        print(f"{title:24}{cells}")
    atss = result["atss"]
    print(
        f"\nATSS candidates: mean IoU m_g {atss['mean_iou']:.3f}, standard deviation v_g "
        f"{atss['std_iou']:.3f}, threshold t_g {atss['threshold']:.3f} (averages over objects)"
    )
    print(
        f"ATSS positives: {atss['positives_per_object']:.2f} an object; the paper's 0.2 k L is "
        f"{atss['claim']:.1f}"
    )


def plot(counts: dict[str, np.ndarray], sides: np.ndarray, path: Path) -> None:
    """Positives against object size, and shares by level."""
    figure = Figure(figsize=(12, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    edges = np.geomspace(max(2, sides.min()), sides.max() + 1, 11)
    middles = np.sqrt(edges[1:] * edges[:-1])
    for name, per_level in counts.items():
        totals = per_level.sum(axis=1)
        bins = [(sides >= a) & (sides < b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        points = [
            (x, totals[chosen].mean())
            for x, chosen in zip(middles, bins, strict=True)
            if any(chosen)
        ]
        left.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    left.set(
        xscale="log",
        yscale="symlog",
        xlabel="object side, px of the original image",
        ylabel="positives per object",
        title="positives by object size",
    )
    left.set_ylim(bottom=0)
    left.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=8)
    bottom = np.zeros(len(counts))
    for level, name in enumerate(LEVELS):
        shares = np.array([c[:, level].sum() / c.sum() for c in counts.values()])
        right.barh(list(counts), shares, left=bottom, label=name)
        bottom += shares
    right.invert_yaxis()
    right.set(xlim=(0, 1), title="share of positives by level")
    right.legend(
        frameon=False, ncols=5, loc="lower center", bbox_to_anchor=(0.5, -0.22), fontsize=8
    )
    figure.savefig(path)


def main() -> None:
    """Reads, assigns, prints, writes."""
    args = parse_args()
    sizes, boxes, sides = read_scenes(args)
    sides = np.concatenate(sides)
    bucket = tuple(int(-(-side // 32) * 32) for side in sizes.max(axis=0))
    grid = AnchorGrid((bucket[0], bucket[1]))
    num_slots = max(len(b) for b in boxes)
    counts = {
        name: over_all_images(
            functools.partial(count_positives, assign), sizes, boxes, grid, num_slots
        )
        for name, assign in ASSIGNERS.items()
    }
    statistics = over_all_images(
        lambda *scene: atss_statistics(*scene).T, sizes, boxes, grid, num_slots
    )
    mean, std, threshold = (float(value) for value in statistics.mean(axis=0))
    summaries = {name: summarize(c, sides) for name, c in counts.items()}
    result = {
        "images": len(boxes),
        "objects": len(sides),
        "objects_by_size": {
            name: found["objects"] for name, found in summaries["ATSS"]["by_size"].items()
        },
        "assigners": summaries,
        "atss": {
            "mean_iou": mean,
            "std_iou": std,
            "threshold": threshold,
            "positives_per_object": summaries["ATSS"]["positives_per_object"],
            "claim": 0.2 * K * grid.num_levels,
        },
    }
    print_tables(result)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "assignment.json").write_text(json.dumps(result, indent=2) + "\n")
    plot(counts, sides, out / "assignment.png")


if __name__ == "__main__":
    main()
