r"""Health report of a detection set: what is in it, what is odd, what would be dropped.

    atss check my_data --html=health.html

Reads as training would under data.on_error="skip", decodes every image of a small set (--decode:
of any), and prints counts, sizes, bucket shares and padding, box sizes and every kind of oddity.
The numbers are those of the training part, or of the one that --split names. --html writes the
report as a page, with thumbnails of odd and bad images. The exit status is 1 when something is bad.
"""

import argparse
import base64
import html
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from atss_jax.data import batch_rows
from atss_jax.data.batch_plan import choose_bucket
from atss_jax.data.config import DataConfig
from atss_jax.data.dataset import DetectionDataset
from atss_jax.data.health import Finding
from atss_jax.data.images import resized_size
from atss_jax.data.plausibility import compare
from atss_jax.drawing.palette import class_color
from atss_jax.run import classes, training_view
from atss_jax.run.arguments import HelpFormatter, Parser
from atss_jax.run.browse_data import (
    add_source_arguments,
    load,
    parse_buckets,
    parse_with_folder,
)

SMALL, MEDIUM = 32**2, 96**2
"""COCO's limits of small and medium areas, px^2."""
THUMBNAIL_PX = 240
THUMBNAILS_PER_KIND = 12


def percentiles(values: np.ndarray) -> str:
    """Minimum, quartiles and maximum of some numbers."""
    if not len(values):
        return "none"
    return " / ".join(f"{value:.4g}" for value in np.percentile(values, [0, 25, 50, 75, 100]))


def report(dataset: DetectionDataset, args: argparse.Namespace) -> list[str]:
    """The lines of the report."""
    health, a = dataset.health, dataset.annotations
    sides = a.xywh[:, 2:][~a.is_crowd]
    area = a.area[~a.is_crowd]
    height, width = dataset.sizes[:, 0], dataset.sizes[:, 1]
    limits = (args.short_side, args.max_long_side)
    resized = np.array([resized_size((h, w), *limits) for h, w in dataset.sizes.tolist()])
    scale = np.sqrt(np.prod(resized / dataset.sizes, axis=1))
    lines = [
        f"part: {dataset.name}",
        f"images: {dataset.num_records} good of {health.num_images} listed",
        f"annotations: {len(a.id)} good of {health.num_annotations}, of them "
        f"{int(a.is_crowd.sum())} crowds",
        f"images without training boxes: {int((dataset.num_boxes == 0).sum())}",
        f"min / 25 % / median / 75 % / max of boxes per image: {percentiles(dataset.num_boxes)}",
        f"short sides, px: {percentiles(np.minimum(height, width))}",
        f"long sides, px: {percentiles(np.maximum(height, width))}",
        f"aspect ratios w/h: {percentiles(width / height)}",
        f"box sides (root of w*h), px of the files: {percentiles(np.sqrt(np.prod(sides, axis=1)))}",
        f"box sides at short side {args.short_side}, long side {args.max_long_side} px: "
        + percentiles(np.sqrt(np.prod(sides, axis=1)) * scale[a.record[~a.is_crowd]]),
        f"box aspect ratios w/h: {percentiles(sides[:, 0] / sides[:, 1])}",
        "small / medium / large objects, by area in px of the files (limits 32^2, 96^2): "
        f"{int((area < SMALL).sum())} / "
        f"{int(((area >= SMALL) & (area < MEDIUM)).sum())} / {int((area >= MEDIUM).sum())}",
    ]
    lines += bucket_lines(dataset, args)
    counts = dataset.class_counts()
    lines.append("classes (annotations):")
    order = np.argsort(-counts, kind="stable")
    lines += [
        f"  {dataset.class_names[n]} (id {dataset.category_id(n)}): {counts[n]}" for n in order
    ]
    for title, found in (("odd, kept", health.odd), ("bad, dropped", health.bad)):
        lines.append(f"{title}: {sum(found.values())}")
        lines += [f"  {kind}: {count}" for kind, count in sorted(found.items())]
    kinds = {finding.kind: finding.message for finding in reversed(health.odd_examples)}
    lines += [f"such as {kind}: {message}" for kind, message in sorted(kinds.items())]
    return lines


def _choose_sizes(
    args: argparse.Namespace, dataset: DetectionDataset, other: DetectionDataset | None
) -> None:
    """Fills in the sizes that were not given: those of `atss train`, or the paper's.

    Args:
      args: the command line, changed in place.
      dataset: the set to report on.
      other: the set's other part, None without one.
    """
    names = training_view.SIZE_FIELDS
    if training_view.check_sizes_given_once(args, names):
        data = DataConfig()
    else:
        sets = (other, dataset) if other is not None and args.split != "train" else (dataset, other)
        recipe, line = training_view.resolve(*sets, args.image_size)
        print(line)
        data = recipe.data
    for name in names:
        if getattr(args, name) is None:
            setattr(args, name, getattr(data, name))


def bucket_lines(dataset: DetectionDataset, args: argparse.Namespace) -> list[str]:
    """Shares of the buckets and padding, before small buckets are merged."""
    content, padded = 0, 0
    members: dict[tuple[int, int] | None, int] = {}
    for height, width in dataset.sizes.tolist():
        size = resized_size((height, width), args.short_side, args.max_long_side)
        bucket = choose_bucket(size, args.buckets)
        members[bucket] = members.get(bucket, 0) + 1
        if bucket is not None:
            content += size[0] * size[1]
            padded += bucket[0] * bucket[1]
    lines = [f"buckets at short side {args.short_side}, long side {args.max_long_side}:"]
    for bucket in (*args.buckets, None):
        if bucket in members:
            name = "fits none" if bucket is None else f"{bucket[0]}x{bucket[1]}"
            lines.append(f"  {name}: {100 * members[bucket] / dataset.num_records:.1f} %")
    if content:
        lines.append(f"padding: {100 * (padded / content - 1):.1f} % extra pixels")
    return lines


def decode_all(dataset: DetectionDataset) -> int:
    """Decodes every image; adds those that fail to the bad ones and returns their number."""

    def check(record: int) -> Finding | None:
        try:
            batch_rows.read_image(dataset, record)
        except ValueError as error:
            return Finding("image_undecodable", str(error), dataset.image_id(record))
        return None

    with ThreadPoolExecutor() as pool:
        found = [f for f in pool.map(check, range(dataset.num_records), chunksize=64) if f]
    for finding in found:
        dataset.health.add_bad(finding, is_image=True)
    return len(found)


def thumbnail(dataset: DetectionDataset, record: int) -> str:
    """An image with its boxes as an HTML element."""
    try:
        image = batch_rows.read_image(dataset, record)
    except ValueError:
        return ""
    zoom = THUMBNAIL_PX / max(image.shape[:2])
    height, width = (max(1, round(side * zoom)) for side in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    for box, label in zip(dataset.boxes(record), dataset.labels(record), strict=True):
        x1, y1, x2, y2 = (int(round(float(v) * zoom)) for v in box)
        cv2.rectangle(small, (x1, y1), (x2, y2), class_color(int(label)), 1)
    _, data = cv2.imencode(".jpg", small[..., ::-1])
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}">'


def html_page(dataset: DetectionDataset, lines: list[str]) -> str:
    """The report with thumbnails, one file without outside parts."""
    record_of = {dataset.image_id(n): n for n in range(dataset.num_records)}
    parts = [
        "<!doctype html><meta charset=utf-8><title>Data report</title>",
        "<style>body{font:14px sans-serif;margin:2em}figure{display:inline-block;margin:6px;"
        "max-width:260px;vertical-align:top}figcaption{font-size:11px}</style>",
        f"<h1>{html.escape(dataset.name)}</h1><pre>{html.escape(chr(10).join(lines))}</pre>",
    ]
    health = dataset.health
    for title, findings in (("Bad", health.bad_examples), ("Odd", health.odd_examples)):
        for kind in sorted({finding.kind for finding in findings}):
            parts.append(f"<h2>{title}: {kind}</h2>")
            parts += figures(dataset, record_of, (f for f in findings if f.kind == kind))
    return "\n".join(parts)


def figures(
    dataset: DetectionDataset, record_of: dict[int | str, int], findings: Iterable[Finding]
) -> list[str]:
    """Thumbnails with what is wrong; images that were dropped have the words only."""
    result = []
    for n, finding in enumerate(findings):
        picture = ""
        if n < THUMBNAILS_PER_KIND and finding.image_id in record_of:
            picture = thumbnail(dataset, record_of[finding.image_id])
        words = html.escape(finding.message)
        result.append(f"<figure>{picture}<figcaption>{words}</figcaption></figure>")
    return result


def main(arguments: Sequence[str]) -> int:
    """Reads, prints, writes the page; returns the exit code."""
    parser = Parser(prog="atss check", description=__doc__, formatter_class=HelpFormatter)
    add_source_arguments(parser)
    parser.set_defaults(on_error="skip", max_bad_fraction=1.0)
    parser.add_argument("--decode", action="store_true", help="decode every image")
    parser.add_argument("--html", default="", help="page to write")
    training_view.add_image_size_argument(parser)
    parser.add_argument("--buckets", type=parse_buckets, help="default: as `atss train` chooses")
    parser.add_argument("--short_side", type=int, help="likewise, px")
    parser.add_argument("--max_long_side", type=int, help="likewise, px")
    args = parse_with_folder(parser, arguments, "of a set in any known layout")
    dataset, other = load(args), None
    if args.root:
        is_train = args.split == "train"
        other = load(argparse.Namespace(**{**vars(args), "split": "val" if is_train else "train"}))
    _choose_sizes(args, dataset, other)
    if args.decode:
        decode_all(dataset)
    lines = report(dataset, args)
    if other is not None and args.split == "train":
        lines += val_lines(dataset, other)
    print("\n".join(lines))
    for finding in dataset.health.bad_examples[:20]:
        print(f"bad: {finding.message}")
    if args.html:
        with open(args.html, "w") as file:
            file.write(html_page(dataset, lines))
        print(f"page with thumbnails: {args.html}")
    return 1 if dataset.health.bad else 0


def val_lines(train: DetectionDataset, val: DetectionDataset) -> list[str]:
    """The validation part in short, and what differs between both parts."""
    counts = zip(val.class_names, val.class_counts().tolist(), strict=True)
    both = compare(classes.without_unused(train, val), val)
    return [
        f"part: {val.name} (--split=val shows it like the one above)",
        f"  images: {val.num_records} good of {val.health.num_images} listed",
        f"  annotations: {len(val.annotations.id)} good of {val.health.num_annotations}",
        "  classes: " + ", ".join(f"{name} {count}" for name, count in counts),
        "train and val:",
        *(f"  {line}" for line in both or ["no file in both, the same classes"]),
    ]
