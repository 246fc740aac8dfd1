"""Recipe group "data": where images come from and what is done to them."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from atss_jax.config import ConfigGroup, Range
from atss_jax.data.augment_list import parse_augmentation
from atss_jax.errors import UserError


class SplitConfig(NamedTuple):
    """Where one split is."""

    name: str
    """"train" or "val"."""
    annotations: str
    images: str
    split: str


def moved_message(name: str) -> str:
    """An error text for a former field of the group."""
    return (
        f"config.data.{name}: no such field. It is an entry of config.data.augmentations, such as "
        f"{DataConfig.MOVED[name]}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(ConfigGroup, name="data"):
    """Source, checks, batches, sizes, augmentation and normalisation of the images."""

    root: str = ""
    """Folder of your data (or its data.yaml, or one COCO JSON file): COCO, Roboflow, YOLO or Pascal
    VOC is found by the files in it. It takes the place of `source` and its paths."""
    val_fraction: Annotated[float, Range(above=0, high=1)] = 0.2
    """root: share of the images that validate, where the folder has one list for all; chosen by a
    hash of the file name, at least one image for each part. 1, for evaluations: all of them."""
    source: Literal["coco_json", "tfds", "array_record"] = "coco_json"
    """coco_json (annotation file and image folder), tfds (a builder of this package) or
    array_record (made by scripts/prepare_coco.py)."""
    name: str = "coco2017"
    """tfds: builder name ("shapes"); otherwise a name for messages."""
    data_dir: str = "data"
    """tfds, array_record: folder of the prepared records."""
    train_annotations: str = "data/coco/annotations/instances_train2017.json"
    """coco_json: annotation file of the training set (any path that etils.epath reads)."""
    train_images: str = "data/coco/train2017"
    """coco_json: image folder of the training set."""
    val_annotations: str = "data/coco/annotations/instances_val2017.json"
    """coco_json: annotation file of the validation set."""
    val_images: str = "data/coco/val2017"
    """coco_json: image folder of the validation set."""
    train_split: str = "train"
    """tfds, array_record: name of the training split."""
    val_split: str = "validation"
    """tfds, array_record: name of the validation split."""
    on_error: Literal["strict", "skip"] = "strict"
    """Bad records: strict stops with file and id, skip drops and counts them."""
    max_bad_fraction: Annotated[float, Range(0, 1)] = 0.01
    """skip: largest share of bad records before it stops all the same."""
    exif: Literal["ignore", "apply", "error"] = "ignore"
    """EXIF orientation: ignore (the annotations were made on stored pixels, as COCO's), apply or
    error."""
    max_pixels: Annotated[int, Range(1)] = 178_956_970
    """Largest image, px (height x width): a larger one is a bad record, before it is decoded."""
    allow_outside: bool = False
    """coco_json: whether file names may leave the image folder (absolute ones, "..")."""
    index_folder: str = "~/.cache/atss_jax"
    """COCO-format sets of more than 500 images: folder of indexes, so that the next start takes
    seconds; "" for none. An index is made again when a file has changed."""
    unused_classes: Literal["drop", "keep"] = "drop"
    """Classes that no box of train and val has: drop them, or keep them as outputs of the network.
    Training without a val set keeps them."""
    filter_empty: bool = True
    """Train only on images with objects (the official rule), or on all of them."""
    global_batch: Annotated[int, Range(0)] = 16
    """Images per step over all devices and micro-batches (paper Sec. 3.1); 0 or auto: as many as
    fit into the devices' memory."""
    image_size: Annotated[int, Range(-1)] = -1
    """Long side of the network's input, px, from which `short_side`, `max_long_side` and `buckets`
    are derived; 0 or auto: chosen from the sizes of images and objects; -1: these three count."""
    buckets: tuple[tuple[int, int], ...] = (
        (800, 1088),
        (800, 1216),
        (800, 1344),
        (1088, 800),
        (1216, 800),
        (1344, 800),
    )
    """Padded shapes (H, W), multiples of 32; one compiled program each. The default holds 4:3, 3:2
    and the rest, landscape and portrait: 4.0 % padding on COCO."""
    short_side: Annotated[int, Range(1)] = 800
    """Shorter side after resizing, px (paper Sec. 3.1); training may draw others, see below."""
    max_long_side: Annotated[int, Range(1)] = 1333
    """Limit of the longer side, px."""
    train_short_sides: Annotated[tuple[int, ...], Range(1)] = ()
    """Short sides to draw from in training, per image; () for `short_side` alone."""
    augmentations: tuple[str, ...] = ("flip(0.5)",)
    """What is done to training images, in order: flip(probability), vertical_flip(probability),
    scale_crop(low, high), color_jitter(strength), mosaic(probability), mixup(probability); see
    data/augment.py. The complete list: () for none."""
    max_boxes: Annotated[int, Range(0)] = 100
    """Ground-truth slots per image (COCO train has at most 93 objects in an image); 0 or auto: as
    the data needs."""
    on_overflow: Literal["error", "largest"] = "error"
    """More objects than slots in an image of the set: error, or keep the largest (counted). What
    mosaic and mixup put together always keeps the largest."""
    num_workers: Annotated[int, Range(0)] = 8
    """Loader processes; 0 reads on threads of the training process."""
    prefetch: Annotated[int, Range(1)] = 2
    """Batches prepared ahead of the step."""
    mean: tuple[float, float, float] = (102.9801, 115.9465, 122.7717)
    """Mean pixel in 0..255, in the order of `channel_order` (default: MSRA and FAIR weights)."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divisor of the pixels, likewise."""
    channel_order: Literal["rgb", "bgr"] = "bgr"
    """Order of the channels that the network sees."""

    MOVED: ClassVar[Mapping[str, str]] = {
        "flip": "'flip(0.5)'",
        "scale_crop": "'scale_crop(0.5, 2.0)'",
        "color_jitter": "'color_jitter(0.2)'",
    }
    """Former field -> the entry of `augmentations` that it became."""

    @classmethod
    def upgrade(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Turns the former fields flip, scale_crop and color_jitter into `augmentations`.

        Raises:
          UserError: both are given.
        """
        old = {name: values[name] for name in cls.MOVED if name in values}
        if not old:
            return values
        if "augmentations" in values:
            raise UserError(moved_message(next(iter(old))))
        entries = [f"flip({old.get('flip', 0.5)})"]
        if old.get("scale_crop"):
            low, high = old["scale_crop"]
            entries.append(f"scale_crop({low}, {high})")
        if old.get("color_jitter"):
            entries.append(f"color_jitter({old['color_jitter']})")
        if old.get("flip") == 0:
            del entries[0]
        kept = {name: value for name, value in values.items() if name not in old}
        return kept | {"augmentations": tuple(entries)}

    def check(self) -> None:
        """Buckets are distinct multiples of 32; sizes and factors are in order."""
        if not self.buckets or len(set(self.buckets)) != len(self.buckets):
            raise UserError(f"config.data.buckets={self.buckets}: give at least one, each once.")
        for bucket in self.buckets:
            if any(side <= 0 or side % 32 for side in bucket):
                raise UserError(
                    f"config.data.buckets: {bucket} is not (H, W) in positive multiples of 32."
                )
        largest = max(self.train_short_sides or (self.short_side,))
        if largest > self.max_long_side:
            raise UserError(
                f"config.data.max_long_side={self.max_long_side}: a short side of {largest} px is "
                "longer. Raise it, or lower short_side and train_short_sides."
            )
        for entry in self.augmentations:
            parse_augmentation(entry)
        if min(self.std) <= 0:
            raise UserError(f"config.data.std={self.std}: must be above 0.")

    def split(self, name: str) -> SplitConfig:
        """Where the "train" or "val" split is."""
        splits = {
            "train": (self.train_annotations, self.train_images, self.train_split),
            "val": (self.val_annotations, self.val_images, self.val_split),
        }
        return SplitConfig(name, *splits[name])
