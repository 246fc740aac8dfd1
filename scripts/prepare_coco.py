r"""Makes ArrayRecord files of a detection set: one pass over the images, checked, resumable.

    python scripts/prepare_coco.py --root=my_data --data_dir=data --name=mine --split=train
    python scripts/prepare_coco.py --annotations=data/coco/annotations/instances_val2017.json \
      --images=data/coco/val2017 --data_dir=data --name=coco2017 --split=validation

--root takes a folder of any layout that `data.root` takes (COCO, Roboflow, YOLO, Pascal VOC);
--split is then "train" or "validation".

Train from them with `--config.data.source=array_record --config.data.name=coco2017
--config.data.data_dir=data`. Everything that evaluation needs is in the records: the original
annotation ids, areas, crowds and category ids. TensorFlow is not needed. Called again after an
interruption, the script goes on with the first file that is not complete.
"""

import argparse
import sys
import time

from atss_jax.data.config import DataConfig
from atss_jax.data.sources import load_split
from atss_jax.data.tfds_builders import SHARD_BYTES, prepare_records


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="", help="folder of a set in any known layout")
    parser.add_argument("--annotations", default="", help="COCO-format JSON file, instead")
    parser.add_argument("--images", default="", help="folder that its file names start from")
    parser.add_argument("--data_dir", required=True, help="folder for prepared sets")
    parser.add_argument("--name", required=True, help="of the set: a-z, 0-9, _")
    parser.add_argument("--split", required=True, help='"train", "validation", ...')
    parser.add_argument("--on_error", default="strict", help="strict or skip")
    parser.add_argument("--max_bad_fraction", type=float, default=0.01)
    parser.add_argument(
        "--exif",
        default="ignore",
        help="ignore, apply or error: how sizes are meant; images are stored as they are",
    )
    parser.add_argument("--shard_mib", type=int, default=SHARD_BYTES // 2**20)
    return parser.parse_args()


def main() -> None:
    """Checks, then writes with a progress line."""
    args = parse_args()
    started = time.time()
    config = DataConfig(
        root=args.root,
        train_annotations=args.annotations,
        train_images=args.images,
        name=args.name,
        on_error=args.on_error,
        max_bad_fraction=args.max_bad_fraction,
        exif=args.exif,
    )
    is_val = bool(args.root) and args.split != "train"
    if is_val and args.split not in ("val", "validation"):
        raise ValueError(f'--split={args.split}: of --root, prepare "train" or "validation".')
    dataset = load_split(config, "val" if is_val else "train")
    print(
        f"{dataset.num_records} images, {len(dataset.annotations.id)} annotations, "
        f"{len(dataset.class_names)} classes checked in {time.time() - started:.1f} s"
    )
    is_terminal = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if is_terminal or done % 1000 == 0 or done == total:
            rate = done / (time.time() - started)
            end = "\r" if is_terminal and done < total else "\n"
            print(f"{done}/{total} images, {rate:.0f}/s", end=end, file=sys.stderr, flush=True)

    folder = prepare_records(
        dataset,
        args.data_dir,
        args.name,
        args.split,
        shard_bytes=args.shard_mib * 2**20,
        progress=progress,
    )
    print(f"{args.split} of {args.name} is ready in {folder}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
