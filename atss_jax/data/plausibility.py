"""What a run is about to learn from, in at most 15 lines of 80 columns: said at every start.

Everything here is known when the sets have been read; no image is decoded for it.
"""

import textwrap
from collections.abc import Sequence

import numpy as np

from atss_jax.data.dataset import DetectionDataset

MAX_LINES = 15
COLUMNS = 80
ENTRY_LINES = 3
"""Lines that one entry may take."""
MIN_EXPECTED = 20
"""A class share is compared where as many objects would be expected in validation."""
WILD_FACTOR = 3.0
"""Class shares of train and val that differ by more are named."""
COCO_LIMIT = 100
"""Detections per image that COCO's AP takes."""
_JOINT = "\N{NO-BREAK SPACE}"
"""Between words that stay on one line; a space in the end."""
_HARMLESS = ("image_without_boxes", "annotation_id_missing", "annotation_id_zero", "area_missing")
"""Kinds of oddities that come last."""


def start_report(
    train: DetectionDataset,
    val: DetectionDataset | None = None,
    padding: float | None = None,
    max_detections: int | None = None,
) -> list[str]:
    """The lines to print before training.

    Args:
      train: training set.
      val: validation set, None where there is none.
      padding: padded over content pixels of the plan, minus 1.
      max_detections: most detections per image of the recipe.
    """
    sets = [train] if val is None else [train, val]
    head = [_about(dataset) for dataset in sets]
    head.append(_classes(train, val))
    if padding is not None:
        head.append(f"padding: {100 * padding:.1f} % extra pixels")
    if val is not None:
        head += compare(train, val)
        head += _limit_lines(val, max_detections)
    rest = [line for dataset in sets for line in _dropped(dataset)]
    rest += _odd_lines(sets)
    return _fit(head + rest)


def _fit(entries: list[str]) -> list[str]:
    """Entries in lines of `COLUMNS`, as many as `MAX_LINES` hold."""
    blocks = [
        textwrap.wrap(
            entry, COLUMNS, subsequent_indent="    ", max_lines=ENTRY_LINES, placeholder=" ..."
        )
        for entry in entries
    ]
    lines: list[str] = []
    for place, block in enumerate(blocks):
        rest = sum(map(len, blocks[place:]))
        is_last = place + 1 == len(blocks)
        if len(lines) + rest > MAX_LINES and len(lines) + len(block) + (not is_last) > MAX_LINES:
            return [*lines, f"and {len(blocks) - place} more: `atss check` lists them"]
        lines += [line.replace(_JOINT, " ") for line in block]
    return lines


def compare(train: DetectionDataset, val: DetectionDataset) -> list[str]:
    """What is wrong between the sets: shared files, class shares, classes that only one has."""
    lines = []
    if train.digests is not None and val.digests is not None:
        shared = np.flatnonzero(np.isin(val.digests, train.digests))
        if len(shared):
            other = int(np.flatnonzero(train.digests == val.digests[shared[0]])[0])
            lines.append(
                f"! {len(shared)} of {val.num_records} val images are in train, so that AP is too "
                f"high: {val.describe(shared[0])} is {train.describe(other)}"
            )
    if train.dropped_classes:
        names = ", ".join(train.dropped_classes)
        lines.append(f"left out, no box in train or val has the class: {names}")
    lines += _only_listed_once(train, val)
    in_val = dict(zip(val.class_names, class_counts(val).tolist(), strict=True))
    counts = [class_counts(train), np.array([in_val.get(name, 0) for name in train.class_names])]
    empty = [n for n in range(len(train.class_names)) if not counts[0][n] + counts[1][n]]
    if empty:
        names = ", ".join(f"{train.class_names[n]} (id {train.category_id(n)})" for n in empty)
        lines.append(f"no box in train or val has the class, and it is kept: {names}")
    only_val = [n for n in range(len(counts[0])) if counts[1][n] and not counts[0][n]]
    if only_val:
        names = ", ".join(train.class_names[n] for n in only_val)
        lines.append(f"! in val and never in train: {names}")
    only_train = [n for n in range(len(counts[0])) if counts[0][n] and not counts[1][n]]
    if only_train:
        names = ", ".join(train.class_names[n] for n in only_train)
        lines.append(f"in train and never in val, so without an AP: {names}")
    shares = [c / max(1, c.sum()) for c in counts]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.maximum(shares[0] / shares[1], shares[1] / shares[0])
    expected = np.maximum(shares[0], shares[1]) * counts[1].sum()
    wild = np.flatnonzero((ratio > WILD_FACTOR) & (expected >= MIN_EXPECTED) & (counts[0] > 0))
    if len(wild):
        parts = [
            f"{train.class_names[n]} {shares[0][n]:.1%} of train, {shares[1][n]:.1%} of val"
            for n in wild.tolist()
        ]
        lines.append(f"! class shares differ: {', '.join(parts)}")
    return lines


def _only_listed_once(train: DetectionDataset, val: DetectionDataset) -> list[str]:
    """Says which classes only one of the sets lists; none where the run has matched them."""
    lines = []
    missing = [name for name in train.class_names if name not in val.class_names]
    if missing:
        lines.append(f"val does not list the class, it is added there: {', '.join(missing)}")
    in_val = dict(zip(val.class_names, val.class_counts().tolist(), strict=True))
    rest = {
        name: count
        for name, count in in_val.items()
        if name not in train.class_names and name not in train.dropped_classes
    }
    unused = [name for name, count in rest.items() if not count]
    if unused:
        lines.append(f"train does not list the class, it is left out of val: {', '.join(unused)}")
    unknown = [f"{name} ({count} in val)" for name, count in rest.items() if count]
    if unknown:
        names = ", ".join(unknown)
        lines.append(f"! train does not list the class, so that training stops: {names}")
    return lines


def _limit_lines(val: DetectionDataset, max_detections: int | None) -> list[str]:
    """Says when an image holds more objects than may be found in it."""
    limits = {"COCO's AP takes": COCO_LIMIT, "eval.max_detections is": max_detections or COCO_LIMIT}
    name, limit = min(limits.items(), key=lambda item: item[1])
    over = np.flatnonzero(val.num_boxes > limit)
    if not len(over):
        return []
    most = int(np.argmax(val.num_boxes))
    return [
        f"! {len(over)} val images hold more objects than can be found ({name} {limit}): "
        f"{val.describe(most)} has {val.num_boxes[most]}"
    ]


def class_counts(dataset: DetectionDataset) -> np.ndarray:
    """Objects by dense label, crowds left out: int [C]."""
    labels = dataset.annotation_labels[~dataset.annotations.is_crowd]
    return np.bincount(labels, minlength=len(dataset.class_names))


def _about(dataset: DetectionDataset) -> str:
    a = dataset.annotations
    empty = int((~dataset.has_objects).sum())
    sides = np.sqrt(np.prod(a.xywh[:, 2:], axis=1)[~a.is_crowd])
    low, middle, high = np.percentile(dataset.sizes[:, ::-1], [0, 50, 100], axis=0).astype(int)
    text = f"{dataset.name}: {dataset.num_records} images"
    text += f" ({empty} without objects)" if empty else ""
    text += f", {int((~a.is_crowd).sum())} objects"
    text += f", {int(a.is_crowd.sum())} crowds" if a.is_crowd.any() else ""
    same = (low == high).all()
    text += f"; {middle[0]}x{middle[1]} px" if same else f"; {_range(low, middle, high)} px"
    if len(sides):
        least, half, most = np.percentile(sides, [5, 50, 95])
        text += f"; box sides {least:.0f}/{half:.0f}/{most:.0f} px (5/50/95{_JOINT}%)"
    return text


def _range(low: np.ndarray, middle: np.ndarray, high: np.ndarray) -> str:
    return "/".join(f"{w}x{h}" for w, h in (low, middle, high))


def _classes(train: DetectionDataset, val: DetectionDataset | None) -> str:
    counts = class_counts(train)
    more = None
    if val is not None and val.class_names == train.class_names:
        more = class_counts(val)
    parts = []
    for n in np.argsort(-counts, kind="stable").tolist():
        text = f"{train.class_names[n]} {counts[n]}"
        parts.append(text if more is None else f"{text} (val {more[n]})")
    line = f"{len(parts)} classes: "
    for place, part in enumerate(parts):
        if len(line) + len(part) > 2 * COLUMNS - 24:
            return f"{line}and {len(parts) - place} more"
        line += part + (", " if place + 1 < len(parts) else "")
    return line


def _dropped(dataset: DetectionDataset) -> list[str]:
    lines = []
    for kind, count in sorted(dataset.health.bad.items()):
        example = next(f for f in dataset.health.bad_examples if f.kind == kind)
        lines.append(f"! dropped {count} {kind} in {dataset.name}, such as {example.message}")
    return lines


def _odd_lines(sets: Sequence[DetectionDataset]) -> list[str]:
    """A line for each kind: how many in each set, and the first example."""
    lines = {}
    kinds = {kind for dataset in sets for kind in dataset.health.odd}
    left_out = tuple(f"({name}): no box has it" for d in sets for name in d.dropped_classes)
    for kind in sorted(kinds, key=lambda k: (k in _HARMLESS, k != "boxes_as_corners", k)):
        counts = [dataset.health.odd[kind] for dataset in sets]
        examples = [f for dataset in sets for f in dataset.health.odd_examples if f.kind == kind]
        if kind == "category_without_boxes":  # those left out are named elsewhere
            counts = [n - len(d.dropped_classes) for n, d in zip(counts, sets, strict=True)]
            examples = [f for f in examples if not f.message.endswith(left_out)]
            if not any(counts):
                continue
        mark = "! " if kind in ("boxes_as_corners", "image_turned", "box_normalised") else ""
        count = " + ".join(map(str, counts))
        lines[kind] = f"{mark}odd, kept: {count} {kind}, such as {examples[0].message}"
    return list(lines.values())
