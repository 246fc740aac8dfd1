"""From the recipe's fields to a data set."""

import contextlib
import dataclasses
import functools
import gc
import logging
import os
from collections.abc import Generator

from atss_jax.data import coco
from atss_jax.data.config import DataConfig
from atss_jax.data.content import ALL, NONE, make_dataset, take_share
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.formats import load_format
from atss_jax.data.index import load_indexed
from atss_jax.data.layouts import find_layout
from atss_jax.data.splits import SplitSource
from atss_jax.errors import UserError


def load_split(
    config: DataConfig, split: str, *, without_annotations: bool = False
) -> DetectionDataset:
    """The "train" or "val" set of a recipe.

    Args:
      config: group "data".
      split: "train" or "val".
      without_annotations: a COCO file may lack its list of annotations, as test-dev's does.

    Raises:
      ValueError, FileNotFoundError: missing or malformed data.
    """
    where = config.split(split)
    if config.root:
        layout = find_layout(config.root, config.val_fraction)
        name = os.path.basename(os.path.abspath(config.root))
        source = layout.train if split == "train" else layout.val
        if source.share == NONE:
            raise UserError(
                "data.val_fraction=1 leaves no image to train on: it is for evaluating on a whole "
                "folder. Give a smaller share."
            )
        _say_once(f"data.root={config.root}: {layout.kind}, {split}: {source}")
        return load_source(
            source,
            name=f"{name}/{split}",
            config=config,
            without_annotations=without_annotations,
        )
    if config.source == "coco_json":
        for field, value in (("annotations", where.annotations), ("images", where.images)):
            if not value:
                raise UserError(
                    f"config.data.{split}_{field} is empty. Give the folder of your data with "
                    f"--config.data.root=..., or the path with --config.data.{split}_{field}=..."
                )
        source = SplitSource("coco", where.annotations, where.images)
        return load_source(
            source,
            name=f"{config.name}/{split}",
            config=config,
            without_annotations=without_annotations,
        )
    from atss_jax.data import tfds_builders  # slow to import: only where it is used

    return tfds_builders.load_tfds(config.name, where.split, config.data_dir, config)


def without_root(config: DataConfig) -> DataConfig:
    """The four paths that a root in COCO format stands for, where they are not given themselves.

    Another layout leaves them empty.

    Args:
      config: group "data" with a root.
    """
    layout = find_layout(config.root, config.val_fraction)
    paths = {}
    for split, source in (("train", layout.train), ("val", layout.val)):
        if source.kind == "coco" and source.share == ALL:
            paths |= {f"{split}_annotations": source.annotations, f"{split}_images": source.images}
    missing = {name: path for name, path in paths.items() if not getattr(config, name)}
    return dataclasses.replace(config, root="", source="coco_json", **missing)


@functools.cache
def _say_once(text: str) -> None:
    """Logs what was found: sets are opened several times in a run, for sizes and for images."""
    logging.info(text)


def load_source(
    source: SplitSource, *, name: str, config: DataConfig, without_annotations: bool = False
) -> DetectionDataset:
    """A split that `find_layout` found.

    Args:
      source: where it is.
      name: of the set, for messages.
      config: what is done with bad records, EXIF orientations, large images and odd paths.
      without_annotations: a COCO file may lack its list of annotations.

    Raises:
      ValueError, FileNotFoundError: missing or malformed data.
    """
    if source.kind == "coco":
        if without_annotations:  # indexes are of annotated sets
            return _read(source, name, config, without_annotations=True)
        return load_indexed(source, name, config, lambda: _read(source, name, config))
    return _read(source, name, config)


@contextlib.contextmanager
def _collector_off() -> Generator[None, None, None]:
    """No garbage collection: its passes over millions of JSON entries take a fifth of a start."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_collector_off()
def _read(
    source: SplitSource, name: str, config: DataConfig, *, without_annotations: bool = False
) -> DetectionDataset:
    if without_annotations and source.kind == "coco":
        content = coco.read(source, without_annotations=True)
    else:
        content = load_format(source.kind).read(source)
    return make_dataset(take_share(content, source.share), name=name, config=config)
