"""Runs an exported detector without its package: prints one JSON line per detection.

A copy of this file is all that another project needs, with a few packages:

    StableHLO files: pip install jax flatbuffers opencv-python-headless
    ONNX files:      pip install onnxruntime opencv-python-headless
"""

import argparse
import functools
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # this program says itself what is no image

import cv2  # noqa: E402
import numpy as np  # noqa: E402

INTEGER_RANGES, FLOAT_RANGES = (255.0, 4095.0, 65535.0), (1.0, 255.0)
"""What the largest sample of an image may be: of 8, 12 and 16 bits, and of floats."""
PACKAGES = {"stablehlo": "jax flatbuffers", "onnx": "onnxruntime"}
"""Format -> what runs its files, beside NumPy and OpenCV."""


def read_image(path: str) -> np.ndarray:
    """The upright image of a file as uint8 RGB [height, width, 3].

    More than 8 bits are scaled as in training: by the smallest range that holds the largest sample,
    since files do not say how many of their bits they use.

    Raises:
      ValueError: not an image that OpenCV reads, or samples of unknown range.
    """
    try:
        image = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:  # a header that claims too much
        raise ValueError(f"no image that OpenCV reads ({error.err})") from error
    if image is None:
        raise ValueError("no image that OpenCV reads")
    image = np.ascontiguousarray(image[..., ::-1])  # OpenCV 5 breaks 16-bit TIFFs read as RGB
    if image.dtype == np.uint8:
        return image
    least, most = float(image.min()), float(image.max())
    ranges = FLOAT_RANGES if image.dtype.kind == "f" else INTEGER_RANGES
    limit = next((r for r in ranges if most <= r), None)
    if limit is None or not least >= 0:
        raise ValueError(
            f"samples of type {image.dtype} lie in {least:g}..{most:g}: their range is unknown. "
            "Convert the image to 8 bits"
        )
    return np.rint(image.astype(np.float32) * np.float32(255 / limit)).astype(np.uint8)


def resized_size(height: int, width: int, short_side: int, max_long_side: int) -> tuple[int, int]:
    """(h, w) after resizing, as in training: the short side is rounded, the long one truncated.

    Rounding the short side may take the long one beyond its limit, where it is held.
    """
    short, long = min(height, width), max(height, width)
    if long / short * short_side > max_long_side:
        short_side = max(1, int(round(max_long_side * short / long)))
    long_side = min(int(short_side * long / short), max_long_side)
    return (long_side, short_side) if width < height else (short_side, long_side)


def choose_file(
    target: tuple[int, int], files: list[dict[str, Any]]
) -> tuple[dict[str, Any], tuple[int, int]]:
    """The file of fewest pixels that holds a resized image, and the (h, w) to resize to.

    An image of extreme proportions may fit none: it is made smaller still, for the file in which
    it stays largest.
    """
    h, w = target
    fitting = [f for f in files if f["height"] >= h and f["width"] >= w]
    if fitting:
        return min(fitting, key=lambda f: f["height"] * f["width"]), target

    def factor(f):
        return min(f["height"] / h, f["width"] / w)

    best = max(files, key=factor)
    return best, (max(1, int(h * factor(best))), max(1, int(w * factor(best))))


def detect(
    image: np.ndarray, about: dict[str, Any], program_of: Callable[[str], Callable]
) -> list[tuple[str, float, list[float]]]:
    """(class, score, box) of each detection; the box is (x1, y1, x2, y2) in px of the image.

    Args:
      image: uint8 RGB [height, width, 3].
      about: content of detector.json.
      program_of: file name -> callable.
    """
    height, width = image.shape[:2]
    resize = about["resize"]
    target = resized_size(height, width, resize["short_side"], resize["max_long_side"])
    file, (h, w) = choose_file(target, about["files"])
    batch = about["batch_size"] if isinstance(about["batch_size"], int) else 1
    images = np.zeros((batch, file["height"], file["width"], 3), np.uint8)
    shrinks = 2 * h < height and 2 * w < width and "INTER_AREA" in resize["interpolation"]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    images[0, :h, :w] = cv2.resize(image, (w, h), interpolation=how)
    sizes = np.tile(np.array([[h, w]], np.int32), (batch, 1))
    scales = np.tile(np.array([[h / height, w / width]], np.float32), (batch, 1))
    outputs = program_of(file["path"])(images, sizes, scales)
    boxes, scores, labels, is_valid = (np.asarray(output)[0].tolist() for output in outputs)
    return [
        (about["class_names"][label], score, box)
        for box, score, label, valid in zip(boxes, scores, labels, is_valid, strict=True)
        if valid
    ]


class VersionError(Exception):
    """This jax is outside a file's window of versions."""


def load_program(path: pathlib.Path, about: dict[str, Any]) -> Callable:
    """The callable of an exported file.

    Raises:
      VersionError: this jax cannot read it; says what to do.
      ImportError: jax, flatbuffers or onnxruntime is not installed.
    """
    if about["format"] == "onnx":
        return load_onnx(path)
    import jax
    from jax import export

    try:
        return export.deserialize(bytearray(path.read_bytes())).call
    except ValueError as error:
        raise VersionError(too_old_or_new(path, about, jax.__version__, error)) from error


def load_onnx(path: pathlib.Path) -> Callable:
    """The callable of an ONNX file, on the CPU."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def too_old_or_new(
    path: pathlib.Path, about: dict[str, Any], version: str, error: Exception
) -> str:
    """What to tell about a program that jax `version` cannot read."""
    writer = about["versions"]["jax"]
    return (
        f"{path}: jax {version} cannot read this program, which jax {writer} wrote on "
        f"{about['exported_on']} ({str(error).splitlines()[0]}). jax keeps exported files readable "
        "for about six months of versions. Export the run again (atss export WORKDIR), or "
        f"install jax=={writer}."
    )


def main() -> int:
    """Reads the command line, prints; returns the exit code.

    It is 1 where an image was left out, and 2 where the arguments are wrong or this machine cannot
    read the program.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path, help="that `atss export` wrote")
    parser.add_argument("images", nargs="+", help="image files")
    arguments = parser.parse_args()
    folder = arguments.folder
    for path in arguments.images:
        if os.path.isdir(path):
            parser.error(
                f"{path} is a folder. Give image files, as in {os.path.join(path, '*.jpg')}"
            )
    try:
        about = json.loads((folder / "detector.json").read_text())
    except OSError as error:
        parser.error(f"{folder / 'detector.json'}: {error.strerror}. Give an export folder.")
    if about["format"] not in ("stablehlo", "onnx"):
        parser.error(f"{folder} holds {about['format']}: this program runs stablehlo and onnx.")

    @functools.cache
    def program_of(name: str) -> Callable:
        return load_program(folder / name, about)

    num_failed = 0
    for path in arguments.images:
        try:
            found = detect(read_image(path), about, program_of)
        except VersionError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except ImportError as error:
            packages = PACKAGES[about["format"]]
            reason = str(error).splitlines()[0].rstrip(".")
            print(f"error: {reason}. Install: pip install {packages}", file=sys.stderr)
            return 2
        except ValueError as error:
            num_failed += 1
            print(f"{path}: {error}", file=sys.stderr)
            continue
        for name, score, box in found:
            values = {"score": round(score, 6), "box": [round(value, 3) for value in box]}
            print(json.dumps({"file": path, "class": name, **values}))
    return 1 if num_failed else 0


def run() -> int:
    """`main`, for a reader of the lines that may stop early, such as `head`."""
    try:
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 0


if __name__ == "__main__":
    sys.exit(run())
