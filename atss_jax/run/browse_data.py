r"""A contact sheet of augmented training batches, as the network sees them.

    atss browse --root=my_data --out=sheet.png \
      --buckets=256x320,320x256 --short_sides=200-240 --max_long_side=320 \
      --augmentations "flip(0.5)" "color_jitter(0.2)"

Each tile is one row of a batch: padding black, ground truth in the colour of its class, the id of
the image above. One COCO file is read with --annotations and
--images, prepared sets with --data_dir, --name and --split instead.
"""

import argparse
from collections.abc import Sequence

import cv2
import numpy as np

from atss_jax.data import loader
from atss_jax.data.batch_plan import BatchPlan
from atss_jax.data.config import DataConfig
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.sources import load_split
from atss_jax.drawing import visualize
from atss_jax.errors import UserError
from atss_jax.run.arguments import HelpFormatter, Parser
from atss_jax.structures import Batch

DEFAULT_BUCKETS = "800x1088,800x1216,800x1344,1088x800,1216x800,1344x800"


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the data is."""
    parser.add_argument("--root", default="", help="folder of a set in any known layout")
    parser.add_argument("--annotations", default="", help="COCO-format JSON file, instead")
    parser.add_argument("--images", default="", help="folder that its file names start from")
    parser.add_argument("--data_dir", default="", help="folder of prepared sets, instead")
    parser.add_argument("--name", default="data", help="of the prepared set")
    parser.add_argument("--split", default="train", help="of --root (train, val), or prepared")
    parser.add_argument("--on_error", default="strict", help="strict or skip")
    parser.add_argument("--max_bad_fraction", type=float, default=0.01)
    parser.add_argument("--exif", default="ignore", help="ignore, apply or error")


def load(args: argparse.Namespace) -> DetectionDataset:
    """The data set of the command line."""
    is_there = args.root or args.data_dir or (args.annotations and args.images)
    if not is_there:
        raise UserError(
            "give --root, or --annotations and --images, or --data_dir, --name and --split."
        )
    is_val = args.split in ("val", "valid", "validation")
    config = DataConfig(
        root=args.root,
        source="array_record" if args.data_dir else "coco_json",
        name=args.name,
        data_dir=args.data_dir,
        train_split=args.split,
        train_annotations=args.annotations,
        train_images=args.images,
        on_error=args.on_error,
        max_bad_fraction=args.max_bad_fraction,
        exif=args.exif,
    )
    return load_split(config, "val" if args.root and is_val else "train")


def parse_buckets(text: str) -> tuple[tuple[int, int], ...]:
    """Shapes ((800, 1088), (1088, 800)) from "800x1088,1088x800"."""
    pairs = [part.split("x") for part in text.split(",")]
    return tuple((int(height), int(width)) for height, width in pairs)


def parse_range(text: str) -> tuple[int, ...]:
    """Every integer of "640-800", or the two of "480,800"."""
    if "-" in text:
        low, high = text.split("-")
        return tuple(range(int(low), int(high) + 1))
    return tuple(int(part) for part in text.split(","))


def draw_row(dataset: DetectionDataset, batch: Batch, row: int, width: int) -> np.ndarray:
    """One row of a batch as a tile of `width` px, RGB."""
    image = np.asarray(batch.image[row])
    zoom = width / image.shape[1]
    tile = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
    truth, is_valid = batch.ground_truth, np.asarray(batch.ground_truth.is_valid[row])
    tile = visualize.draw_boxes(
        tile,
        np.asarray(truth.boxes[row])[is_valid] * zoom,
        np.asarray(truth.labels[row])[is_valid],
        class_names=dataset.class_names,
        min_short_side=1,
    )
    about = f"{dataset.image_id(batch.record_index[row])}  {image.shape[0]}x{image.shape[1]} px"
    return visualize.with_title(tile, about)


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="atss browse",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument("--out", default="batches.png", help="picture to write")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--start_step", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--buckets", type=parse_buckets, default=parse_buckets(DEFAULT_BUCKETS))
    parser.add_argument("--short_sides", type=parse_range, default=(800,), help="800, or 640-800")
    parser.add_argument("--max_long_side", type=int, default=1333)
    parser.add_argument(
        "--augmentations", nargs="*", default=("flip(0.5)",), help='as in "flip(0.5)" "mosaic(1)"'
    )
    parser.add_argument("--tile_width", type=int, default=360)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Draws the sheet; returns the exit code."""
    args = parse_args(arguments)
    dataset = load(args)
    plan = BatchPlan(
        dataset.sizes,
        buckets=args.buckets,
        global_batch=args.batch_size,
        seed=args.seed,
        short_sides=args.short_sides,
        max_long_side=args.max_long_side,
        augmentations=args.augmentations,
    )
    tiles = []
    for step in range(args.start_step, args.start_step + args.batches):
        batch = loader.batch_at(dataset, plan, step, max_boxes=max(1, int(dataset.num_boxes.max())))
        tiles += [draw_row(dataset, batch, row, args.tile_width) for row in range(args.batch_size)]
    visualize.save_image(args.out, visualize.contact_sheet(tiles, columns=args.batch_size))
    print(f"{args.batches} batches of {args.batch_size} images drawn in {args.out}")
    return 0
