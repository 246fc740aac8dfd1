r"""A contact sheet of augmented training batches, as the network sees them.

    atss browse my_data --out=batches.png
    atss browse my_data --data.image_size=640 --augmentations "mosaic(0.5)"
    atss browse workdirs/mine

Of a folder of data, the batches are those with which `atss train` would begin: image size, batch
and augmentations are chosen in the same way, and options below change them. Of the folder of a run,
they are those of its recipe. Each tile is one row of a batch: padding black, ground truth in the
colour of its class, and the image id below it. One COCO file is read with --annotations and
--images, prepared sets with --data_dir, --name and --split instead.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from atss_jax.data import loader
from atss_jax.data.config import DataConfig
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.sources import load_split
from atss_jax.drawing import visualize
from atss_jax.errors import UserError
from atss_jax.run import build, training_view
from atss_jax.run.arguments import HelpFormatter, Parser
from atss_jax.run.recipe import Recipe
from atss_jax.run.recipe_io import expand_user
from atss_jax.structures import Batch

DEFAULT_BUCKETS = "800x1088,800x1216,800x1344,1088x800,1216x800,1344x800"


SIZE_OPTIONS = ("buckets", "short_sides", "max_long_side")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the data is."""
    for name, text in (
        ("root", "folder of a set in any known layout"),
        ("annotations", "COCO-format JSON file, instead"),
        ("images", "folder that its file names start from"),
        ("data_dir", "folder of prepared sets, instead"),
    ):
        parser.add_argument(f"--{name}", type=expand_user, default="", help=text)
    parser.add_argument("--name", default="data", help="of the prepared set")
    parser.add_argument("--split", default="train", help="of --root (train, val), or prepared")
    parser.add_argument(
        "--data.val_fraction",
        dest="val_fraction",
        type=float,
        metavar="SHARE",
        help="of the images that validate, as for `atss train`",
    )
    parser.add_argument("--on_error", default="strict", help="strict or skip")
    parser.add_argument("--max_bad_fraction", type=float, default=0.01)
    parser.add_argument("--exif", default="ignore", help="ignore, apply or error")


def parse_with_folder(
    parser: argparse.ArgumentParser, arguments: Sequence[str], help_text: str
) -> argparse.Namespace:
    """The command line of a tool whose one word without a name is the same as --root.

    Raises:
      UserError: the folder is given twice, or an argument is wrong.
    """
    parser.add_argument("folder", nargs="?", type=expand_user, default="", help=help_text)
    args = parser.parse_intermixed_args(list(arguments))
    if args.folder and args.root:
        raise UserError(f"{parser.prog}: give {args.folder}, or --root={args.root}, not both.")
    args.root = args.folder or args.root
    return args


def load(args: argparse.Namespace) -> DetectionDataset:
    """The data set of the command line."""
    is_there = args.root or args.data_dir or (args.annotations and args.images)
    if not is_there:
        raise UserError(
            "give a folder, or --annotations and --images, or --data_dir, --name and --split."
        )
    is_val = args.split in ("val", "valid", "validation")
    split = {} if args.val_fraction is None else {"val_fraction": args.val_fraction}
    config = DataConfig(
        **split,
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
    parser.add_argument("--batch_size", type=int, help="default: as in training")
    parser.add_argument("--start_step", type=int, default=0)
    parser.add_argument("--seed", type=int, help="default: as in training")
    training_view.add_image_size_argument(parser)
    parser.add_argument("--buckets", type=parse_buckets, help="as in 256x320,320x256")
    parser.add_argument("--short_sides", type=parse_range, help="800, or 640-800")
    parser.add_argument("--max_long_side", type=int, help="px")
    parser.add_argument(
        "--augmentations", nargs="*", help='as in "flip(0.5)" "mosaic(1)"; default: as in training'
    )
    parser.add_argument("--tile_width", type=int, default=360)
    return parse_with_folder(parser, arguments, "of data in any known layout, or of a run")


def training_of(args: argparse.Namespace) -> tuple[Recipe, DetectionDataset, str]:
    """The recipe of the training to show, its data, and a line about the sizes.

    Raises:
      ValueError, FileNotFoundError: missing or malformed data, or arguments that do not fit.
    """
    is_given = training_view.check_sizes_given_once(args, SIZE_OPTIONS)
    recipe = training_view.of_run(args.root)
    if recipe is not None:
        for name in ("image_size", "val_fraction"):
            if getattr(args, name) is not None:
                raise UserError(
                    f"--data.{name}: the run in {args.root} has its own. Give the folder of data."
                )
        train_set, val_set = build.load_sets(recipe)
        dataset = val_set if args.split == "val" else train_set
        line = f"as in the run {args.root}: short side {recipe.data.short_side} px"
    else:
        dataset = load(args)
        other = None
        if args.root:
            is_train = args.split == "train"
            other = load(
                argparse.Namespace(**{**vars(args), "split": "val" if is_train else "train"})
            )
        train_set, val_set = (dataset, other) if args.split == "train" else (other, dataset)
        recipe, line = training_view.resolve(train_set or dataset, val_set, args.image_size)
    data = recipe.data
    if is_given:
        short_sides = args.short_sides or data.train_short_sides or (data.short_side,)
        data = dataclasses.replace(
            data,
            buckets=args.buckets or data.buckets,
            train_short_sides=short_sides,
            max_long_side=args.max_long_side or data.max_long_side,
        )
        line = "sizes as given"
    if args.augmentations is not None:
        data = dataclasses.replace(data, augmentations=tuple(args.augmentations))
    data = dataclasses.replace(data, global_batch=args.batch_size or data.global_batch)
    run = recipe.run
    if args.seed is not None:
        run = dataclasses.replace(run, seed=args.seed)
    return dataclasses.replace(recipe, data=data, run=run), dataset, line


def main(arguments: Sequence[str]) -> int:
    """Draws the sheet; returns the exit code."""
    args = parse_args(arguments)
    recipe, dataset, line = training_of(args)
    print(line)
    plan = build.make_plan(recipe, dataset)
    max_boxes = max(recipe.data.max_boxes, int(dataset.num_boxes.max()))
    batch_size = recipe.data.global_batch
    tiles = []
    for step in range(args.start_step, args.start_step + args.batches):
        batch = loader.batch_at(dataset, plan, step, max_boxes=max_boxes)
        tiles += [draw_row(dataset, batch, row, args.tile_width) for row in range(batch_size)]
    visualize.save_image(args.out, visualize.contact_sheet(tiles, columns=batch_size))
    shapes = ", ".join(f"{h}x{w}" for h, w in plan.used_buckets)
    print(f"{args.batches} batches of {batch_size} images ({shapes} px) drawn in {args.out}")
    return 0
