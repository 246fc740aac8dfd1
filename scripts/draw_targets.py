"""Draws what an assigner does to one image: candidates as rings, positives as dots, by level.

    python scripts/draw_targets.py --annotations=instances.json --images=images/ --record=3

Boxes are scaled as in training, the picture shows the image at that size. Without --assigner all
are drawn, on one sheet.
"""

import argparse
import functools
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from atss_jax.assigners import ASSIGNERS, select_candidates
from atss_jax.data.batch_rows import read_image
from atss_jax.data.coco import load_coco
from atss_jax.data.config import DataConfig
from atss_jax.data.images import Placement, resized_size, write_row
from atss_jax.drawing import visualize
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.structures import GroundTruth


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--annotations", required=True, help="COCO-format JSON file")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--record", type=int, default=0, help="place of the image in the data set")
    parser.add_argument("--assigner", choices=list(ASSIGNERS), help="one of them; all without")
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--max-long-side", type=int, default=1333)
    parser.add_argument("--out", default="targets.png")
    return parser.parse_args()


def read_scene(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """The image RGB and its boxes, resized as in training."""
    dataset = load_coco(
        args.annotations, args.images, name="draw", config=DataConfig(on_error="skip")
    )
    if not 0 <= args.record < dataset.num_records:
        raise SystemExit(f"--record={args.record}: the data set has {dataset.num_records} images.")
    image = read_image(dataset, args.record)
    size = (image.shape[0], image.shape[1])
    target = resized_size(size, args.short_side, args.max_long_side)
    row = np.zeros((*target, 3), np.uint8)
    write_row(row, image, Placement.whole(target))
    scale = np.tile((np.array(target) / size)[::-1], 2)
    return row, (dataset.boxes(args.record) * scale).astype(np.float32)


def by_level(grid: AnchorGrid, mask: np.ndarray) -> list[np.ndarray]:
    """Centres of the chosen anchors on each level."""
    parts = np.split(
        np.flatnonzero(mask), np.searchsorted(np.flatnonzero(mask), grid.level_starts[1:])
    )
    return [grid.centers()[part] for part in parts]


def draw(name: str, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """One assigner's picture."""
    height, width = image.shape[:2]
    grid = AnchorGrid((-(-height // 32) * 32, -(-width // 32) * 32))
    gt = GroundTruth(
        jnp.array(boxes).reshape(-1, 4),
        jnp.zeros(len(boxes), jnp.int32),
        jnp.ones(len(boxes), bool),
    )
    size = jnp.array([height, width])
    assignment = jax.jit(functools.partial(ASSIGNERS[name], grid))(size, gt)
    rings = None
    if name == "atss":
        candidates = jax.jit(functools.partial(select_candidates, grid))(size, gt)
        mask = np.zeros(grid.num_anchors, bool)
        mask[np.asarray(candidates.anchor_index)[np.asarray(candidates.is_candidate)]] = True
        rings = by_level(grid, mask)
    positives = by_level(grid, np.asarray(assignment.is_positive))
    return visualize.draw_positives(image, positives, boxes, candidates_per_level=rings, title=name)


def main() -> None:
    """Reads, assigns, draws."""
    args = parse_args()
    image, boxes = read_scene(args)
    names = [args.assigner] if args.assigner else list(ASSIGNERS)
    pictures = [draw(name, image, boxes) for name in names]
    picture = pictures[0] if len(pictures) == 1 else visualize.contact_sheet(pictures)
    visualize.save_image(args.out, picture)
    print(f"{args.out}: {len(boxes)} objects, {', '.join(names)}")


if __name__ == "__main__":
    main()
