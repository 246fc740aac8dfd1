"""NumPy in float64 for the self-test: slow loops that share nothing with what they check."""

import numpy as np


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of every box of `a` [N, 4] with every box of `b` [M, 4], xyxy px: [N, M]."""
    a, b = a[:, None].astype(np.float64), b[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.prod(np.maximum(sides, 0), axis=-1)
    areas = [np.prod(x[..., 2:] - x[..., :2], axis=-1) for x in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def giou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Generalised IoU (arXiv 1902.09630) of each pair of boxes, xyxy px: [N]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    values = []
    for first, second in zip(a, b, strict=True):
        width = min(first[2], second[2]) - max(first[0], second[0])
        height = min(first[3], second[3]) - max(first[1], second[1])
        shared = max(width, 0.0) * max(height, 0.0)
        union = np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - shared
        hull = np.prod(np.maximum(first[2:], second[2:]) - np.minimum(first[:2], second[:2]))
        values.append(shared / union - (hull - union) / hull)
    return np.array(values)


def atss_positives(
    anchors: np.ndarray, level_starts: tuple[int, ...], boxes: np.ndarray, k: int
) -> np.ndarray:
    """Object of every anchor [A], -1 for negatives: Algorithm 1 of the paper.

    Args:
      anchors: xyxy px, [A, 4], one per location, all of them inside the image's own grid.
      level_starts: index of the first anchor of each level.
      boxes: objects, xyxy px, [G, 4].
      k: candidates per object and level.
    """
    centers = (anchors[:, :2].astype(np.float64) + anchors[:, 2:]) / 2
    iou = iou_matrix(anchors, boxes)
    owner, best = np.full(len(anchors), -1), np.full(len(anchors), -1.0)
    stops = [*level_starts[1:], len(anchors)]
    for index, box in enumerate(boxes.astype(np.float64)):
        distance = np.sum((centers - (box[:2] + box[2:]) / 2) ** 2, axis=1)
        candidates = np.concatenate(
            [
                start + np.argsort(distance[start:stop], kind="stable")[:k]
                for start, stop in zip(level_starts, stops, strict=True)
            ]
        )
        values = iou[candidates, index]
        for anchor in candidates[values >= values.mean() + values.std(ddof=1)]:
            edges = np.concatenate([centers[anchor] - box[:2], box[2:] - centers[anchor]])
            if edges.min() > 0.01 and iou[anchor, index] > best[anchor]:
                owner[anchor], best[anchor] = index, iou[anchor, index]
    return owner


def greedy_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Boxes that greedy NMS keeps, best first; all of one class."""
    iou = iou_matrix(boxes, boxes)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if all(iou[index, other] <= threshold for other in kept):
            kept.append(int(index))
    return kept
