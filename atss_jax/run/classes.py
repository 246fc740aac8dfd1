"""The classes of a network and of data: compared by name, mapped where only the order differs."""

import dataclasses
import json
import logging
from collections.abc import Sequence

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

    Category ids stay those of the data set. Another order is reported.

    Args:
      dataset: with the same classes, in any order.
      names: of the network, by class index.
      whose: what the names are of, for messages.

    Raises:
      UserError: other classes; shows both lists.
    """
    names = tuple(names)
    if dataset.class_names == names:
        return dataset
    if sorted(dataset.class_names) != sorted(names) or len(set(names)) < len(names):
        only_there = [name for name in names if name not in dataset.class_names]
        only_here = [name for name in dataset.class_names if name not in names]
        raise UserError(
            f"the classes of {whose} and {dataset.name} differ: {list(names)} and "
            f"{list(dataset.class_names)} (only in the first: {only_there or 'none'}; only in the "
            f"second: {only_here or 'none'}). Use the same categories in both."
        )
    logging.warning(
        "%s has the classes of %s in another order: matched by name (%s)",
        dataset.name,
        whose,
        ", ".join(names),
    )
    order = [dataset.class_names.index(name) for name in names]
    originals = dataset.original_category_ids
    return dataclasses.replace(
        dataset,
        class_names=names,
        category_ids=tuple(dataset.category_ids[i] for i in order),
        original_category_ids=None if originals is None else tuple(originals[i] for i in order),
    )
