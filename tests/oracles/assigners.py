"""Assigners in plain NumPy loops over float64: the texts of the papers, nothing shared with ours.

Every function takes the anchors as arrays and returns (gt_index int [A], label int [A]): label is
1 for positives, 0 for negatives, -1 for ignored anchors. `levels` holds the (start, stop) of each
level; only anchors in `own` exist.
"""

import numpy as np


def iou_matrix(anchors, boxes):
    a, b = anchors[:, None].astype(np.float64), boxes[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inter = np.prod(np.maximum(sides, 0), axis=-1)
    area = lambda x: (x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1])  # noqa: E731
    return inter / (area(a) + area(b) - inter)


def centers_of(boxes):
    boxes = boxes.astype(np.float64)
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def edge_distances(center, box):
    x, y = center
    return np.array([x - box[0], y - box[1], box[2] - x, box[3] - y])


def _by_highest_iou(claims, iou, num_anchors, own):
    """`claims`: list of (anchor, object), in rising order of the object."""
    gt_index = np.zeros(num_anchors, int)
    label = np.where(own, 0, -1)
    best = np.full(num_anchors, -1.0)
    for anchor, g in claims:
        if iou[anchor, g] > best[anchor]:
            best[anchor], gt_index[anchor], label[anchor] = iou[anchor, g], g, 1
    return gt_index, label


def atss_candidates(anchors, levels, own, box, k, a):
    """Indices of one object's candidates: stable sort by distance on each level."""
    centers = centers_of(anchors)
    delta = centers - centers_of(box[None])
    distance2 = np.sum(delta**2, axis=1)
    chosen = []
    for start, stop in levels:
        index = np.arange(start, stop)[own[start:stop]]
        order = np.argsort(distance2[index], kind="stable")
        chosen += list(index[order[: k * a]])
    return np.array(chosen, int)


def atss(anchors, levels, own, boxes, *, k, a, margin=0.01):
    """Also returns the thresholds and how near a decision was to going the other way."""
    iou = iou_matrix(anchors, boxes)
    centers = centers_of(anchors)
    claims, thresholds, doubt = [], [], np.inf
    for g, box in enumerate(boxes):
        candidates = atss_candidates(anchors, levels, own, box, k, a)
        values = iou[candidates, g]
        threshold = values.mean() + values.std(ddof=1)
        thresholds.append(threshold)
        doubt = min(doubt, np.abs(values - threshold).min())
        for anchor in candidates:
            inside = edge_distances(centers[anchor], box).min()
            if iou[anchor, g] >= threshold and inside > margin:
                claims.append((anchor, g))
    return *_by_highest_iou(claims, iou, len(anchors), own), np.array(thresholds), doubt
