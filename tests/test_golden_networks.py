"""Networks against the official implementation's and torchvision's numbers (../shared/golden)."""

import functools
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from atss_jax.assigners import ASSIGNERS
from atss_jax.evaluation.postprocess import postprocess_batch
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.models import pretrained
from atss_jax.models.backbones import BACKBONES, make_backbone
from atss_jax.models.config import ModelConfig
from atss_jax.models.deform_conv import deform_conv
from atss_jax.models.detector import DetectorNetwork
from atss_jax.models.resnet import ResNet, parse_name
from atss_jax.structures import GroundTruth
from atss_jax.training.losses import detection_losses
from atss_jax.training.targets import assign_targets

TINY = {"stem_channels": 8, "width": 1 / 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "r50": {"flavour": "msra", "fpn_channels": 64},
    "x50_stride3x3": {"backbone": "resnext101_64x4d", "fpn_channels": 32},
    "r50_point_c5": {
        "flavour": "msra",
        "fpn_channels": 32,
        "p6_from": "c5",
        "regression": "point",
    },
    "r50_dcn": {
        "flavour": "msra",
        "fpn_channels": 32,
        "dcn_stages": (3, 4, 5),
        "head_dcn": True,
    },
    "x50_dcn": {
        "backbone": "resnext101_64x4d",
        "fpn_channels": 32,
        "dcn_stages": (4, 5),
        "head_dcn": True,
    },
}


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def load_variables(golden, model, images, sizes):
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, sizes)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    params = {k: golden[k] for k in golden.files if k.startswith("param/")}
    return pretrained.insert(params, zeros)


def official_ground_truth(golden, slots=16):
    """Official inclusive boxes as ours, padded: x2 + 1, y2 + 1; labels from 0."""
    boxes = np.zeros((2, slots, 4), np.float32)
    labels = np.zeros((2, slots), np.int32)
    valid = np.zeros((2, slots), bool)
    for i in range(2):
        n = len(golden[f"gt_boxes_{i}"])
        boxes[i, :n] = golden[f"gt_boxes_{i}"] + np.array([0, 0, 1, 1], np.float32)
        labels[i, :n], valid[i, :n] = golden[f"gt_labels_{i}"] - 1, True
    return GroundTruth(jnp.asarray(boxes), jnp.asarray(labels), jnp.asarray(valid))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_equals_official(shared, variant, monkeypatch):
    golden = np.load(shared / "golden" / f"forward_{variant}.npz")
    settings = TINY | VARIANTS[variant]
    if variant.startswith("x50"):  # ResNeXt-50 with 4 groups of 32: no recipe has it
        make = functools.partial(ResNet, architecture=parse_name("resnext50_4x32d"))
        monkeypatch.setitem(
            BACKBONES,
            "resnext101_64x4d",
            lambda config, dtype: make(config, dtype=dtype, name="backbone"),
        )
    model = DetectorNetwork(ModelConfig(**settings), num_classes=10)
    images = jnp.asarray(golden["images"].transpose(0, 2, 3, 1))
    shape = (images.shape[1], images.shape[2])
    # The official network sees the whole padded batch as image.
    sizes = jnp.array([shape, shape], jnp.int32)
    variables = load_variables(golden, model, images, sizes)

    grid = AnchorGrid(shape, offset_px=0.5)
    regression = settings.get("regression", "box")
    assign = functools.partial(ASSIGNERS["atss"], in_box_margin=0.51)
    content = jnp.asarray(golden["image_hw"], jnp.int32)

    def all_maps(model):
        stages, levels, masks = model.features(images, sizes)
        return stages, levels, model.head(levels, masks)

    @jax.jit
    def everything(variables):
        stages, levels, outputs = nn.apply(all_maps, model)(variables)
        targets = assign_targets(assign, grid, sizes, official_ground_truth(golden))
        losses = detection_losses(outputs, targets, grid, regression=regression)
        found = postprocess_batch(outputs, grid, content, jnp.ones((2, 2)), regression=regression)
        return stages, levels, outputs, losses, found

    stages, levels, outputs, losses, found = jax.device_get(everything(variables))
    for i, x in enumerate(stages):
        close(nchw(x), golden[f"C{i + 2}"])
    for i, x in enumerate(levels):
        close(nchw(x), golden[f"P{i + 3}"])
        # P7 has two cells here: a group of the head is two numbers, whose variance cancels.
        tolerance = 3e-3 if i == 4 else 1e-4
        close(nchw(outputs.cls_logits[i][:, :, :, 0]), golden[f"cls_P{i + 3}"], tolerance)
        close(nchw(outputs.box_regression[i][:, :, :, 0]), golden[f"reg_P{i + 3}"], tolerance)
        close(nchw(outputs.centerness_logits[i]), golden[f"ctr_P{i + 3}"], tolerance)

    np.testing.assert_allclose(losses.cls, golden["loss_cls"], rtol=1e-4)
    np.testing.assert_allclose(losses.box, golden["loss_reg"], rtol=0.03)
    np.testing.assert_allclose(losses.centerness, golden["loss_centerness"], rtol=0.03)

    for i in range(2):
        compare_detections(golden, found, i, regression)


def compare_detections(golden, found, i, regression):
    """All but the last few official detections are among ours, with score and place.

    Point regression differs by the official +1: its boxes are half a pixel smaller on each side.
    """
    pixels, missed = (0.05, 3) if regression == "box" else (0.55, 10)
    boxes, scores = golden[f"det_boxes_{i}"], golden[f"det_scores_{i}"]
    labels = golden[f"det_labels_{i}"]
    matched = 0
    for box, score, label in zip(boxes, scores, labels, strict=True):
        distance = np.abs(np.asarray(found.boxes[i]) - (box + np.array([0, 0, 1, 1]))).max(-1)
        same = (np.asarray(found.labels[i]) == label - 1) & np.asarray(found.is_valid[i])
        matched += bool(
            np.any(
                same & (distance < pixels) & (np.abs(np.asarray(found.scores[i]) - score) < 1e-3)
            )
        )
    assert matched >= len(boxes) - missed


def close(ours, golden, tolerance=1e-4):
    """Largest error at most `tolerance` standard deviations of the golden map."""
    assert ours.shape == golden.shape
    atol = tolerance * golden.std() + 1e-7
    np.testing.assert_allclose(ours, golden, rtol=0, atol=atol)


def generated(name, shape):
    """The tensor of a torch state dict name, by the rule in golden/torchvision/README.md."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) == 4:
        return rng.normal(0.0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.normal(0.0, 0.1, shape).astype(np.float32)


def torchvision_state(variables, bottleneck):
    """(torch names with OIHW arrays) for every leaf of a backbone's variables."""
    state = {}
    leaves = pretrained.flatten(variables)
    for name, array in leaves.items():
        _, *modules, leaf = name.split("/")
        block = modules[0].replace("_", ".", 1) if modules[0].startswith("layer") else None
        part = modules[-1]
        torch_part = part.replace("stem_conv", "conv1").replace("stem_norm", "bn1")
        torch_part = torch_part.replace("downsample_conv", "downsample.0")
        torch_part = torch_part.replace("downsample_norm", "downsample.1").replace("norm", "bn")
        module = f"{block}.{torch_part}" if block else torch_part
        if leaf == "kernel":
            shape = tuple(array.shape[i] for i in (3, 2, 0, 1))
            state[f"{module}.weight"] = generated(f"{module}.weight", shape)
        elif leaf == "scale":
            rng = np.random.default_rng(zlib.crc32(f"{module}.weight".encode()))
            last = torch_part == ("bn3" if bottleneck else "bn2")
            low, high = (0.1, 0.3) if last else (0.5, 1.0)
            state[f"{module}.weight"] = rng.uniform(low, high, array.shape).astype(np.float32)
            for field in ("bias", "running_mean", "running_var"):
                state[f"{module}.{field}"] = generated(f"{module}.{field}", array.shape)
    return state


CASES = [
    ("resnet18", "1x128x160"),
    ("resnet34", "1x128x160"),
    ("resnet50", "1x101x135"),
    ("resnet50_stride_in_1x1", "1x101x135"),
    pytest.param("resnet101", "1x128x160", marks=pytest.mark.slow),
    pytest.param("resnext101_32x8d", "1x128x160", marks=pytest.mark.slow),
    pytest.param("resnext101_64x4d", "1x128x160", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_backbone_equals_torchvision(shared, name, size):
    golden = np.load(shared / "golden" / "torchvision" / "resnet_features.npz")
    key = f"{name}/{size}"
    architecture: Any = name.removesuffix("_stride_in_1x1")
    config = ModelConfig(
        backbone=architecture, flavour="msra" if name.endswith("1x1") else "torchvision"
    )
    model = make_backbone(config)
    n, h, w = (int(v) for v in size.split("x"))
    x = np.random.default_rng(1000 + h).normal(0.0, 1.0, (n, 3, h, w)).astype(np.float32)
    assert zlib.crc32(x.tobytes()) == golden[f"{key}/input_crc32"]
    x = jnp.asarray(x.transpose(0, 2, 3, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    zeros = {
        kind: {"backbone": jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), tree)}
        for kind, tree in shapes.items()
    }
    state = torchvision_state(
        zeros_without_kind(zeros), architecture not in ("resnet18", "resnet34")
    )
    crc = 0
    for tensor in sorted(state):
        crc = zlib.crc32(np.ascontiguousarray(state[tensor]).tobytes(), crc)
    assert crc == golden[f"{key}/weights_crc32"]
    variables = pretrained.insert(state, zeros)
    variables = {kind: tree["backbone"] for kind, tree in variables.items()}
    features = jax.jit(model.apply)(variables, x)
    for level, feature in zip(("C2", "C3", "C4", "C5"), features, strict=True):
        ours = nchw(feature)
        assert ours.shape == tuple(golden[f"{key}/{level}/shape"])
        index, value = golden[f"{key}/{level}/index"], golden[f"{key}/{level}/value"]
        np.testing.assert_allclose(ours.ravel()[index], value, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            ours.mean((0, 2, 3)), golden[f"{key}/{level}/channel_mean"], rtol=1e-4, atol=1e-4
        )


def convnext_weight(name, shape):
    """The tensor of a torch state dict name, by the rule in golden/README.md."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) in (2, 4):
        return rng.normal(0.0, np.sqrt(1 / np.prod(shape[1:])), shape).astype(np.float32)
    if name.endswith("layer_scale"):
        return rng.uniform(0.1, 0.5, shape).astype(np.float32)
    return rng.normal(1.0 if name.endswith("weight") else 0.0, 0.1, shape).astype(np.float32)


def convnext_state():
    """Shapes of torchvision's convnext_tiny without its classifier, filled by the rule."""
    shapes = {"features.0.0.weight": (96, 3, 4, 4), "features.0.0.bias": (96,)}
    shapes |= {"features.0.1.weight": (96,), "features.0.1.bias": (96,)}
    for stage, (width, depth) in enumerate(zip((96, 192, 384, 768), (3, 3, 9, 3), strict=True)):
        if stage > 0:
            down = f"features.{2 * stage}"
            shapes |= {f"{down}.0.weight": (width // 2,), f"{down}.0.bias": (width // 2,)}
            shapes |= {f"{down}.1.weight": (width, width // 2, 2, 2), f"{down}.1.bias": (width,)}
        for i in range(depth):
            block = f"features.{2 * stage + 1}.{i}"
            shapes |= {
                f"{block}.layer_scale": (width, 1, 1),
                f"{block}.block.0.weight": (width, 1, 7, 7),
                f"{block}.block.0.bias": (width,),
                f"{block}.block.2.weight": (width,),
                f"{block}.block.2.bias": (width,),
                f"{block}.block.3.weight": (4 * width, width),
                f"{block}.block.3.bias": (4 * width,),
                f"{block}.block.5.weight": (width, 4 * width),
                f"{block}.block.5.bias": (width,),
            }
    return {name: convnext_weight(name, shape) for name, shape in shapes.items()}


def test_convnext_equals_torchvision():
    golden = np.load(Path(__file__).parent / "golden" / "convnext_tiny.npz")
    state, crc = convnext_state(), 0
    for name in sorted(state):
        crc = zlib.crc32(state[name].tobytes(), crc)
    assert crc == golden["weights_crc32"]
    x = np.random.default_rng(64).normal(0.0, 1.0, (1, 3, 64, 96)).astype(np.float32)
    assert zlib.crc32(x.tobytes()) == golden["input_crc32"]
    x = jnp.asarray(x.transpose(0, 2, 3, 1))
    model = make_backbone(ModelConfig(backbone="convnext_tiny"))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    loaded = pretrained.insert(state, {"params": {"backbone": zeros["params"]}})
    features = jax.jit(model.apply)({"params": loaded["params"]["backbone"]}, x)
    for n, feature in enumerate(features, start=2):
        ours = nchw(feature)
        assert ours.shape == tuple(golden[f"C{n}/shape"])
        values = ours.ravel()[golden[f"C{n}/index"]]
        np.testing.assert_allclose(values, golden[f"C{n}/value"], rtol=1e-4, atol=1e-5)


def zeros_without_kind(variables):
    """One tree of all leaves under "backbone", whatever collection they are of."""
    merged = {}
    for tree in variables.values():
        for name, array in pretrained.flatten(tree).items():
            merged[name] = array
    return unflatten_dict(merged, sep="/")


def deform_cases(shared):
    golden = np.load(shared / "golden" / "torchvision" / "deform_conv2d.npz")
    return golden, sorted({k.split("/")[0] for k in golden.files})


@pytest.mark.slow
def test_deformable_convolution_equals_torchvision(shared):
    golden, cases = deform_cases(shared)
    assert len(cases) == 11
    for case in cases:
        get = {k.split("/")[1]: golden[k] for k in golden.files if k.startswith(f"{case}/")}
        stride, pad, dilation, groups, _ = (int(v) for v in get["config"])
        names = [n for n in ("input", "weight", "offset", "mask") if n in get]
        to_ours = {"weight": (2, 3, 1, 0)}
        inputs = {n: jnp.asarray(get[n].transpose(to_ours.get(n, (0, 2, 3, 1)))) for n in names}
        cotangent = jnp.asarray(get["cotangent"].transpose(0, 2, 3, 1))

        def total(inputs, cotangent=cotangent, config=(stride, pad, dilation, groups)):
            out = deform_conv(
                inputs["input"],
                inputs["weight"],
                inputs["offset"],
                inputs.get("mask"),
                stride=config[0],
                padding=config[1],
                dilation=config[2],
                groups=config[3],
            )
            return jnp.sum(out * cotangent), out

        (_, out), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(inputs)
        if "bias" in get:
            out = out + get["bias"]
        results = {"out": nchw(out)}
        for n in names:
            g = np.asarray(gradients[n])
            results[f"grad_{n}"] = g.transpose(3, 2, 0, 1) if n == "weight" else nchw(g)
        for n, ours in results.items():
            error, size = np.abs(ours - get[n]).max(), np.abs(get[n]).max()
            assert error <= 1e-5 * size + 1e-12, (case, n, error, size)
