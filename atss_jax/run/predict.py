"""`--mode=predict`: images, folders, patterns and videos -> drawings, COCO JSON and CSV."""

import collections
import csv
import io
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from atss_jax.data import media, media_files
from atss_jax.drawing import visualize
from atss_jax.errors import UserError
from atss_jax.evaluation.coco_results import detections_to_coco, with_min_score, write_results
from atss_jax.files import write_whole
from atss_jax.run import workdir_files
from atss_jax.run.detector import Detector
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import screen
from atss_jax.structures import Detections

ENOUGH_FRAMES = 0.95
"""Containers estimate their number of frames; below this part of it, some are missing."""


class _Problems(NamedTuple):
    """Messages about files, shown when the others are done."""

    skipped: list[str]
    """Not read."""
    incomplete: list[str]
    """Not read in full."""
    undrawn: list[str]
    """Read, and missing among the drawings."""


def predict_workdir(
    config: Recipe, workdir: epath.Path, checkpoint: str = "last"
) -> dict[str, Any]:
    """`--mode=predict`: detections of `predict.input`, drawn, as COCO JSON and as CSV.

    Args:
      config: the recipe; group "predict" says what and where to.
      workdir: of the run.
      checkpoint: "last", "best" or a step.

    Returns:
      Counts: images, detections, and files that could not be read (in full) or drawn; also in
      about.json, with the step of the checkpoint.

    Raises:
      UserError: no input, or nothing readable in it; no run, or no such checkpoint.
    """
    if not any(config.predict.input):
        raise UserError(f"config.predict.input is empty. {media_files.HINT}")
    output = epath.Path(config.predict.output or workdir / "predictions")
    found = media_files.find(config.predict.input, output)
    media_files.check_readable(found)
    files = [*found.images, *found.videos]
    if any(os.path.realpath(file.parent) == os.path.realpath(output) for file in files):
        raise UserError(
            f"config.predict.output={str(output)!r} is the folder of the images, and drawings take "
            "their names. Give another."
        )
    workdir_files.open_workdir(config, workdir)
    detector = Detector.load(
        workdir, config=config, batch_size=config.eval.batch_size, checkpoint=checkpoint
    )
    print(f"step {detector.step} ({checkpoint}) of {workdir}")
    workdir_files.make_folder(output, "config.predict.output")
    names = media_files.names_of(files)
    problems = _Problems([], [], [])
    rows = _predict_files(detector, found.images, names, output, problems)
    taken: set[str] = set()
    for file, name in zip(found.videos, names[len(found.images) :], strict=True):
        drawing = output / f"{drawing_name(name, taken)}.mp4"
        frame_prefix = "" if len(files) == 1 else f"{name}/"
        try:
            rows += _predict_video(detector, file, drawing, frame_prefix, problems)
        except UserError as error:
            problems.skipped.append(str(error))
    write_tables(rows, detector, output)
    counts = {
        "images": len(rows),
        "detections": sum(len(found.scores) for _, found in rows),
        "unreadable": len(problems.skipped) + len(problems.incomplete),
        "not_drawn": len(problems.undrawn),
        "output": str(output),
        "step": detector.step,
        "checkpoint": checkpoint,
        "test_time_augmentation": config.eval.multiscale,
    }
    workdir_files.write_json(output / "about.json", counts)
    screen.show(
        f"{counts['detections']} detections with score >= {config.predict.score_threshold} in "
        f"{counts['images']} images: drawings, detections.json and detections.csv in {output}"
    )
    for message in (
        *(f"skipped {text}" for text in problems.skipped),
        *problems.incomplete,
        *(f"not drawn: {text}" for text in problems.undrawn),
    ):
        screen.show(message, sys.stderr)
    limit = config.eval.max_detections
    full = sum(len(found.scores) >= limit for _, found in rows)
    if full:
        screen.show(
            f"{full} image(s) reached the limit of {limit} boxes (eval.max_detections). To see "
            f"fewer, raise predict.score_threshold, now {config.predict.score_threshold:g}"
        )
    if problems.skipped and not rows:
        raise UserError(
            f"none of the {len(problems.skipped)} files could be read; the first: "
            f"{problems.skipped[0]}"
        )
    return counts


def _predict_files(
    detector: Detector,
    files: Sequence[Path],
    names: Sequence[str],
    output: epath.Path,
    problems: _Problems,
) -> list[tuple[str, Detections]]:
    """Draws each file; returns (name, detections) of those read, and adds to the problems."""
    waiting: collections.deque = collections.deque()

    def read() -> Iterator[np.ndarray]:
        for file, name in zip(files, names, strict=False):  # names of videos follow
            try:
                image = media.read_image_file(file, detector.config.data.max_pixels)
            except (ValueError, OSError) as error:
                problems.skipped.append(str(error))
                continue
            waiting.append((name, image))
            yield image

    rows: list[tuple[str, Detections]] = []
    taken: set[str] = set()
    report = progress(len(files))
    for found in detector.detect(read()):
        name, image = waiting.popleft()
        found = with_min_score(found, detector.config.predict.score_threshold)
        drawing = output / f"{drawing_name(name, taken)}.jpg"
        rows.append((name, found))
        try:
            visualize.save_image(drawing, draw(detector, image, found))
        except Exception as error:  # whatever it is: the tables do not need the drawing
            problems.undrawn.append(f"{name}: {error}")
        report(len(rows) + len(problems.skipped))
    return rows


def _predict_video(
    detector: Detector, source: Path, drawing: epath.Path, frame_prefix: str, problems: _Problems
) -> list[tuple[str, Detections]]:
    """Draws a video; returns (frame name, detections), and adds to the problems.

    Raises:
      UserError: none of its frames can be read.
    """
    video = media.Video(source)
    frames, mine = itertools.tee(video)  # the detector runs at most a few batches ahead
    rows, is_drawn = [], True
    report = progress(video.num_frames)
    with media.VideoWriter(drawing, video.fps) as writer:
        for frame, found in zip(mine, detector.detect(frames), strict=True):
            found = with_min_score(found, detector.config.predict.score_threshold)
            rows.append((f"{frame_prefix}frame_{len(rows):06d}", found))
            try:
                if is_drawn:
                    writer.write(draw(detector, frame, found, min_short_side=1))
            except Exception as error:  # as for images
                is_drawn = False
                problems.undrawn.append(f"{source}: {error}")
            report(len(rows))
    if not rows:
        raise UserError(f"{source}: none of its frames could be read. Copy or convert it again.")
    if len(rows) < ENOUGH_FRAMES * video.num_frames:
        problems.incomplete.append(
            f"{source}: only {len(rows)} of {video.num_frames} frames could be read. If it should "
            "be longer, copy or convert it again"
        )
    return rows


def drawing_name(name: str, taken: set[str]) -> str:
    """A flat name for the drawing of a file, without suffix and unlike all `taken`.

    Args:
      name: path of the file below the folder of all.
      taken: names given so far, in lower case: not every file system knows the difference. The
        new name is added.

    >>> taken = set()
    >>> drawing_name("a/b.png", taken), drawing_name("a__b.png", taken)
    ('a__b', 'a__b_2')
    """
    flat = unique = os.path.splitext(name)[0].replace(os.sep, "__")
    number = 1
    while unique.lower() in taken:
        number += 1
        unique = f"{flat}_{number}"
    taken.add(unique.lower())
    return unique


def draw(
    detector: Detector, image: np.ndarray, found: Detections, *, min_short_side: int = 480
) -> np.ndarray:
    """An image with its detections, class names and scores."""
    return visualize.draw_boxes(
        image,
        np.asarray(found.boxes),
        np.asarray(found.labels),
        np.asarray(found.scores),
        detector.class_names,
        min_short_side=min_short_side,
    )


def write_tables(
    rows: Sequence[tuple[str, Detections]], detector: Detector, output: epath.Path
) -> None:
    """Writes detections.json (COCO results, with file names) and detections.csv.

    Args:
      rows: name and detections of each image; `image_id` counts them from 1.
      detector: knows the classes.
      output: folder.
    """
    results = []
    for image_id, (name, found) in enumerate(rows, 1):
        one = Detections(*(np.asarray(field)[None] for field in found))
        results += detections_to_coco(one, [image_id], detector.category_ids, file_names=[name])
    write_results(output / "detections.json", results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "class", "score", "x1", "y1", "x2", "y2"))
    for name, found in rows:
        for box, score, label in zip(*(np.asarray(f).tolist() for f in found[:3]), strict=True):
            cells = (as_text(name), as_text(detector.class_names[label]))
            writer.writerow((*cells, score, *box))
    write_whole(output / "detections.csv", text.getvalue())


def as_text(cell: str) -> str:
    """A CSV cell that no spreadsheet takes for a formula: those get a leading apostrophe.

    >>> as_text("=1+1"), as_text("cat")
    ("'=1+1", 'cat')
    """
    return "'" + cell if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def progress(total: int) -> Callable[[int], None]:
    """A function that reports images done or skipped on stderr, at most once a second."""
    start = last = time.perf_counter()

    def report(done: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if done == total or now - last >= 1:
            last = now
            speed = done / (now - start)
            print(f"{done}/{total or '?'} images, {speed:.1f} images/s", file=sys.stderr)

    return report
