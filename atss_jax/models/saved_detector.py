"""A whole detector in one safetensors file: weights, classes and recipe."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import traverse_util
from safetensors import safe_open
from safetensors.numpy import save_file

from atss_jax.errors import UserError
from atss_jax.models import pretrained
from atss_jax.models.pretrained import Variables


class SavedDetector(NamedTuple):
    """What a detector's safetensors file holds."""

    variables: Variables
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    config_json: str


def digest(variables: Variables) -> str:
    """SHA-256 of the weights, whatever file holds them: names, types, shapes and values.

    >>> digest({"params": {"scale": np.ones(2, np.float32)}})[:12]
    '3d1b8d3119b0'
    """
    total = hashlib.sha256()
    for name, array in sorted(pretrained.flatten(variables).items()):
        array = np.ascontiguousarray(array)
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def save_detector(
    path: str | os.PathLike[str],
    variables: Variables,
    class_names: Sequence[str],
    config_json: str,
    *,
    category_ids: Sequence[int] = (),
) -> None:
    """Writes a whole detector to one safetensors file, bit for bit.

    Args:
      path: of the file; written under another name first, then renamed.
      variables: of the network.
      class_names: by class index.
      config_json: the run's config.
      category_ids: the data set's own, by class index; 1, 2, ... if not given.
    """
    path = Path(path)
    ids = [int(i) for i in category_ids] or list(range(1, len(class_names) + 1))
    metadata = {
        "format": "atss_jax",
        "class_names": json.dumps(list(class_names)),
        "category_ids": json.dumps(ids),
        "config": config_json,
    }
    flat = pretrained.flatten(variables)
    arrays = {name: np.ascontiguousarray(array) for name, array in flat.items()}
    partial = path.with_name(path.name + ".partial")
    save_file(arrays, partial, metadata)
    partial.replace(path)


def load_detector(path: str | os.PathLike[str]) -> SavedDetector:
    """Reads a file of `save_detector`.

    Raises:
      FileNotFoundError: no such file.
      UserError: a damaged file, or one of something else.
    """
    arrays = pretrained.read_arrays(path)
    metadata = {}
    if Path(path).suffix == ".safetensors":
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    if metadata.get("format") != "atss_jax":
        raise UserError(
            f"{path}: not written by atss_jax (no such metadata). To start from the weights of "
            "another library, use config.model.init_from, or give a config and class names."
        )
    variables = traverse_util.unflatten_dict(arrays, sep="/")
    class_names = tuple(json.loads(metadata["class_names"]))
    category_ids = tuple(json.loads(metadata["category_ids"]))
    return SavedDetector(variables, class_names, category_ids, metadata["config"])
