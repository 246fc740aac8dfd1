"""Post-processing in ONNX operators against the JAX functions, on random and on odd predictions."""

import functools

import jax
import numpy as np
import pytest

from atss_jax.evaluation.postprocess import PostprocessSettings, postprocess_batch
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.structures import Detections, HeadOutputs

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

FIELDS = ("cls_logits", "box_regression", "centerness_logits")
SHAPE = (96, 160)
SIZES = np.array([[96, 160], [61, 97], [1, 30]], np.int32)
SCALES = np.array([[1.0, 1.0], [0.5, 0.4], [2.0, 3.0]], np.float32)


def random_outputs(seed, grid, num_classes, *, centerness=True, step=0.0) -> HeadOutputs:
    """Of three images; `step` > 0 rounds the logits, so that many ranks are equal."""
    rng = np.random.default_rng(seed)

    def draw(*last, shift=0.0):
        levels = []
        for h, w in grid.level_shapes:
            values = rng.normal(shift, 2, (3, h, w, grid.num_per_location, *last))
            if step:
                values = np.round(values / step) * step
            levels.append(values.astype(np.float32))
        return tuple(levels)

    return HeadOutputs(
        draw(num_classes, shift=-2.0),
        tuple(abs(x) for x in draw(4)),
        draw() if centerness else None,
    )


def run_onnx(outputs, grid, settings, num_classes) -> Detections:
    """The operators alone: raw predictions are the graph's inputs."""
    from atss_jax.run.onnx_graph import Graph
    from atss_jax.run.onnx_postprocess import add_postprocess

    values = {"image_size": SIZES, "scale": SCALES}
    names = {}
    for field in FIELDS:
        levels = getattr(outputs, field) or ()
        names[field] = [f"{field}_{i}" for i in range(len(levels))]
        values |= dict(zip(names[field], levels, strict=True))
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in values.items()
    ]
    proto = onnx.helper.make_graph([], "postprocess", inputs, [])
    add_postprocess(
        Graph(proto), names, "image_size", "scale", grid, settings,
        batch=3, num_classes=num_classes,
    )  # fmt: skip
    opset = onnx.helper.make_opsetid("", 23)
    model = onnx.helper.make_model(proto, opset_imports=[opset], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return Detections(*session.run(None, values))


def check_equal(outputs, grid, num_classes, **fields) -> Detections:
    settings = PostprocessSettings(**fields)
    function = jax.jit(functools.partial(postprocess_batch, grid=grid, **settings._asdict()))
    live = function(outputs, image_size=SIZES, scale=SCALES)
    found = run_onnx(outputs, grid, settings, num_classes)
    for mine, theirs in zip(found, live, strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
    np.testing.assert_array_equal(found.is_valid, live.is_valid)
    np.testing.assert_array_equal(found.labels, live.labels)
    np.testing.assert_allclose(found.scores, live.scores, atol=1e-6)
    np.testing.assert_allclose(found.boxes, live.boxes, atol=1e-3)
    return found


@pytest.mark.parametrize("score", ["sqrt", "product", "cls"])
@pytest.mark.parametrize("regression", ["box", "point"])
def test_random_outputs(score, regression):
    grid = AnchorGrid(SHAPE)
    outputs = random_outputs(1, grid, 5)
    found = check_equal(outputs, grid, 5, score=score, regression=regression)
    assert found.is_valid.sum() > 150


@pytest.mark.parametrize("seed", range(8))
def test_equal_ranks_go_by_the_lower_index(seed):
    """Rounded logits: hundreds of equal ranks in the selections, in NMS and in the end."""
    grid = AnchorGrid(SHAPE)
    outputs = random_outputs(seed, grid, 3, centerness=False, step=1.0)
    check_equal(outputs, grid, 3, score="cls", pre_nms_top_k=60, max_detections=40, nms_iou=0.3)


def test_several_anchors_and_one_class():
    grid = AnchorGrid(SHAPE, scales_per_octave=3, aspect_ratios=(0.5, 1.0, 2.0))
    outputs = random_outputs(3, grid, 1, centerness=False)
    check_equal(outputs, grid, 1, score="cls", nms_iou=0.4)


@pytest.mark.parametrize("threshold", [0.05, 0.5, 1.0])
def test_fewer_candidates_than_slots(threshold):
    """Empty slots are zeros, also where nothing at all is found."""
    grid = AnchorGrid((32, 32), offset_px=0.5)
    outputs = random_outputs(4, grid, 2)
    found = check_equal(
        outputs._replace(cls_logits=tuple(x - 1 for x in outputs.cls_logits)), grid, 2,
        score_threshold=threshold, max_detections=500,
    )  # fmt: skip
    assert found.is_valid.sum() < 500 and (threshold < 1 or not found.is_valid.any())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", FIELDS)
def test_numbers_that_are_none(field, value):
    """NaNs and infinities in any array, and a selection that they would crowd out."""
    grid = AnchorGrid(SHAPE)
    outputs = random_outputs(5, grid, 4)
    levels = [x.copy() for x in getattr(outputs, field)]
    for i, x in enumerate(levels):
        places = np.random.default_rng(i).random(x.shape) < 0.1
        x[places] = value
    for top_k in (30, 1000):
        changed = outputs._replace(**{field: tuple(levels)})
        found = check_equal(changed, grid, 4, pre_nms_top_k=top_k)
        assert np.isfinite(found.boxes).all() and found.is_valid.any()


@pytest.mark.parametrize("nms_iou", [0.0, 1.0])
def test_limits_of_the_overlap(nms_iou):
    grid = AnchorGrid(SHAPE)
    check_equal(random_outputs(6, grid, 2), grid, 2, nms_iou=nms_iou, max_detections=300)
