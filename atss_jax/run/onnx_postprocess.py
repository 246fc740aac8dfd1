"""Post-processing in ONNX operators: `evaluation/postprocess.py` with hard NMS, for a batch.

`export_onnx.py` appends it to a network's graph. Steps, comparisons and the order of equal ranks
are those of the JAX functions; `tests/test_onnx_postprocess.py` compares the two. All shapes are
static but that of the list that the operator NonMaxSuppression gives. Needs the package onnx.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]

from atss_jax.evaluation.postprocess import PostprocessSettings
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.geometry.boxes import DELTA_WEIGHTS, MAX_LOG_SCALE
from atss_jax.run.onnx_graph import Graph

EMPTY = np.float32(-1)
"""Rank of a slot that holds no candidate; candidates have 0 to 1."""


class Candidates(NamedTuple):
    """Names of what enters NMS; N boxes an image."""

    boxes: str
    """float32 [B, N, 4], clipped to the content."""
    ranks: str
    """float32 [B, N]; EMPTY where there is no candidate."""
    labels: str
    """int64 [B, N]."""


class Outputs(NamedTuple):
    """Names of the arrays of `Detections`."""

    boxes: str
    scores: str
    labels: str
    is_valid: str


def add_postprocess(
    graph: Graph,
    outputs: Mapping[str, Sequence[str]],
    image_size: str,
    scale: str,
    grid: AnchorGrid,
    settings: PostprocessSettings,
    *,
    batch: int,
    num_classes: int,
) -> None:
    """Appends everything from raw predictions to detections, the graph's outputs.

    They are named after the fields of `Detections`: boxes float32 [B, D, 4], scores float32 [B, D],
    labels int32 [B, D], is_valid bool [B, D].

    Args:
      graph: that computes the raw predictions.
      outputs: field of `HeadOutputs` -> names of its levels' arrays; none where the head has none.
      image_size: int32 [B, 2], (h, w) of the content, px.
      scale: float32 [B, 2], (y, x), resized = original * scale.
      grid: anchors of the bucket.
      settings: of `postprocess`; `nms` is "hard".
      batch: B.
      num_classes: K.
    """
    has_centerness = bool(outputs["centerness_logits"]) and settings.score != "cls"
    levels = []
    for level, is_own in enumerate(own_masks(graph, image_size, grid)):
        ranks, anchors, labels = select_top_pairs(
            graph,
            outputs["cls_logits"][level],
            outputs["centerness_logits"][level] if has_centerness else None,
            is_own,
            settings,
            shape=(batch, grid.num_per_level[level], num_classes),
        )
        flat = graph.op("Reshape", outputs["box_regression"][level], np.array([batch, -1, 4]))
        regressions = graph.take_rows(flat, anchors)
        boxes = clip_to_content(
            graph, decode_boxes(graph, regressions, anchors, grid, level, settings), image_size
        )
        # The clipping makes an infinite side finite, so both are looked at.
        is_finite = graph.op("And", all_finite(graph, regressions), all_finite(graph, boxes))
        levels.append(Candidates(boxes, graph.op("Where", is_finite, ranks, EMPTY), labels))
    # empty slots, so that there are at least D
    empty = (
        np.zeros((batch, settings.max_detections, 4), np.float32),
        np.full((batch, settings.max_detections), EMPTY),
        np.zeros((batch, settings.max_detections), np.int64),
    )
    found = Candidates(
        *(graph.op("Concat", *part, axis=1) for part in zip(*levels, empty, strict=True))
    )
    best, index = class_wise_nms(graph, found, settings, num_classes)
    is_root = has_centerness and settings.score == "sqrt"
    values = detections(graph, found, best, index, scale, is_root=is_root)
    kinds, slots = onnx.TensorProto, (batch, settings.max_detections)
    graph.output("boxes", values.boxes, kinds.FLOAT, (*slots, 4))
    graph.output("scores", values.scores, kinds.FLOAT, slots)
    graph.output("labels", values.labels, kinds.INT32, slots)
    graph.output("is_valid", values.is_valid, kinds.BOOL, slots)


def own_masks(graph: Graph, image_size: str, grid: AnchorGrid) -> list[str]:
    """Of each level, bool [B, h, w, 1]: cells of the image's own grid (`AnchorGrid.own_mask`)."""

    def halved(side: str) -> str:
        return graph.op("Div", graph.op("Add", side, np.int32(1)), np.int32(2))

    p5 = graph.op("Div", graph.op("Add", image_size, np.int32(31)), np.int32(32))
    p6 = halved(p5)
    own_sides = [graph.op("Mul", p5, np.int32(4)), graph.op("Mul", p5, np.int32(2))]
    own_sides += [p5, p6, halved(p6)]
    masks = []
    for (height, width), own in zip(grid.level_shapes, own_sides, strict=True):
        inside = []
        for axis, shape in ((0, (1, height, 1, 1)), (1, (1, 1, width, 1))):
            side = graph.op("Gather", own, np.array([axis]), axis=1)  # [B, 1]
            side = graph.op("Reshape", side, np.array([-1, 1, 1, 1]))
            places = np.arange(max(shape), dtype=np.int32).reshape(shape)
            inside.append(graph.op("Less", places, side))
        masks.append(graph.op("And", *inside))
    return masks


def select_top_pairs(
    graph: Graph,
    cls_logits: str,
    centerness_logits: str | None,
    is_own: str,
    settings: PostprocessSettings,
    *,
    shape: tuple[int, int, int],
) -> tuple[str, str, str]:
    """`postprocess.select_top_pairs` of a level: the best anchors, then the best of their pairs.

    Args:
      graph: to append to.
      cls_logits: [B, h, w, a, K].
      centerness_logits: [B, h, w, a], or None.
      is_own: bool [B, h, w, 1].
      settings: `score_threshold` and `pre_nms_top_k` count.
      shape: (B, N, K) of the level.

    Returns:
      Ranks, indices of the level's anchors, and classes, each [B, k], by descending rank.
    """
    batch, num_anchors, num_classes = shape
    num_best = min(settings.pre_nms_top_k, num_anchors)
    num_pairs = min(settings.pre_nms_top_k, num_best * num_classes)

    def rank(logits: str, centerness: str | None, mask: str) -> str:
        probability = graph.op("Sigmoid", logits)
        value = graph.op("Mul", probability, centerness) if centerness else probability
        is_candidate = graph.op("Greater", probability, np.float32(settings.score_threshold))
        is_number = graph.op("Not", graph.op("IsNaN", value))
        is_candidate = graph.op("And", graph.op("And", is_candidate, is_number), mask)
        return graph.op("Where", is_candidate, value, EMPTY)

    # NOTE: ONNX does not say whether a maximum is NaN where an element is. An anchor with a NaN in
    # any class gives no pair, so they are looked for.
    is_nan = graph.op("Cast", graph.op("IsNaN", cls_logits), to=onnx.TensorProto.FLOAT)
    has_nan = graph.op("ReduceMax", is_nan, np.array([-1]), keepdims=0)
    usable = graph.op("And", is_own, graph.op("Less", has_nan, np.float32(0.5)))
    highest = graph.op("ReduceMax", cls_logits, np.array([-1]), keepdims=0)
    centerness = graph.op("Sigmoid", centerness_logits) if centerness_logits else None
    best = rank(highest, centerness, usable)  # [B, h, w, a]
    best = graph.op("Reshape", best, np.array([batch, num_anchors]))
    _, anchors = graph.op_outputs("TopK", 2, best, np.array([num_best]))
    # in ascending order, so that equal ranks go by the lower index in the second selection, too
    anchors, _ = graph.op_outputs("TopK", 2, anchors, np.array([num_best]), largest=0)

    has_any = graph.op("GreaterOrEqual", graph.take(best, anchors), np.float32(0))
    logits = graph.op("Reshape", cls_logits, np.array(shape))
    own_centerness = None
    if centerness:
        flat = graph.op("Reshape", centerness, np.array([batch, num_anchors]))
        own_centerness = graph.op("Unsqueeze", graph.take(flat, anchors), np.array([-1]))
    pairs = rank(
        graph.take_rows(logits, anchors),
        own_centerness,
        graph.op("Unsqueeze", has_any, np.array([-1])),
    )  # [B, num_best, K]
    pairs = graph.op("Reshape", pairs, np.array([batch, num_best * num_classes]))
    ranks, pair_index = graph.op_outputs("TopK", 2, pairs, np.array([num_pairs]))
    row = graph.op("Div", pair_index, np.int64(num_classes))
    return ranks, graph.take(anchors, row), graph.op("Mod", pair_index, np.int64(num_classes))


def decode_boxes(
    graph: Graph,
    regressions: str,
    anchors: str,
    grid: AnchorGrid,
    level: int,
    settings: PostprocessSettings,
) -> str:
    """xyxy px in the padded frame, [B, k, 4], of a level's selected anchors.

    Args:
      graph: to append to.
      regressions: [B, k, 4], deltas or distances in strides.
      anchors: [B, k], index in the level.
      grid: of the bucket.
      level: which.
      settings: `regression` counts.
    """
    start = grid.level_starts[level]
    rows = slice(start, start + grid.num_per_level[level])
    first, second = (graph.columns(regressions, columns) for columns in ((0, 1), (2, 3)))
    if settings.regression == "point":
        centers = graph.op("Gather", grid.centers()[rows], anchors)
        stride = np.float32(grid.strides[level])
        corners = [
            graph.op("Sub", centers, graph.op("Mul", first, stride)),
            graph.op("Add", centers, graph.op("Mul", second, stride)),
        ]
        return graph.op("Concat", *corners, axis=2)
    boxes = grid.boxes()[rows]
    centers = graph.op("Gather", (boxes[:, :2] + boxes[:, 2:]) / 2, anchors)
    sides = graph.op("Gather", boxes[:, 2:] - boxes[:, :2], anchors)
    weights = np.array(DELTA_WEIGHTS, np.float32)
    shift = graph.op("Mul", graph.op("Div", first, weights[:2]), sides)
    centers = graph.op("Add", centers, shift)
    log_scale = graph.op("Min", graph.op("Div", second, weights[2:]), np.float32(MAX_LOG_SCALE))
    half = graph.op("Div", graph.op("Mul", graph.op("Exp", log_scale), sides), np.float32(2))
    corners = [graph.op("Sub", centers, half), graph.op("Add", centers, half)]
    return graph.op("Concat", *corners, axis=2)


def clip_to_content(graph: Graph, boxes: str, image_size: str) -> str:
    """Boxes limited to the image content, each keeping a pixel of it; [B, k, 4]."""
    size = graph.op("Cast", image_size, to=onnx.TensorProto.FLOAT)
    upper = graph.op("Gather", size, np.array([[1, 0]]), axis=1)  # (w, h), [B, 1, 2]
    corners = []
    for columns, low, high in (
        ((0, 1), 0, graph.op("Sub", upper, np.float32(1))),
        ((2, 3), 1, upper),
    ):
        corner = graph.op("Max", graph.columns(boxes, columns), np.float32(low))
        corners.append(graph.op("Min", corner, high))
    return graph.op("Concat", *corners, axis=2)


def class_wise_nms(
    graph: Graph, found: Candidates, settings: PostprocessSettings, num_classes: int
) -> tuple[str, str]:
    """`geometry.nms.class_wise_nms` over all levels: ranks and index, [B, D], EMPTY at the end.

    The operator compares a quotient with the threshold where the JAX function multiplies, so an IoU
    that is the threshold to the last bit may count differently.
    """
    classes = np.arange(num_classes, dtype=np.int64)[None, :, None]
    ranks = graph.op("Unsqueeze", found.ranks, np.array([1]))
    is_of_class = graph.op("Equal", graph.op("Unsqueeze", found.labels, np.array([1])), classes)
    selected = graph.op(
        "NonMaxSuppression",
        found.boxes,
        graph.op("Where", is_of_class, ranks, EMPTY),  # [B, K, N]
        np.array([settings.max_detections]),
        np.array([settings.nms_iou], np.float32),
        np.array([EMPTY / 2], np.float32),
    )  # [M, 3]: image, class, box
    places = graph.op("Gather", selected, np.array([0, 2]), axis=1)
    nothing = graph.op("Min", found.ranks, EMPTY)
    kept = graph.op("ScatterND", nothing, places, graph.op("GatherND", found.ranks, places))
    best, index = graph.op_outputs("TopK", 2, kept, np.array([settings.max_detections]))
    return best, index


def detections(
    graph: Graph,
    found: Candidates,
    best: str,
    index: str,
    scale: str,
    *,
    is_root: bool,
) -> Outputs:
    """What is known of the survivors, with zeros in empty slots.

    Args:
      graph: to append to.
      found: all candidates.
      best: ranks of the survivors, [B, D].
      index: their places among the candidates, [B, D].
      scale: [B, 2], (y, x).
      is_root: the final score is the square root of the rank.
    """
    is_valid = graph.op("GreaterOrEqual", best, np.float32(0))
    scores = best
    if is_root:
        scores = graph.op("Sqrt", graph.op("Max", best, np.float32(0)))
    scale_xyxy = graph.op("Gather", scale, np.array([[1, 0, 1, 0]]), axis=1)  # [B, 1, 4]
    boxes = graph.op("Div", graph.take_rows(found.boxes, index), scale_xyxy)
    is_valid_box = graph.op("Unsqueeze", is_valid, np.array([-1]))
    labels = graph.op("Cast", graph.take(found.labels, index), to=onnx.TensorProto.INT32)
    return Outputs(
        graph.op("Where", is_valid_box, boxes, np.float32(0)),
        graph.op("Where", is_valid, scores, np.float32(0)),
        graph.op("Where", is_valid, labels, np.int32(0)),
        is_valid,
    )


def all_finite(graph: Graph, values: str) -> str:
    """Bool [B, k]: no NaN and no infinity in a row of `values` [B, k, 4]."""
    # false for NaN, as every comparison with it
    is_finite = graph.op("Less", graph.op("Abs", values), np.float32(np.inf))
    number = graph.op("Cast", is_finite, to=onnx.TensorProto.FLOAT)
    lowest = graph.op("ReduceMin", number, np.array([-1]), keepdims=0)
    return graph.op("Greater", lowest, np.float32(0.5))
