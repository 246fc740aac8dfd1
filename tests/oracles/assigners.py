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
    """One object's candidates by a stable sort on each level, and the smallest gap at the cut."""
    # Anchors of one location share a centre; corners in float32 give it back only nearly.
    centers = np.round(centers_of(anchors), 3)
    distance2 = np.sum((centers - centers_of(box[None])) ** 2, axis=1)
    chosen, gap = [], np.inf
    for start, stop in levels:
        index = np.arange(start, stop)[own[start:stop]]
        order = np.argsort(distance2[index], kind="stable")
        chosen += list(index[order[: k * a]])
        if len(order) > k * a:
            inner, outer = distance2[index[order[k * a - 1]]], distance2[index[order[k * a]]]
            if outer > inner:  # exact ties are settled by the index, near ones by rounding
                gap = min(gap, (outer - inner) / outer)
    return np.array(chosen, int), gap


def atss(anchors, levels, own, boxes, *, k, a, margin=0.01):
    """Also returns the thresholds, and how near any decision was to going the other way."""
    iou = iou_matrix(anchors, boxes)
    centers = centers_of(anchors)
    claims, thresholds, doubt = [], [], np.inf
    for g, box in enumerate(boxes):
        candidates, gap = atss_candidates(anchors, levels, own, box, k, a)
        values = iou[candidates, g]
        threshold = values.mean() + values.std(ddof=1)
        thresholds.append(threshold)
        doubt = min(doubt, gap / 50, np.abs(values - threshold).min())
        good = candidates[values >= threshold]
        claims += [(i, g) for i in good if edge_distances(centers[i], box).min() > margin]
    for anchor, g in claims:
        for other_anchor, other in claims:
            if anchor == other_anchor and g < other and np.any(boxes[g] != boxes[other]):
                doubt = min(doubt, abs(iou[anchor, g] - iou[anchor, other]))
    return *_by_highest_iou(claims, iou, len(anchors), own), np.array(thresholds), doubt


def max_iou(anchors, own, boxes, *, positives_in_box=False, margin=0.01):
    iou = iou_matrix(anchors, boxes)
    centers = centers_of(anchors)
    highest = iou[own].max(axis=0)
    gt_index, label = np.zeros(len(anchors), int), np.full(len(anchors), -1)
    for i in np.flatnonzero(own):
        g = gt_index[i] = int(iou[i].argmax())
        is_top = np.any((iou[i] >= highest * (1 - 1e-6)) & (iou[i] > 0))
        label[i] = 1 if iou[i, g] >= 0.5 or is_top else -1 if iou[i, g] >= 0.4 else 0
        outside = edge_distances(centers[i], boxes[g]).min() <= margin
        if label[i] == 1 and positives_in_box and outside:
            label[i] = -1
    return gt_index, label


def spatial_scale(anchors, strides, own, boxes, *, ranges, center_radius=0.0, margin=0.01):
    centers = centers_of(anchors)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in boxes]
    gt_index, label = np.zeros(len(anchors), int), np.where(own, 0, -1)
    for i in np.flatnonzero(own):
        low, high = ranges[int(np.log2(strides[i])) - 3]
        for g, box in enumerate(boxes):
            ltrb = edge_distances(centers[i], box)
            fits = ltrb.min() > margin and low <= ltrb.max() <= high
            away = np.abs(centers[i] - centers_of(box[None])[0]).max()
            fits = fits and (center_radius == 0 or away < center_radius * strides[i])
            if fits and (label[i] == 0 or areas[g] < areas[gt_index[i]]):
                gt_index[i], label[i] = g, 1
    return gt_index, label


def top_k_iou(anchors, own, boxes, *, k, margin=0.01):
    iou, centers = iou_matrix(anchors, boxes), centers_of(anchors)
    distance = np.linalg.norm(centers[:, None] - centers_of(boxes)[None], axis=2)
    score = iou - distance / distance[own].max() / 1000
    claims, doubt = [], np.inf
    for g, box in enumerate(boxes):
        index = np.flatnonzero(own)
        order = index[np.argsort(-score[index, g], kind="stable")]
        best = order[:k]
        doubt = min(doubt, score[order[k - 1], g] - score[order[k], g])
        claims += [(i, g) for i in best if edge_distances(centers[i], box).min() > margin]
    return *_by_highest_iou(claims, iou, len(anchors), own), doubt


def task_aligned(anchors, own, boxes, labels, scores, predicted, *, top_k, alpha, beta):
    """TOOD Sec. 3.2. Returns also t of each positive; `scores` [A, K], `predicted` boxes [A, 4]."""
    iou = iou_matrix(predicted, boxes)
    centers = centers_of(anchors)
    metric = np.zeros_like(iou)
    claims = []
    for g, box in enumerate(boxes):
        for n in range(len(anchors)):
            metric[n, g] = own[n] * float(scores[n, labels[g]]) ** alpha * iou[n, g] ** beta
        for n in np.argsort(-metric[:, g], kind="stable")[:top_k]:
            if metric[n, g] > 0 and edge_distances(centers[n], box).min() > 0.01:
                claims.append((n, g))
    gt_index, label = _by_highest_iou(claims, iou, len(anchors), own)
    found = [metric[n, g] if is_positive == 1 else 0.0
             for n, (g, is_positive) in enumerate(zip(gt_index, label, strict=True))]  # fmt: skip
    return gt_index, label, np.array(found)
