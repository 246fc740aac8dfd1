"""The classes of a network and of data: compared by name, mapped where only the order differs.

A class that no box has would only be learnt as "never". Roboflow lists such a one as the root of
its categories. A set that is evaluated may lack classes of the network: they have no AP then.
"""

import dataclasses
import itertools
import json
import logging
from collections.abc import Sequence

import numpy as np
from etils import epath

from atss_jax.data.dataset import DetectionDataset
from atss_jax.errors import UserError


def read_classes(workdir: epath.Path) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    """(names, category ids) by class index of a workdir's network; None without classes.json.

    Raises:
      UserError: classes.json is damaged.
    """
    path = workdir / "classes.json"
    if not path.exists():
        return None
    try:
        there = json.loads(path.read_text())
        pairs = zip(there["class_names"], there["category_ids"], strict=True)
        names, ids = zip(*((str(name), int(id_)) for name, id_ in pairs), strict=True)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return names, ids


def in_order_of(dataset: DetectionDataset, names: Sequence[str], whose: str) -> DetectionDataset:
    """A data set whose labels are those of a network: classes are matched by name.

    Category ids stay those of the data set. Another order, and what is left out or added, is
    reported.

    Args:
      dataset: with the same classes, in any order; others are left out where no box has them, and
        those that are missing are added without boxes.
      names: of the network, by class index.
      whose: what the names are of, for messages.

    Raises:
      UserError: a box has another class, or no class is in both; shows both lists.
    """
    names = tuple(names)
    counts = dict(zip(dataset.class_names, dataset.class_counts().tolist(), strict=True))
    unused = [name for name, count in counts.items() if name not in names and not count]
    if unused:
        logging.warning("%s: no box has the class %s: left out", dataset.name, ", ".join(unused))
        dataset = dataset.with_classes([name for name in counts if name not in unused])
    if dataset.class_names == names:
        return dataset
    only_there = [name for name in names if name not in dataset.class_names]
    only_here = [name for name in dataset.class_names if name not in names]
    if only_here or not dataset.class_names or len(set(names)) < len(names):
        raise UserError(
            f"the classes of {whose} and {dataset.name} differ: {list(names)} and "
            f"{list(dataset.class_names)} (only in the first: {only_there or 'none'}; only in the "
            f"second: {only_here or 'none'}). Classes with boxes in the second must be in the "
            "first: name them alike, or remove those boxes."
        )
    if only_there:
        logging.warning(
            "%s lacks classes of %s: added without boxes, so without an AP: %s",
            dataset.name,
            whose,
            ", ".join(only_there),
        )
        return _with_new(dataset, only_there).with_classes(names)
    logging.warning(
        "%s has the classes of %s in another order: matched by name (%s)",
        dataset.name,
        whose,
        ", ".join(names),
    )
    return dataset.with_classes(names)


def _with_new(dataset: DetectionDataset, names: Sequence[str]) -> DetectionDataset:
    """A data set with further classes that no box has; they get ids that are free."""
    originals = dataset.original_category_ids
    taken = {*dataset.category_ids, *(originals or ())}
    free = (id_ for id_ in itertools.count(1) if id_ not in taken)
    ids = tuple(itertools.islice(free, len(names)))
    return dataclasses.replace(
        dataset,
        class_names=(*dataset.class_names, *names),
        category_ids=(*dataset.category_ids, *ids),
        original_category_ids=None if originals is None else (*originals, *ids),
    )


def without_unused(
    train: DetectionDataset, val: DetectionDataset, keep: Sequence[str] = ()
) -> DetectionDataset:
    """The training set without the classes that neither set has a box of.

    Args:
      train: training set.
      val: validation set.
      keep: names that stay, those of a run that has begun with them.
    """
    used = set(keep)
    for dataset in (train, val):
        used |= {dataset.class_names[n] for n in np.flatnonzero(dataset.class_counts())}
    names = [name for name in train.class_names if name in used]
    if not names or len(names) == len(train.class_names):
        return train
    return train.with_classes(names)
