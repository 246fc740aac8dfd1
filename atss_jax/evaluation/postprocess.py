"""HeadOutputs -> Detections: scores, best candidates of each level, decoding, NMS, own frame.

The last device step of inference, after `models/detector.py` and before `coco_metrics.py`. One
image; `postprocess_batch` maps it over a batch. Fixed shapes throughout, so it can be traced into
an exported program.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from atss_jax.config import choices
from atss_jax.evaluation.config import EvalConfig
from atss_jax.geometry import nms as suppression
from atss_jax.geometry.anchors import AnchorGrid
from atss_jax.geometry.boxes import at_least_float32, decode_deltas, decode_points
from atss_jax.structures import Detections, HeadOutputs
from atss_jax.typing import Array, Bool, Float, Int

SCORES = ("sqrt", "product", "cls")
"""Final scores of a detection, see `postprocess`."""

NMS: tuple[str, ...] = choices(EvalConfig, "nms")
"""What happens to a box that overlaps a better one of its class, see `postprocess`."""


class PostprocessSettings(NamedTuple):
    """The keywords of `postprocess` as one value; the fields are explained there."""

    regression: str = "box"
    score_threshold: float = 0.05
    pre_nms_top_k: int = 1000
    nms_iou: float = 0.6
    max_detections: int = 100
    score: str = "sqrt"
    nms: str = "hard"
    soft_nms_sigma: float = 0.5
    soft_nms_min_score: float = 0.05


def make_settings(config: EvalConfig, regression: str) -> PostprocessSettings:
    """The settings that a recipe asks for.

    Args:
      config: the recipe's group "eval".
      regression: what the network regresses, "box" or "point".
    """
    return PostprocessSettings(
        regression=regression,
        score_threshold=config.score_threshold,
        pre_nms_top_k=config.pre_nms_top_k,
        nms_iou=config.nms_iou,
        max_detections=config.max_detections,
        score=config.score,
        nms=config.nms,
        soft_nms_sigma=config.soft_nms_sigma,
        soft_nms_min_score=config.soft_nms_min_score,
    )


def postprocess(
    outputs: HeadOutputs,
    grid: AnchorGrid,
    image_size: Int[Array, "2"],
    scale: Float[Array, "2"],
    *,
    regression: str = "box",
    score_threshold: float = 0.05,
    pre_nms_top_k: int = 1000,
    nms_iou: float = 0.6,
    max_detections: int = 100,
    score: str = "sqrt",
    nms: str = "hard",
    soft_nms_sigma: float = 0.5,
    soft_nms_min_score: float = 0.05,
) -> Detections:
    """Detections of one image, in the order of the official code.

    On each level: (anchor, class) pairs with class probability > `score_threshold`; the best
    `pre_nms_top_k` by probability x centerness; decoded; clipped to the content. Then class-wise
    NMS over all levels and the best `max_detections`. Official settings: the defaults for ATSS and
    FCOS; `nms_iou=0.4`, `score="cls"` for RetinaNet.

    NaNs and infinite regressions never become detections; infinite logits are probabilities of 0
    or 1.

    Args:
      outputs: raw predictions of one image, any float type.
      grid: anchors of the bucket; those outside the image's own grid give no detections.
      image_size: (h, w) of the content, px.
      scale: (y, x) factors, resized = original * scale; boxes are returned divided by it.
      regression: "box" (deltas) or "point" (distances in strides).
      score_threshold: in [0, 1], on the class probability alone.
      pre_nms_top_k: candidates of each level.
      nms_iou: same-class boxes with a greater IoU than this are dropped.
      max_detections: D.
      score: "sqrt" of probability x centerness, their "product", or "cls", the probability alone
        (then the ranking is by it, too). A head without centerness has "cls" only.
      nms: "hard" drops boxes; the soft ones lower their final score instead, see
        `geometry.nms.class_wise_soft_nms`.
      soft_nms_sigma: of "soft_gaussian".
      soft_nms_min_score: soft NMS drops boxes whose lowered final score is less than this.

    Returns:
      Detections, sorted by descending score, in px of the original image. Empty slots are zeros.

    Raises:
      ValueError: unknown `regression`, `score` or `nms`.
    """
    if score not in SCORES:
        raise ValueError(f"score={score!r}: must be one of {', '.join(SCORES)}.")
    if nms not in NMS:
        raise ValueError(f"nms={nms!r}: must be one of {', '.join(NMS)}.")
    has_centerness = outputs.centerness_logits is not None and score != "cls"
    is_own = grid.own_mask(image_size)
    per_level = []
    for level, start in enumerate(grid.level_starts):
        num_anchors = grid.num_per_level[level]
        cls_logits = outputs.cls_logits[level]
        centerness_logits = None
        if outputs.centerness_logits is not None and has_centerness:
            centerness_logits = outputs.centerness_logits[level].reshape(num_anchors)
        ranks, anchor_index, labels = select_top_pairs(
            cls_logits.reshape(num_anchors, cls_logits.shape[-1]),
            centerness_logits,
            lax.slice_in_dim(is_own, start, start + num_anchors),
            score_threshold=score_threshold,
            top_k=pre_nms_top_k,
        )
        regressions = outputs.box_regression[level].reshape(num_anchors, 4)[anchor_index]
        boxes = decode_boxes(regressions, grid, start + anchor_index, regression)
        boxes = _clip_to_content(boxes, image_size)
        # The clipping makes an infinite side finite, so both are looked at.
        is_finite = jnp.isfinite(regressions).all(-1) & jnp.isfinite(boxes).all(-1)
        per_level.append((boxes, ranks, labels, (ranks >= 0) & is_finite))
    boxes, ranks, labels, is_candidate = (
        jnp.concatenate(parts) for parts in zip(*per_level, strict=True)
    )

    def final(ranks: Array) -> Array:
        return jnp.sqrt(jnp.maximum(ranks, 0)) if has_centerness and score == "sqrt" else ranks

    if nms == "hard":
        index, is_valid = suppression.class_wise_nms(
            boxes, ranks, labels, is_candidate,
            iou_threshold=nms_iou, max_detections=max_detections,
        )  # fmt: skip
        scores = final(ranks[index])
    else:
        index, scores, is_valid = suppression.class_wise_soft_nms(
            boxes, final(ranks), labels, is_candidate,
            kind=nms.removeprefix("soft_"), iou_threshold=nms_iou, sigma=soft_nms_sigma,
            min_score=soft_nms_min_score, max_detections=max_detections,
        )  # fmt: skip
    scale_xyxy = jnp.tile(at_least_float32(scale)[::-1], 2)
    return Detections(
        boxes=jnp.where(is_valid[:, None], boxes[index] / scale_xyxy, 0),
        scores=jnp.where(is_valid, scores, 0),
        labels=jnp.where(is_valid, labels[index], 0),
        is_valid=is_valid,
    )


def postprocess_batch(
    outputs: HeadOutputs,
    grid: AnchorGrid,
    image_size: Int[Array, "B 2"],
    scale: Float[Array, "B 2"],
    **settings: Any,
) -> Detections:
    """`postprocess` of every image of a batch; `settings` are its keyword arguments."""
    one_image = functools.partial(postprocess, **settings)
    return jax.vmap(one_image, in_axes=(0, None, 0, 0))(outputs, grid, image_size, scale)


def select_top_pairs(
    cls_logits: Float[Array, "N K"],
    centerness_logits: Float[Array, " N"] | None,
    is_own: Bool[Array, " N"],
    *,
    score_threshold: float,
    top_k: int,
) -> tuple[Float[Array, " k"], Int[Array, " k"], Int[Array, " k"]]:
    """The best (anchor, class) pairs of a level by class probability x centerness.

    Exact without sorting all N * K pairs: each of the `top_k` anchors whose best pair ranks
    highest holds one pair at least as good as any pair of the other anchors, so no pair of the
    top k lies outside them. Two small selections follow: of anchors, then of their pairs.

    Args:
      cls_logits: of each anchor of the level.
      centerness_logits: of each anchor, or None.
      is_own: False for anchors outside the image's own grid.
      score_threshold: pairs need a class probability greater than this.
      top_k: number of pairs; fewer where the level holds fewer.

    Returns:
      Rank value (probability x centerness; -1 where there is no further candidate), anchor index
      and class of each pair, by descending rank; equal ranks by anchor, then class.

    >>> ranks, anchors, classes = select_top_pairs(
    ...     jnp.array([[0.0, 2.0], [1.0, -9.0]]), None, jnp.array([True, True]),
    ...     score_threshold=0.05, top_k=3)
    >>> anchors.tolist(), classes.tolist()
    ([0, 1, 0], [1, 0, 0])
    """
    num_anchors, num_classes = cls_logits.shape
    centerness = jnp.ones(num_anchors)
    if centerness_logits is not None:
        centerness = jax.nn.sigmoid(at_least_float32(centerness_logits))

    def rank(logits: Array, centerness: Array, is_own: Array) -> Array:
        probability = jax.nn.sigmoid(at_least_float32(logits))
        value = probability * centerness
        # A NaN would come before every number in `top_k`.
        is_candidate = is_own & (probability > score_threshold) & ~jnp.isnan(value)
        return jnp.where(is_candidate, value, -1)

    # The maximum is NaN where any class is: such an anchor gives no pair at all.
    best = rank(jnp.max(cls_logits, axis=-1), centerness, is_own)  # [N]
    _, anchors = lax.top_k(best, min(top_k, num_anchors))
    anchors = jnp.sort(anchors)  # equal ranks then go by the lower index, as in one selection
    has_any = (is_own & (best >= 0))[anchors, None]
    pairs = rank(cls_logits[anchors], centerness[anchors, None], has_any)
    ranks, pair_index = lax.top_k(pairs.ravel(), min(top_k, pairs.size))
    return ranks, anchors[pair_index // num_classes], pair_index % num_classes


def decode_boxes(
    regressions: Float[Array, "N 4"],
    grid: AnchorGrid,
    anchor_index: Int[Array, " N"],
    regression: str,
) -> Float[Array, "N 4"]:
    """xyxy px in the padded frame of the boxes that some anchors predict.

    Args:
      regressions: deltas, or distances in strides.
      grid: anchors of the bucket.
      anchor_index: which anchors, counted over all levels.
      regression: "box" or "point".

    Raises:
      ValueError: for another `regression`.
    """
    if regression == "box":
        return decode_deltas(regressions, jnp.asarray(grid.boxes())[anchor_index])
    if regression == "point":
        centers = jnp.asarray(grid.centers())[anchor_index]
        return decode_points(regressions, centers, jnp.asarray(grid.anchor_strides())[anchor_index])
    raise ValueError(f'regression={regression!r}: must be "box" or "point".')


def _clip_to_content(
    boxes: Float[Array, "N 4"], image_size: Int[Array, "2"]
) -> Float[Array, "N 4"]:
    """Boxes limited to the image content, each keeping a pixel of it.

    So does the official clipping to [0, W - 1] in inclusive coordinates: a box wholly outside
    becomes one pixel wide instead of empty.
    """
    height, width = image_size[0], image_size[1]
    upper = jnp.stack([width, height]).astype(boxes.dtype)
    return jnp.concatenate(
        [jnp.clip(boxes[:, :2], 0, upper - 1), jnp.clip(boxes[:, 2:], 1, upper)], axis=-1
    )
