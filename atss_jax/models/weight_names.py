"""Names of parameters in other libraries' weight files, and ours.

Everything is brought to one flat form: `backbone/layer1_0/conv1/kernel` (HWIO) and so on, as in
our "params"; a batch norm is `.../norm1/{scale, bias, mean, var}` with its library's epsilon
already added to `var` (mean 0 and variance 1 where the file has them folded into scale and bias).
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

from atss_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]
Flat = dict[str, np.ndarray]

TORCH_EPSILON = 1e-5
"""Of torchvision's and timm's batch norms; official ATSS and Caffe weights have none."""

_IGNORED = re.compile(
    r"^(fc\.|head\.fc|classifier\.)|num_batches_tracked$|anchor_generator|^fc1000|_momentum$"
)
"""Names of what no detector has: classifiers, counters, optimizer states."""

_STEM = {"conv1": "stem_conv", "bn1": "stem_norm"}


def to_flat(arrays: Arrays) -> Flat:
    """The arrays of any known file under our names.

    Known are: official ATSS checkpoints (`backbone.body.layer1.0.conv1.weight`), torchvision and
    timm ResNets (`layer1.0.conv1.weight`), torchvision ConvNeXts (`features.1.0.block.0.weight`),
    MSRA and FAIR Caffe2 files (`res2_0_branch2a_w`), and HWIO kernels with batch norms folded to
    scale and bias (`layer1.0.conv1.scale`).

    Raises:
      UserError: a name is none of these, or an array has not the shape that its name asks for.
    """
    arrays = {_bare(k): v for k, v in arrays.items() if not is_ignored(k)}
    if "conv1_w" in arrays:
        return _with_statistics(_merge(_caffe(arrays), 0.0))
    if "conv1.scale" in arrays:
        return _with_statistics(_folded(arrays))
    if "features.0.0.weight" in arrays:
        return _merge(_rename(arrays, _convnext_name), 0.0)
    official = any(k.startswith("backbone.") for k in arrays)
    if official:
        return _merge(_rename(arrays, lambda name: _official_name(name, arrays)), 0.0)
    return _merge(_rename(arrays, _backbone_name), TORCH_EPSILON)


def is_ignored(name: str) -> bool:
    """Whether `to_flat` leaves an array out: classifiers, counters, optimizer states."""
    return _IGNORED.search(_bare(name)) is not None


def _bare(name: str) -> str:
    return name.removeprefix("param/").removeprefix("module.")


def _rename(arrays: Arrays, name_of: Callable[[str], str | None]) -> Flat:
    """The arrays under our names.

    Raises:
      UserError: `name_of` knows no name for one of them, or there are none.
    """
    names = {name: name_of(name) for name in arrays}
    unknown = [name for name, ours in names.items() if ours is None]
    if unknown or not names:
        raise UserError(
            f"weights with the names {', '.join(unknown[:5]) or '(none)'}: not known. Known are "
            "official ATSS, torchvision, timm and Caffe2 names; see models/weight_names.py."
        )
    return {ours: arrays[name] for name, ours in names.items() if ours is not None}


def _with_statistics(flat: Flat) -> Flat:
    """Adds mean 0 and variance 1 to every batch norm."""
    for name in [name for name in flat if name.endswith("/scale")]:
        norm, scale = name.removesuffix("/scale"), flat[name]
        flat[f"{norm}/mean"], flat[f"{norm}/var"] = np.zeros_like(scale), np.ones_like(scale)
    return flat


def _merge(flat: Arrays, epsilon: float) -> Flat:
    """PyTorch's layouts to ours; level scales to one array, epsilon into variances.

    Kernels become HWIO, matrices [in, out], and the factors of a ConvNeXt's branches vectors.
    """
    merged, scales = {}, {}
    for name, array in flat.items():
        if name.startswith("head/level_scale/"):
            scales[int(name.rsplit("/", 1)[1])] = array.reshape(-1)[0]
        elif name.endswith("/layer_scale"):
            merged[name] = array.reshape(-1)
        elif name.endswith("/kernel"):
            if array.ndim not in (2, 4):
                raise UserError(
                    f"weights for {name} of shape {array.shape}: a kernel has 4 dimensions, or 2 "
                    "as a matrix. The file is not what its names say."
                )
            merged[name] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        elif name.endswith("/var"):
            merged[name] = array + np.asarray(epsilon, array.dtype)
        else:
            merged[name] = array
    if scales:
        merged["head/level_scale"] = np.stack([scales[i] for i in sorted(scales)])
    return merged


def _backbone_name(name: str) -> str | None:
    """`layer1.0.bn2.running_var` -> `backbone/layer1_0/norm2/var`; None where unknown."""
    *modules, leaf = name.split(".")
    if modules and modules[0] == "stem":  # the official prefix
        modules = modules[1:]
    is_norm = False
    if len(modules) == 1 and modules[0] in _STEM:
        ours = _STEM[modules[0]]
        is_norm = modules[0] == "bn1"
    elif len(modules) >= 3 and re.fullmatch(r"layer[1-4]", modules[0]):
        block, part = f"{modules[0]}_{modules[1]}", modules[2]
        rest = modules[3:]
        if part == "downsample" and rest in (["0"], ["1"]):
            is_norm = rest == ["1"]
            ours = f"{block}/downsample_{'norm' if is_norm else 'conv'}"
        elif re.fullmatch(r"bn[1-3]", part) and not rest:
            is_norm, ours = True, f"{block}/norm{part[2]}"
        elif re.fullmatch(r"conv[1-3]", part) and rest in ([], ["conv"], ["offset"]):
            ours = f"{block}/{part}" + ("/offset" if rest == ["offset"] else "")
        else:
            return None
    else:
        return None
    leaves = {"weight": "kernel", "bias": "bias"}
    if is_norm:
        leaves = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return f"backbone/{ours}/{leaves[leaf]}" if leaf in leaves else None


_CONVNEXT_BLOCK = {
    "block.0.weight": "depthwise/kernel",
    "block.0.bias": "depthwise/bias",
    "block.2.weight": "norm/scale",
    "block.2.bias": "norm/bias",
    "block.3.weight": "expand/kernel",
    "block.3.bias": "expand/bias",
    "block.5.weight": "project/kernel",
    "block.5.bias": "project/bias",
    "layer_scale": "layer_scale",
}
_CONVNEXT_STEM = {
    "0.weight": "conv/kernel",
    "0.bias": "conv/bias",
    "1.weight": "norm/scale",
    "1.bias": "norm/bias",
}
_CONVNEXT_DOWN = {
    "0.weight": "norm/scale",
    "0.bias": "norm/bias",
    "1.weight": "conv/kernel",
    "1.bias": "conv/bias",
}


def _convnext_name(name: str) -> str | None:
    """`features.3.0.block.2.weight` -> `backbone/layer2_0/norm/scale`; None where unknown.

    Odd numbers are stages, even ones the layers before them; 0 is the stem.
    """
    if not (match := re.fullmatch(r"features\.([0-7])\.(.+)", name)):
        return None
    index, rest = int(match[1]), match[2]
    if index % 2 == 0:
        part = (_CONVNEXT_DOWN if index else _CONVNEXT_STEM).get(rest)
        return f"backbone/{f'layer{index // 2 + 1}' if index else 'stem'}_{part}" if part else None
    block, _, inner = rest.partition(".")
    part = _CONVNEXT_BLOCK.get(inner)
    return f"backbone/layer{index // 2 + 1}_{block}/{part}" if part else None


def _official_name(name: str, arrays: Arrays) -> str | None:
    """Names of an official ATSS checkpoint; None where unknown."""
    if name.startswith("backbone.body."):
        return _backbone_name(name.removeprefix("backbone.body."))
    leaf = {"weight": "kernel", "bias": "bias"}.get(name.rsplit(".", 1)[-1])
    if match := re.fullmatch(r"backbone\.fpn\.fpn_(inner|layer)([234])\.(weight|bias)", name):
        part = "lateral" if match[1] == "inner" else "output"
        return f"fpn/{part}{int(match[2]) + 1}/{leaf}"
    if match := re.fullmatch(r"backbone\.fpn\.top_blocks\.(p6|p7)\.(weight|bias)", name):
        return f"fpn/{match[1]}/{leaf}"
    if match := re.fullmatch(r"rpn\.head\.scales\.(\d+)\.scale", name):
        return f"head/level_scale/{match[1]}"
    predictions = {"cls_logits": "cls_logits", "bbox_pred": "box_regression"}
    predictions["centerness"] = "centerness"
    if match := re.fullmatch(r"rpn\.head\.(\w+)\.(weight|bias)", name):
        return f"head/{predictions[match[1]]}/{leaf}" if match[1] in predictions else None
    match = re.fullmatch(
        r"rpn\.head\.(cls|bbox)_tower\.(\d+)(\.conv|\.offset)?\.(weight|bias)", name
    )
    if match is None:
        return None
    tower = f"head/{'cls' if match[1] == 'cls' else 'box'}_tower"
    prefix = f"rpn.head.{match[1]}_tower."
    step = 3 if np.ndim(arrays.get(f"{prefix}1.weight", 0)) == 1 else 2  # conv, (norm,) relu
    index, inside = divmod(int(match[2]), step)
    if inside == 0:
        return f"{tower}/conv{index}{'/offset' if match[3] == '.offset' else ''}/{leaf}"
    return f"{tower}/norm{index}/{'scale' if match[4] == 'weight' else 'bias'}"


def _caffe(arrays: Arrays) -> Flat:
    """MSRA's and FAIR's Detectron files: OIHW kernels, batch norms as scale and bias."""
    flat = {}
    branches = {"branch2a": "1", "branch2b": "2", "branch2c": "3", "branch1": "downsample"}
    leaves = {"w": "kernel", "bn_s": "scale", "bn_b": "bias"}
    for name, array in arrays.items():
        if match := re.fullmatch(r"(?:res_)?conv1_(w|bn_s|bn_b)", name):
            ours = "stem_conv" if match[1] == "w" else "stem_norm"
            flat[f"backbone/{ours}/{leaves[match[1]]}"] = array
        elif match := re.fullmatch(r"res([2-5])_(\d+)_(branch(?:1|2[abc]))_(w|bn_s|bn_b)", name):
            branch = branches[match[3]]
            kind = "conv" if match[4] == "w" else "norm"
            part = f"downsample_{kind}" if branch == "downsample" else f"{kind}{branch}"
            block = f"layer{int(match[1]) - 1}_{match[2]}"
            flat[f"backbone/{block}/{part}/{leaves[match[4]]}"] = array
    return flat


def _folded(arrays: Arrays) -> Flat:
    """HWIO kernels, each with the batch norm after it folded to scale and bias.

    Raises:
      UserError: an unknown name.
    """
    flat = {}
    for name, array in arrays.items():
        match = re.fullmatch(
            r"(conv1|layer[1-4]\.\d+\.(?:conv[1-3]|downsample))\.(weight|scale|bias)", name
        )
        if match is None:
            raise UserError(
                f"weights with the name {name}: not known among batch norms folded to scale and "
                'bias ("layer1.0.conv1.scale"). Leave it out of the file.'
            )
        module, leaf = match[1], match[2]
        is_norm = leaf != "weight"
        if module == "conv1":
            ours = "stem_norm" if is_norm else "stem_conv"
        else:
            stage, block, part = module.split(".")
            if part == "downsample":
                part = "downsample_norm" if is_norm else "downsample_conv"
            elif is_norm:
                part = part.replace("conv", "norm")
            ours = f"{stage}_{block}/{part}"
        flat[f"backbone/{ours}/{'kernel' if leaf == 'weight' else leaf}"] = array
    return flat
