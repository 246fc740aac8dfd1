"""Greedy NMS and box voting with loops over lists, in float64. Shares nothing with the source."""

import math


def area(box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = area(a) + area(b) - intersection
    return intersection / union if union > 0 else 0.0


def greedy_nms(boxes, scores, labels, iou_threshold: float) -> list[int]:
    """Indices kept, by descending score, equal scores by the lower index."""
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        rivals = [j for j in kept if labels[j] == labels[i]]
        if all(iou(boxes[j], boxes[i]) <= iou_threshold for j in rivals):
            kept.append(i)
    return kept


def soft_nms(boxes, scores, labels, *, kind, iou_threshold, sigma, min_score):
    """[(index, score)] by soft NMS: take the best, lower the scores of its class, again."""
    left = [(i, s) for i, s in enumerate(scores) if s >= min_score]
    taken = []
    while left:
        best, score = max(left, key=lambda entry: (entry[1], -entry[0]))
        taken.append((best, score))
        lowered = []
        for i, s in left:
            if i == best:
                continue
            if labels[i] == labels[best]:
                overlap = iou(boxes[best], boxes[i])
                if kind == "gaussian":
                    s *= math.exp(-(overlap**2) / sigma)
                elif overlap > iou_threshold:
                    s *= 1 - overlap
            if s >= min_score:
                lowered.append((i, s))
        left = lowered
    return taken


def postprocess(
    probabilities, centerness, boxes, level_sizes, *, threshold, top_k, nms_iou, max_detections
):
    """[(score, box, label)] of one image by descending score.

    `probabilities` is one list of class probabilities for each anchor, `centerness` one number
    for each anchor or None, `boxes` are decoded and clipped.
    """
    candidates = []
    start = 0
    for size in level_sizes:
        pairs = []
        for anchor in range(start, start + size):
            for label, probability in enumerate(probabilities[anchor]):
                if probability > threshold:
                    factor = 1.0 if centerness is None else centerness[anchor]
                    pairs.append((-probability * factor, anchor, label))
        candidates += sorted(pairs)[:top_k]
        start += size
    ranks = [-pair[0] for pair in candidates]
    chosen = [list(boxes[pair[1]]) for pair in candidates]
    labels = [pair[2] for pair in candidates]
    kept = greedy_nms(chosen, ranks, labels, nms_iou)[:max_detections]
    root = (lambda x: x) if centerness is None else math.sqrt
    return [(root(ranks[i]), chosen[i], labels[i]) for i in kept]
