"""Weights in and out: files of other libraries into our variables, our detectors to safetensors.

`load_into` is what `model.init_from` means. PyTorch is needed for `.pth` alone (the `torch`
extra); everything else is NumPy. Nothing is ever unpickled but arrays.
"""

import json
import logging
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from atss_jax.models import layers
from atss_jax.models.weight_names import Arrays, Flat, to_flat

logger = logging.getLogger(__name__)

Variables = Any
"""{"params": nested dict of arrays, "batch_stats": likewise}."""

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".pkl")
MAX_DIFF_LINES = 60


class SavedDetector(NamedTuple):
    """What a detector's safetensors file holds."""

    variables: Variables
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    config_json: str


def flatten(tree: Variables, prefix: str = "") -> Flat:
    """Nested dict of arrays -> {"params/backbone/...": array}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = np.asarray(value)
    return flat


def unflatten(flat: Arrays) -> Variables:
    """Inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        *folders, leaf = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = array
    return tree


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The named arrays of a weights file.

    Args:
      path: `.safetensors`, `.npz`, `.pth` (needs PyTorch; read with `weights_only=True`) or a
        Caffe2 `.pkl` (arrays only, nothing in it is executed).

    Raises:
      FileNotFoundError: no such file.
      ValueError: another suffix, or a pickle that holds more than arrays.
      ImportError: `.pth` without PyTorch.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file. Give the path of an existing one.")
    if path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    if path.suffix in (".pth", ".pt"):
        return _read_torch(path)
    if path.suffix == ".pkl":
        return _read_pickle(path)
    raise ValueError(f"{path}: unknown suffix. Use one of {', '.join(SUFFIXES)}.")


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"{path}: .pth files need PyTorch. Install it with pip install 'atss_jax[torch]'."
        ) from error
    content = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    return {
        name: value.float().numpy() for name, value in content.items() if torch.is_tensor(value)
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the constructors of NumPy arrays and nothing else."""

    ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("_codecs", "encode"),
        ("collections", "OrderedDict"),
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """The constructor, if it is one of arrays."""
        if (module_name, global_name) not in self.ALLOWED:
            raise ValueError(
                f"the pickle asks for {module_name}.{global_name}: only arrays are read. Convert "
                "the file to .safetensors in an environment that you trust it in."
            )
        if module_name == "numpy.core.multiarray":
            module_name = "numpy._core.multiarray"
        return super().find_class(module_name, global_name)


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        content = _ArrayUnpickler(file, encoding="latin1").load()
    content = content.get("blobs", content)
    return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}


def insert(arrays: Arrays, variables: Variables, *, source: str = "weights") -> Variables:
    """`variables` with the given arrays in their places.

    A file of a backbone fills the backbone, the rest stays as it is. A file of a whole detector
    fills everything; where only the number of classes differs, the classification layer stays as
    it is (fine-tuning on other classes), and a warning says so.

    Args:
      arrays: named as in our own files ("params/..."), or in any way `to_flat` knows.
      variables: of the network, for names, shapes and dtypes.
      source: what to call the arrays in errors.

    Raises:
      ValueError: names or shapes do not fit, with a +/- diff of them.
    """
    target = flatten(variables)
    if any(name.startswith("params/") for name in arrays):
        found = dict(arrays)
    else:
        found = _fit_norms(to_flat(arrays), target)
    has_head = any(name.startswith("params/head/") for name in found)
    wanted = {n: a for n, a in target.items() if has_head or "/backbone/" in n}
    if has_head:
        _keep_other_classes(found, wanted)
    lines = diff_lines(found, wanted)
    if lines:
        more = len(lines) - MAX_DIFF_LINES
        text = "\n".join(lines[:MAX_DIFF_LINES] + ([f"... {more} more"] if more > 0 else []))
        raise ValueError(
            f"{source} does not fit the network (- only in the file, + only in the network). Set "
            f"the config.model fields of the network that the weights are of.\n{text}"
        )
    filled = {n: found[n].astype(a.dtype) if n in wanted else a for n, a in target.items()}
    return unflatten(filled)


def _fit_norms(flat: Flat, target: Arrays) -> Flat:
    """`to_flat`'s names to those of our variables; batch norms as the network wants them."""
    found = {}
    norms: dict[str, Flat] = {}
    for name, array in flat.items():
        module, leaf = name.rsplit("/", 1)
        if module.startswith("backbone/") and "norm" in module:
            norms.setdefault(module, {})[leaf] = array
        else:
            found[f"params/{name}"] = array
    for module, norm in norms.items():
        scale, bias = norm["scale"], norm["bias"]
        mean, var = norm.get("mean", np.zeros_like(bias)), norm.get("var", np.ones_like(bias))
        if f"batch_stats/{module}/mean" in target:
            found[f"params/{module}/scale"] = scale
            found[f"params/{module}/bias"] = bias
            found[f"batch_stats/{module}/mean"] = mean
            found[f"batch_stats/{module}/var"] = var - np.asarray(layers.NORM_EPSILON, var.dtype)
        else:
            factor = scale / np.sqrt(var)
            found[f"batch_stats/{module}/scale"] = factor
            found[f"batch_stats/{module}/bias"] = bias - mean * factor
    return found


def _keep_other_classes(found: Flat, wanted: Flat) -> None:
    """Takes the classification layer out of both where it is for another number of classes."""
    kernel = "params/head/cls_logits/kernel"
    if kernel not in found or kernel not in wanted:
        return
    old, new = found[kernel].shape, wanted[kernel].shape
    if old != new and old[:3] == new[:3]:
        logger.warning(
            "weights for %d class channels, network with %d: the classification layer keeps its "
            "start values.",
            old[3],
            new[3],
        )
        for leaf in ("kernel", "bias"):
            found.pop(f"params/head/cls_logits/{leaf}", None)
            wanted.pop(f"params/head/cls_logits/{leaf}")


def diff_lines(found: Arrays, wanted: Arrays) -> list[str]:
    """Lines "- name shape" (only found) and "+ name shape" (only wanted), by name."""
    lines = []
    for name in sorted({*found, *wanted}):
        have, want = found.get(name), wanted.get(name)
        if have is None or want is None or have.shape != want.shape:
            lines += [f"- {name} {have.shape}"] if have is not None else []
            lines += [f"+ {name} {want.shape}"] if want is not None else []
    return lines


def load_into(path: str | os.PathLike, variables: Variables) -> Variables:
    """`variables` with the weights of a file in their places; see `read_arrays` and `insert`."""
    return insert(read_arrays(path), variables, source=os.fspath(path))


def save_detector(
    path: str | os.PathLike,
    variables: Variables,
    class_names: Sequence[str],
    config_json: str,
    *,
    category_ids: Sequence[int] = (),
) -> None:
    """Writes a whole detector to one safetensors file, bit for bit.

    Args:
      path: of the file; written beside it first, then renamed.
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
    arrays = {name: np.ascontiguousarray(array) for name, array in flatten(variables).items()}
    partial = path.with_name(path.name + ".partial")
    save_file(arrays, partial, metadata)
    partial.replace(path)


def load_detector(path: str | os.PathLike) -> SavedDetector:
    """Reads a file of `save_detector`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a safetensors file of something else.
    """
    arrays = read_arrays(path)
    metadata = {}
    if Path(path).suffix == ".safetensors":
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    if metadata.get("format") != "atss_jax":
        raise ValueError(
            f"{path}: not written by atss_jax (no such metadata). To start from the weights of "
            "another library, use config.model.init_from, or give a config and class names."
        )
    class_names = tuple(json.loads(metadata["class_names"]))
    category_ids = tuple(json.loads(metadata["category_ids"]))
    return SavedDetector(unflatten(arrays), class_names, category_ids, metadata["config"])
