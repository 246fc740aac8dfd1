"""Weights from files, of other libraries and our own, into our variables.

`load_into` is what `model.init_from` means. PyTorch is needed for `.pth` alone (the `torch`
extra); everything else is NumPy. Nothing is ever unpickled but arrays.
"""

import logging
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from flax import traverse_util
from safetensors import safe_open

from atss_jax.errors import MissingFileError, UserError
from atss_jax.models import hub, layers
from atss_jax.models.weight_names import Arrays, Flat, is_ignored, to_flat

logger = logging.getLogger(__name__)

Variables = Any
"""{"params": nested dict of arrays, "batch_stats": likewise}."""

MAX_DIFF_LINES = 60
"""Lines of a diff of names and shapes that an error shows."""


def flatten(tree: Variables) -> Flat:
    """Nested dict of arrays -> {"params/backbone/...": array}."""
    return cast(Flat, traverse_util.flatten_dict(tree, sep="/"))


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The named arrays of a weights file.

    Args:
      path: `.safetensors`, `.npz`, `.pth` (needs PyTorch; read with `weights_only=True`) or a
        Caffe2 `.pkl` (arrays only, nothing in it is executed).

    Raises:
      FileNotFoundError: no such file.
      UserError: another suffix, a damaged file, or one that holds no named arrays.
      ImportError: `.pth` without PyTorch.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such weights file. Give the path of an existing one.")
    if path.suffix not in _READERS:
        raise UserError(f"{path}: unknown suffix. Use one of {', '.join(_READERS)}.")
    try:
        content = _READERS[path.suffix](path)
    except (ImportError, UserError):
        raise
    except Exception as error:  # damaged bytes make pickle and zip readers raise nearly anything
        raise UserError(
            f"{path}: cannot be read as {path.suffix} ({type(error).__name__}: {error}). The file "
            "is damaged, incomplete or of another format. Copy or download it again."
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path}: holds a {type(content).__name__}, not arrays by name. Give a file of weights."
        )
    arrays = {name: a for name, a in content.items() if isinstance(a, np.ndarray)}
    if not arrays:
        raise UserError(f"{path}: holds no arrays. Give a file of weights.")
    return {str(name): array for name, array in arrays.items()}


def _read_safetensors(path: Path) -> Any:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _read_npz(path: Path) -> Any:
    with path.open("rb") as file:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        return {name: content[name] for name in content.files}


def _read_torch(path: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"{path}: .pth files need PyTorch. Install it with pip install 'atss_jax[torch]'."
        ) from error
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        return content
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
            raise UserError(
                f"the pickle asks for {module_name}.{global_name}: only arrays are read. Convert "
                "the file to .safetensors in an environment that you trust it in."
            )
        if module_name == "numpy.core.multiarray":
            module_name = "numpy._core.multiarray"
        return super().find_class(module_name, global_name)


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        content = _ArrayUnpickler(file, encoding="latin1").load()
    return content.get("blobs", content) if isinstance(content, Mapping) else content


_READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".pkl": _read_pickle,
}


def insert(arrays: Arrays, variables: Variables, *, source: str = "weights") -> Variables:
    """`variables` with the given arrays in their places; the log says which.

    A file of a backbone fills the backbone, the rest stays as it is. A file of a whole detector
    fills everything; where only the number of classes differs, the classification layer stays as
    it is (fine-tuning on other classes), and a warning says so. No array is ever resized.

    Args:
      arrays: named as in our own files ("params/..."), or in any way `to_flat` knows.
      variables: of the network, for names, shapes and dtypes.
      source: what to call the arrays in errors.

    Raises:
      UserError: names or shapes do not fit, with a +/- diff of them; numbers are not finite.
    """
    target = flatten(variables)
    if any(name.startswith("params/") for name in arrays):
        found, ignored = dict(arrays), []
    else:
        found, ignored = _fit_norms(to_flat(arrays), target), [n for n in arrays if is_ignored(n)]
    has_head = any(name.startswith("params/head/") for name in found)
    wanted = {n: a for n, a in target.items() if has_head or "/backbone/" in n}
    if has_head:
        _keep_other_classes(found, wanted)
    lines = diff_lines(found, wanted)
    if lines:
        more = len(lines) - MAX_DIFF_LINES
        text = "\n".join(lines[:MAX_DIFF_LINES] + ([f"... {more} more"] if more > 0 else []))
        raise UserError(
            f"{source} does not fit the network (- only in the file, + only in the network). Set "
            f"the config.model fields of the network that the weights are of.\n{text}"
        )
    bad = sorted(name for name, array in found.items() if not np.all(np.isfinite(array)))
    if bad:
        raise UserError(
            f"{source}: {len(bad)} of {len(found)} arrays hold numbers that are not finite (or a "
            f"negative variance), first {', '.join(bad[:5])}. Use weights from before the "
            "training diverged, or get the file again."
        )
    logger.info("%s", _load_report(source, found, target, ignored))
    filled = {n: found[n].astype(a.dtype) if n in wanted else a for n, a in target.items()}
    return traverse_util.unflatten_dict(filled, sep="/")


def _load_report(source: str, found: Arrays, target: Arrays, ignored: Sequence[str]) -> str:
    """What was taken from a file, what keeps its start values, and what the file holds besides."""
    parts = sorted({name.split("/")[1] for name in found})
    text = f"{source}: {len(found)} arrays taken ({', '.join(parts)})"
    kinds = sorted({str(a.dtype) for n, a in found.items() if a.dtype != target[n].dtype})
    if kinds:
        text += f", cast from {', '.join(kinds)}"
    kept = [name for name in target if name not in found]
    if kept:
        parts = sorted({name.split("/", 1)[1].rsplit("/", 1)[0] for name in kept})
        roots = sorted({p.split("/")[0] for p in parts})
        named = parts if len(parts) <= 3 else roots
        text += f"; {len(kept)} keep their start values ({', '.join(named)})"
    if ignored:
        more = ", ..." if len(ignored) > 3 else ""
        text += f"; {len(ignored)} of the file not used ({', '.join(sorted(ignored)[:3])}{more})"
    return text


def _fit_norms(flat: Flat, target: Arrays) -> Flat:
    """`to_flat`'s names to those of our variables; batch norms as the network wants them."""
    found = {}
    modules: dict[str, Flat] = {}
    for name, array in flat.items():
        module, leaf = name.rsplit("/", 1)
        modules.setdefault(module, {})[leaf] = array
    for module, leaves in modules.items():
        if leaves.keys() != {"scale", "bias", "mean", "var"}:  # not a batch norm
            found |= {f"params/{module}/{leaf}": array for leaf, array in leaves.items()}
            continue
        scale, bias, mean, var = (leaves[leaf] for leaf in ("scale", "bias", "mean", "var"))
        if f"batch_stats/{module}/mean" in target:
            found[f"params/{module}/scale"] = scale
            found[f"params/{module}/bias"] = bias
            found[f"batch_stats/{module}/mean"] = mean
            found[f"batch_stats/{module}/var"] = var - np.asarray(layers.NORM_EPSILON, var.dtype)
        else:
            with np.errstate(invalid="ignore", divide="ignore"):  # `insert` refuses the result
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


def load_into(path: str | os.PathLike[str], variables: Variables) -> Variables:
    """`variables` with the weights of a file in their places; see `read_arrays` and `insert`.

    Args:
      path: of a file, or a name of the hub such as "timm/resnet50.tv_in1k", see `hub`.
      variables: of the network.
    """
    return insert(read_arrays(local_path(path)), variables, source=os.fspath(path))


def local_path(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """A path as it is; for a name of the hub, that of the fetched file.

    Raises:
      UserError: see `hub.fetch`.
    """
    if not isinstance(path, str) or not hub.is_hub_name(path):
        return path
    name = hub.parse_name(path)
    return hub.fetch(name, name.file or hub.WEIGHTS_FILE, option="config.model.init_from")
