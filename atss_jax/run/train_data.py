"""train_data.json: what a run was trained on, by content, so that the files may move.

Classes, image ids, sizes and objects as training sees them, each by a digest. Pixels are not read.
"""

import hashlib
import json
import logging
from typing import Any

import jax
import numpy as np
from etils import epath

from atss_jax.data.dataset import DetectionDataset
from atss_jax.errors import UserError
from atss_jax.run import workdir_files

FILE = "train_data.json"


def contents(dataset: DetectionDataset) -> dict[str, Any]:
    """Counts and digests of a data set, as train_data.json holds them.

    Args:
      dataset: the training set.
    """
    ids = [dataset.image_id(record) for record in range(dataset.num_records)]
    records = range(dataset.num_records)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *map(dataset.boxes, records)])
    labels = np.concatenate([np.zeros(0, np.int32), *map(dataset.labels, records)])
    classes = [[n, dataset.category_id(i)] for i, n in enumerate(dataset.class_names)]
    return {
        "images": dataset.num_records,
        "boxes": len(boxes),
        "digests": {
            "classes": _digest(json.dumps(classes).encode()),
            "image ids": _digest(json.dumps(ids).encode()),
            "image sizes": _digest(dataset.sizes.astype("<i8").tobytes()),
            "boxes and labels": _digest(
                dataset.num_boxes.astype("<i8").tobytes()
                + labels.astype("<i8").tobytes()
                + boxes.astype("<f4").tobytes()
                + dataset.has_objects.tobytes()
            ),
        },
    }


def check(workdir: epath.Path, dataset: DetectionDataset) -> None:
    """Raises unless a data set is what the workdir's run was trained on; writes nothing.

    Args:
      workdir: folder of the run; one of an older version, without the file, is only reported.
      dataset: the training set given now.

    Raises:
      UserError: another content, or a damaged file.
    """
    path = workdir / FILE
    if not path.exists():
        if workdir_files.has_checkpoints(workdir):
            logging.warning("%s: missing, so the training data are taken as they are", path)
        return
    try:
        there = json.loads(path.read_text())
        old, counts = dict(there["digests"]), (there["images"], there["boxes"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    now = contents(dataset)
    differing = [name for name, digest in now["digests"].items() if old.get(name) != digest]
    if differing:
        raise UserError(
            f"{dataset.name} is not what the run in {workdir} was trained on: other "
            f"{', '.join(differing)} ({counts[0]} images and {counts[1]} boxes there, "
            f"{now['images']} and {now['boxes']} now). Use the same data, wherever they lie, or "
            "another --workdir (model.init_from can start from this run)."
        )


def write(workdir: epath.Path, dataset: DetectionDataset) -> None:
    """Writes train_data.json where it is missing; one that exists is never overwritten."""
    if jax.process_index() == 0 and not (workdir / FILE).exists():
        workdir_files.write_json(workdir / FILE, contents(dataset))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
