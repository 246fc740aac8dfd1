"""A COCO-format JSON file and its image folder.

Paths may be local or anything that `etils.epath` reads. The checks are in `content`.
"""

import json
from typing import Any

from etils import epath

from atss_jax.data.coco_layout import find as find  # of `formats.Format`
from atss_jax.data.config import DataConfig
from atss_jax.data.content import ALL, Content, make_dataset, read_categories, take_share
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.splits import SplitSource
from atss_jax.errors import MissingFileError, UserError


def load_coco(
    annotations: str,
    images: str,
    *,
    name: str,
    config: DataConfig | None = None,
    share: tuple[float, float] = ALL,
    class_names: tuple[str, ...] | None = None,
    without_annotations: bool = False,
) -> DetectionDataset:
    """Reads a COCO-format detection set.

    Args:
      annotations: path of the JSON file.
      images: path of the folder that its file names are relative to.
      name: of the set, for messages.
      config: what is done with bad records, EXIF orientations, large images and odd paths; None
        for the defaults.
      share: only the images whose `share_of` lies in [low, high).
      class_names: expected names by dense label (a training set's); None takes the file's.
      without_annotations: the file may lack its list of annotations, as COCO's test-dev does.

    Returns:
      The set, sorted by image id; images without boxes included.

    Raises:
      FileNotFoundError: no such file or folder.
      ValueError: malformed JSON, bad records, other classes than expected.
    """
    source = SplitSource("coco", annotations, images)
    content = read(source, without_annotations=without_annotations)
    if class_names is not None:
        names = read_categories(content.categories, annotations)[1]
        if names != tuple(class_names):
            raise UserError(
                f"{annotations}: categories {names} differ from the expected "
                f"{tuple(class_names)}. Training and validation files need the same categories."
            )
    return make_dataset(take_share(content, share), name=name, config=config or DataConfig())


def read(source: SplitSource, *, without_annotations: bool = False) -> Content:
    """The lists of a JSON file, unchecked.

    Args:
      source: the file, and the folder that its file names start from.
      without_annotations: the file may lack its list of annotations.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not JSON, or not a detection set.
    """
    lists = _read_json(source.annotations, without_annotations)
    return Content(
        *(source.annotations, source.images),
        *(lists["images"], lists["annotations"], lists["categories"]),
    )


def _read_json(path: str, without_annotations: bool) -> dict[str, Any]:
    """The parsed file, with its three lists."""
    try:
        text = epath.Path(path).read_bytes().decode("utf-8-sig")  # a byte order mark is fine
    except (FileNotFoundError, IsADirectoryError):
        raise MissingFileError(
            f"annotation file {path!r} does not exist. Check the path."
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a JSON text file ({error}).") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: malformed JSON ({error}). Is the file complete?") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise UserError(f"{path}: not an annotation file ({error}).") from None
    if without_annotations and isinstance(content, dict):
        content.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(
                f'{path}: no list "{key}" at the top. A COCO detection file has "images", '
                '"annotations" and "categories". To get detections of images without annotations: '
                "atss eval WORKDIR --eval.format_only=True."
            )
    return content
