"""Image files of a data set: where they are, and whether their headers agree with the annotations.

When a set is opened at most `HEAD_BYTES` + `TAIL_BYTES` of a file are read; only a file whose ends
leave it open if it is complete is read whole.
"""

import errno
import hashlib
import os
import stat
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from atss_jax.data import decoding
from atss_jax.data.file_names import FolderListing, leaves_folder
from atss_jax.data.health import Finding, Health

HEAD_BYTES, TAIL_BYTES = 60 * 1024, 4 * 1024
_THREADS = 8
_SLOW_SECONDS = 1e-3
"""Files that take longer on average wait for a disk, a network or a decoder, and are read by
threads. Those in memory are not: eight threads that wait for Python's lock take twice the CPU time
of one."""
_FILES_PER_TASK = 64
"""Handed to a thread at once: one by one, handing over costs half as much as the reading."""


class FolderSource:
    """Image files below a folder, local or anything that `etils.epath` reads.

    Args:
      folder: path of the folder.
      names: of the files, relative to it; absolute ones are taken as they are.
    """

    def __init__(self, folder: str, names: Sequence[str]):
        self.folder, self._names = folder.rstrip("/"), list(names)
        self.is_local = "://" not in folder

    def path(self, index: int) -> str:
        """Where the file is."""
        name = self._names[index]
        return name if os.path.isabs(name) else f"{self.folder}/{name}"

    def open(self, index: int) -> Any:
        """The file, open for reading.

        Raises:
          OSError: it is not there, or is not a regular file (a pipe would block).
        """
        path = self.path(index)
        if not self.is_local:
            return epath.Path(path).open("rb")
        # a pipe opened so does not block
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        mode = os.fstat(number).st_mode
        if stat.S_ISREG(mode):
            return os.fdopen(number, "rb", 4096)
        os.close(number)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", path)
        raise OSError(errno.EINVAL, "not a regular file", path)

    def read(self, index: int) -> bytes:
        """The file's bytes."""
        with self.open(index) as file:
            return file.read()

    def file_name(self, index: int) -> str:
        """Relative to the folder."""
        return self._names[index]


class ListedImage(NamedTuple):
    """An image as an annotation file lists it."""

    id: int | str
    file_name: str
    size: tuple[int, int] | None
    """(h, w) as the annotation file says; None where it does not."""


class FilePolicy(NamedTuple):
    """What is asked of the files."""

    exif: str
    """"ignore", "apply" or "error"."""
    decode: bool
    """Whether every file is decoded at once."""
    max_pixels: int = decoding.MAX_PIXELS
    allow_outside: bool = False
    """Whether names may leave the folder."""


class CheckedFile(NamedTuple):
    """A good file."""

    size: tuple[int, int]
    """(h, w) px as the network sees it."""
    orientation: int
    """EXIF orientation to undo, after the policy."""
    bits: int
    """Bits per sample of the file."""
    stored_orientation: int
    """EXIF orientation of the file."""
    digest: int
    """64 bits of what was read of the file's beginning and end, and of its length."""


class CheckedFiles(NamedTuple):
    """The good files of a set."""

    images: list[ListedImage]
    """With the names of the files that are there."""
    sizes: np.ndarray
    """int32 [N, 2], (h, w) px as the network sees them."""
    orientations: np.ndarray
    """int32 [N]."""
    digests: np.ndarray
    """uint64 [N]."""


def check_files(
    listed: list[ListedImage], folder: str, policy: FilePolicy, health: Health
) -> CheckedFiles:
    """The images whose file is there, readable and of the size that the annotations say.

    A name that is not there is read as another where exactly one file can be meant and no other
    image has it; that counts as odd.
    """
    images = list(listed)
    results = _check(images, folder, policy, range(len(images)))
    lost = [n for n, r in enumerate(results) if isinstance(r, Finding) and r.kind in _BY_NAME]
    if lost and "://" not in folder:
        listing = FolderListing(folder)
        found = {n: listing.find(images[n].file_name) for n in lost}
        taken = Counter(os.path.normpath(image.file_name) for image in images)
        taken.update(name for name in found.values() if name is not None)
        again = [n for n in lost if taken[found[n] or ""] == 1]
        for n in again:
            message = f"image {images[n].id}: {images[n].file_name!r} is read as {found[n]!r}"
            images[n] = images[n]._replace(file_name=str(found[n]))
            health.add_odd(Finding("image_name", message, images[n].id))
        for n, result in zip(again, _check(images, folder, policy, again), strict=True):
            results[n] = result
        for n in set(lost) - set(again):
            finding = results[n]
            assert isinstance(finding, Finding)
            hint = listing.hint(images[n].file_name)
            results[n] = finding._replace(message=finding.message + hint)
    kept, good = [], []
    for image, result in zip(images, results, strict=True):
        if isinstance(result, Finding):
            health.add_bad(result, is_image=True)
            health.dropped_files.append(image.file_name)
            continue
        kept.append(image)
        good.append(result)
        if result.bits > 8:
            message = f"image {image.id} ({image.file_name}): {result.bits} bits per sample, scaled"
            health.add_odd(Finding("image_depth", message, image.id))
        if result.orientation != result.stored_orientation:
            message = (
                f"image {image.id} ({image.file_name}): EXIF orientation "
                f"{result.stored_orientation} is not applied (data.exif={policy.exif!r})"
            )
            health.add_odd(Finding("image_turned", message, image.id))
    return CheckedFiles(
        kept,
        np.array([file.size for file in good], np.int32).reshape(-1, 2),
        np.array([file.orientation for file in good], np.int32),
        np.array([file.digest for file in good], np.uint64),
    )


_BY_NAME = ("image_missing", "image_outside")
"""Kinds of findings that another reading of the name may resolve."""


def _check(
    images: list[ListedImage], folder: str, policy: FilePolicy, which: Sequence[int]
) -> list[CheckedFile | Finding]:
    source = FolderSource(folder, [image.file_name for image in images])

    def check_some(numbers: Sequence[int]) -> list[CheckedFile | Finding]:
        return [_check_file(images[n], source, n, policy) for n in numbers]

    results: list[CheckedFile | Finding] = []
    parts = [which[n : n + _FILES_PER_TASK] for n in range(0, len(which), _FILES_PER_TASK)]
    for place, part in enumerate(parts, 1):
        started = time.monotonic()
        results += check_some(part)
        if time.monotonic() - started > len(part) * _SLOW_SECONDS:
            with ThreadPoolExecutor(max_workers=_THREADS) as pool:
                results += chain.from_iterable(pool.map(check_some, parts[place:]))
            break
    return results


def _check_file(
    image: ListedImage, source: FolderSource, index: int, policy: FilePolicy
) -> CheckedFile | Finding:
    """One good file, or what is wrong with it."""
    about = f"image {image.id} ({source.path(index)})"
    if not policy.allow_outside and leaves_folder(image.file_name):
        message = (
            f"{about}: the name {image.file_name!r} leaves the image folder. Set "
            "data.allow_outside=True if that is meant"
        )
        return Finding("image_outside", message, image.id)
    try:
        with source.open(index) as file:
            header, is_whole, digest = _probe(file, policy.max_pixels)
            if not is_whole:
                return Finding("image_truncated", f"{about}: the file is cut off", image.id)
            if policy.decode:
                file.seek(0)
                decoding.decode(file.read(), max_pixels=policy.max_pixels)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return Finding("image_missing", f"{about}: no such file", image.id)
    except OSError as error:
        return Finding("image_unreadable", f"{about}: {error}", image.id)
    except ValueError as error:  # NUL in a name included
        return Finding("image_undecodable", f"{about}: {error}", image.id)
    if policy.exif == "error" and header.orientation != 1:
        message = f"{about}: EXIF orientation {header.orientation}, and data.exif is 'error'"
        return Finding("image_orientation", message, image.id)
    orientation = header.orientation if policy.exif == "apply" else 1
    seen = decoding.oriented_size(header.size, orientation)
    if image.size is not None and image.size != seen:
        height, width = image.size
        message = (
            f"{about}: the JSON says {width}x{height} (w x h), the file is {seen[1]}x{seen[0]} "
            f"with data.exif={policy.exif!r}"
        )
        if header.orientation >= 5 and image.size == seen[::-1]:
            other = "ignore" if policy.exif == "apply" else "apply"
            message += (
                f"; its EXIF orientation is {header.orientation}: the boxes are meant for "
                f"data.exif={other!r}"
            )
        return Finding("image_size_mismatch", message, image.id)
    return CheckedFile(seen, orientation, header.bits, header.orientation, digest)


def _probe(file: Any, max_pixels: int) -> tuple[decoding.Header, bool, int]:
    """Header, whether the file is complete, and digest of an open file, from few of its bytes.

    Raises:
      ValueError: not an image.
    """
    head = file.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        header = decoding.read_header(head, max_pixels)
        return header, not decoding.is_cut(head), _digest(head, b"", len(head))
    length = file.seek(0, os.SEEK_END)
    try:
        header = decoding.read_header(head, max_pixels)
    except decoding.TooManyPixels:
        raise
    except ValueError:  # its header lies behind: Pillow seeks to what it needs
        file.seek(0)
        header = decoding.read_header(file, max_pixels)
    file.seek(length - TAIL_BYTES)
    tail = file.read(TAIL_BYTES)
    digest = _digest(head, tail, length)
    if not decoding.may_be_cut(head, tail, length):
        return header, True, digest
    file.seek(0)
    return header, not decoding.is_cut(file.read()), digest


def _digest(head: bytes, tail: bytes, length: int) -> int:
    digest = hashlib.blake2b(head, digest_size=8)
    digest.update(tail + length.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")
