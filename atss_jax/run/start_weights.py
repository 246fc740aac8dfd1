"""`model.init_from`: the weights that a run starts from, of a workdir or of a file.

Layers go by their names, the rows of the classification layer by the names of the classes. What was
taken, what was resized and what was left out is said.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from atss_jax.errors import UserError
from atss_jax.models import hub, pretrained, saved_detector
from atss_jax.run.detector import Detector
from atss_jax.run.predict_steps import normalization
from atss_jax.run.recipe import Recipe

CLASS_LAYER = ("params/head/cls_logits/kernel", "params/head/cls_logits/bias")
"""Arrays whose last axis is anchors x classes."""


class Source(NamedTuple):
    """What weights are read from."""

    arrays: dict[str, Any]
    class_names: tuple[str, ...] | None
    """None for a file of another library."""
    config: Recipe | None
    step: int | None
    """Of a workdir's checkpoint."""


def load(config: Recipe, variables: Any, class_names: Sequence[str]) -> tuple[Any, str]:
    """(variables filled from `model.init_from`, a text about where from and which classes).

    Which arrays were taken is in the log of `pretrained.insert`.

    Args:
      config: the recipe.
      variables: start values of the network, on the host.
      class_names: of the network, by class index.

    Raises:
      UserError: nothing there, or weights of another network.
    """
    name = config.model.init_from
    source = _read(name)
    target = pretrained.flatten(variables)
    step = "" if source.step is None else f", step {source.step}"
    arrays, lines = source.arrays, [f"starting from the weights of {name}{step}"]
    if source.class_names is not None:
        arrays = dict(arrays)
        lines.append(_match_classes(arrays, target, source.class_names, tuple(class_names)))
    if source.config is not None and normalization(source.config) != normalization(config):
        lines.append(
            f"these weights saw images normalised by {normalization(source.config)}, this run by "
            f"{normalization(config)}"
        )
    return pretrained.insert(arrays, variables, source=name), "\n  ".join(lines)


def _read(name: str) -> Source:
    """The arrays of a workdir's newest checkpoint, or of a file.

    Raises:
      UserError: neither is there, or it cannot be read.
    """
    folder = epath.Path(name)
    if not hub.is_hub_name(name) and folder.is_dir():
        if not (folder / "config.json").exists():
            raise UserError(
                f"config.model.init_from={name!r}: a folder without config.json. Give a workdir or "
                "a file of weights."
            )
        detector = Detector.load(folder)
        flat = pretrained.flatten(jax.device_get(detector.variables))
        return Source(dict(flat), detector.class_names, detector.config, detector.step)
    path = os.fspath(pretrained.local_path(name))  # a name of the hub is fetched
    if path.endswith(".safetensors"):
        try:
            saved = saved_detector.load_detector(path)
        except UserError:
            pass  # not of this package, or unreadable: the reader of any file says which
        else:
            flat = pretrained.flatten(saved.variables)
            return Source(dict(flat), saved.class_names, None, None)
    return Source(dict(pretrained.read_arrays(path)), None, None, None)


def _match_classes(
    arrays: dict[str, Any],
    target: Any,
    old_names: tuple[str, ...],
    new_names: tuple[str, ...],
) -> str:
    """Gives the classification layer the classes of the network; returns what was done.

    Args:
      arrays: of the source, by name; the classification layer is replaced.
      target: the network's start values, by name.
      old_names: classes of the source.
      new_names: classes of the network.
    """
    if old_names == new_names:
        return "the same classes"
    taken = [name for name in new_names if name in old_names]
    new = [name for name in new_names if name not in old_names]
    left = [name for name in old_names if name not in new_names]
    to = [new_names.index(name) for name in taken]
    of = [old_names.index(name) for name in taken]
    for path in CLASS_LAYER:
        if path not in arrays or path not in target:
            continue
        old, start = np.asarray(arrays[path]), np.array(target[path])
        old = old.reshape(*old.shape[:-1], -1, len(old_names))
        rows = start.reshape(*start.shape[:-1], -1, len(new_names))
        if old.shape[:-1] != rows.shape[:-1]:
            continue  # another network: `insert` shows the difference
        rows[..., to] = old[..., of]
        arrays[path] = rows.reshape(start.shape)
    return (
        f"classification layer resized from {len(old_names)} to {len(new_names)} classes; classes "
        f"taken by name: {', '.join(taken) or 'none'}; start values: {', '.join(new) or 'none'}; "
        f"left out: {', '.join(left) or 'none'}"
    )
