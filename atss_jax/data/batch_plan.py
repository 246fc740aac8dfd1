"""Which images make which batch, and at which size: a pure function of the step.

Each bucket (padded shape) has an endless stream of seeded permutations of its records; a fixed
interleaving of the buckets gives each its share. Nothing is remembered, so every host computes the
same plan, resuming needs the step number alone, and neither hosts nor workers nor devices change
the stream.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from atss_jax.data.augment_list import Augmentations
from atss_jax.data.images import resized_size
from atss_jax.errors import UserError

_PERMUTATION_STREAM, _SHORT_SIDE_STREAM = 0, 1
_SHORT_SIDE_STRIDE = 8  # words per image, of which one is used: other strides are other streams


class PlannedBatch(NamedTuple):
    """A global batch before any pixel is read, or the rows of it that one process reads."""

    bucket: tuple[int, int]
    """(H, W) of the padded images, px."""
    record_index: Int[np.ndarray, " B"]
    """-1 for rows that stay empty."""
    target: Int[np.ndarray, "B 2"]
    """(h, w) of each image after resizing, px, before any augmentation."""
    step: int = 0
    first_row: int = 0
    """Place of the first row in the global batch; with `step` the key of the augmentations."""

    def rows(self, part: slice) -> "PlannedBatch":
        """Some of the rows."""
        return self._replace(
            record_index=self.record_index[part],
            target=self.target[part],
            first_row=self.first_row + part.indices(len(self.record_index))[0],
        )


class BatchPlan:
    """The endless plan of a training run."""

    def __init__(
        self,
        sizes: Int[np.ndarray, "N 2"],
        *,
        buckets: Sequence[tuple[int, int]],
        global_batch: int,
        seed: int,
        short_sides: Sequence[int],
        max_long_side: int,
        augmentations: Sequence[str] = ("flip(0.5)",),
        keep: Bool[np.ndarray, " N"] | None = None,
        describe: Callable[[int], str] = "record {}".format,
    ):
        """Sorts the records into buckets.

        Args:
          sizes: (h, w) of every record, px.
          buckets: padded shapes (H, W), multiples of 32.
          global_batch: images per step, over all hosts.
          seed: of everything that is drawn.
          short_sides: drawn from evenly, for each image; a range of the paper is
            `tuple(range(640, 801))`.
          max_long_side: limit of the longer side, px.
          augmentations: as in `data.augmentations`.
          keep: records to train on; None for all.
          describe: a record's name in error messages, by its index.

        Raises:
          ValueError: no record, an image that fits no bucket, or values out of range.
        """
        _check_numbers(global_batch, short_sides, max_long_side)
        _check_buckets(buckets)
        self.global_batch, self._seed = global_batch, seed
        self._sizes, self._max_long_side = sizes, max_long_side
        self._short_sides = tuple(int(side) for side in short_sides)
        buckets = [(int(height), int(width)) for height, width in buckets]
        indices = np.arange(len(sizes)) if keep is None else np.flatnonzero(keep)
        if not len(indices):
            raise UserError(
                f"no record to train on, of {len(sizes)}. Check the annotations, or set "
                "data.filter_empty=False to train on images without objects."
            )
        largest = max(short_sides)
        resized = [resized_size((int(h), int(w)), largest, max_long_side) for h, w in sizes]
        records = _sort_into_buckets(indices, resized, buckets, global_batch, describe)
        self.used_buckets = tuple(bucket for bucket, members in records.items() if len(members))
        """(H, W) of the buckets that hold images, in the order of the configuration."""
        self._records = [records[bucket] for bucket in self.used_buckets]
        self.augmentations = Augmentations(
            augmentations, seed=seed, pool=np.sort(np.concatenate(self._records))
        )
        """What is done to the rows; `batch_rows.make_batch` applies it."""
        self._order, self._ordinal = _interleave([len(r) for r in self._records])
        self._permutation = lru_cache(maxsize=4 * len(self._records))(self._make_permutation)
        self._extra_pixels = self._measure_padding(resized)

    def __getstate__(self):
        """Everything but the cache, which does not pickle."""
        return {k: v for k, v in self.__dict__.items() if k != "_permutation"}

    def __setstate__(self, state):
        """With an empty cache."""
        self.__dict__.update(state)
        self._permutation = lru_cache(maxsize=4 * len(self._records))(self._make_permutation)

    @property
    def num_records(self) -> int:
        """Images that are trained on."""
        return len(self._order)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which each image is seen once, on average."""
        return self.num_records / self.global_batch

    @property
    def padding(self) -> float:
        """Padded pixels over content pixels, minus 1, at the largest short side."""
        return self._extra_pixels

    def bucket_records(self, bucket: tuple[int, int]) -> Int[np.ndarray, " n"]:
        """The records that train in a bucket, ascending."""
        return self._records[self.used_buckets.index(bucket)]

    def fingerprint(self) -> str:
        """Equal for equal plans; hosts compare it before they train together."""
        digest = hashlib.sha256()
        for records in self._records:
            digest.update(records.astype("<i8").tobytes())
        about = (self.used_buckets, self.global_batch, self._seed, self._short_sides)
        more = (tuple(map(tuple, self.augmentations.calls)), self._extra_pixels)
        digest.update(repr(about + more).encode())
        return digest.hexdigest()

    def step(self, step: int) -> PlannedBatch:
        """The batch of a step (0 is the first), in constant time."""
        if step < 0:
            raise UserError(f"step={step}: steps count from 0.")
        cycle, place = divmod(step, len(self._order))
        which = int(self._order[place])
        records = self._records[which]
        first = (cycle * len(records) + int(self._ordinal[place])) * self.global_batch
        visits = first + np.arange(self.global_batch)
        passes, offsets = visits // len(records), visits % len(records)
        chosen = np.concatenate(
            [
                self._permutation(which, int(p))[offsets[passes == p]]
                for p in range(passes[0], passes[-1] + 1)
            ]
        )
        return self._draw(step, self.used_buckets[which], records[chosen].astype(np.int32))

    def _draw(self, step: int, bucket: tuple[int, int], records: np.ndarray) -> PlannedBatch:
        """Adds the sizes."""
        count = len(records) * _SHORT_SIDE_STRIDE
        raw = _random_words(self._seed, _SHORT_SIDE_STREAM, (step, 0), count)[::_SHORT_SIDE_STRIDE]
        uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53  # [0, 1)
        target = [
            resized_size(
                (int(height), int(width)),
                self._short_sides[int(draw * len(self._short_sides))],
                self._max_long_side,
            )
            for (height, width), draw in zip(self._sizes[records], uniform, strict=True)
        ]
        return PlannedBatch(bucket, records, np.array(target, np.int32), step)

    def _make_permutation(self, which: int, number: int) -> Int[np.ndarray, " n"]:
        """Order of a bucket's records in its pass `number`."""
        count = len(self._records[which])
        words = _random_words(self._seed, _PERMUTATION_STREAM, (number, which), count)
        return np.argsort(words, kind="stable")

    def _measure_padding(self, resized: list[tuple[int, int]]) -> float:
        content = padded = 0
        for bucket, records in zip(self.used_buckets, self._records, strict=True):
            content += sum(resized[r][0] * resized[r][1] for r in records)
            padded += bucket[0] * bucket[1] * len(records)
        return padded / content - 1


def _random_words(seed: int, stream: int, counters: tuple[int, int], count: int) -> np.ndarray:
    """uint64 words of Philox 4x64 keyed by seed and stream, at a place given by counters.

    The generator's raw output is fixed for all versions of NumPy, which its distributions are not.
    """
    key = np.array([seed % 2**64, stream], np.uint64)
    counter = np.array([0, 0, *counters], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def choose_bucket(
    size: tuple[int, int], buckets: Sequence[tuple[int, int]]
) -> tuple[int, int] | None:
    """The bucket of fewest pixels that holds an image of (h, w) px; None if none does."""
    fitting = [b for b in buckets if b[0] >= size[0] and b[1] >= size[1]]
    return min(fitting, key=lambda b: b[0] * b[1]) if fitting else None


def fit_error(about: str, size: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> ValueError:
    """The error for an image that fits no bucket."""
    return ValueError(
        f"{about}: {size[0]}x{size[1]} px (h x w) after resizing fits none of data.buckets="
        f"{tuple(buckets)}. Add a larger bucket for its orientation, or lower data.short_side, "
        "data.train_short_sides or data.max_long_side."
    )


def _sort_into_buckets(
    indices: np.ndarray,
    resized: list[tuple[int, int]],
    buckets: list[tuple[int, int]],
    global_batch: int,
    describe: Callable[[int], str],
) -> dict[tuple[int, int], np.ndarray]:
    """Records by bucket; one too small to fill a batch passes its images on to larger ones."""
    members: dict[tuple[int, int], list[int]] = {bucket: [] for bucket in buckets}
    for index in indices.tolist():
        bucket = choose_bucket(resized[index], buckets)
        if bucket is None:
            raise fit_error(describe(index), resized[index], buckets)
        members[bucket].append(index)
    by_area = sorted(buckets, key=lambda b: b[0] * b[1])
    for place, bucket in enumerate(by_area):
        if not 0 < len(members[bucket]) < global_batch:
            continue
        homes = {i: choose_bucket(resized[i], by_area[place + 1 :]) for i in members[bucket]}
        for index, home in homes.items():
            if home is not None:
                members[bucket].remove(index)
                members[home].append(index)
    return {bucket: np.array(sorted(members[bucket]), np.int64) for bucket in buckets}


def _interleave(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """A cycle of sum(counts) steps in which bucket b has counts[b] evenly spread steps.

    Returns:
      The bucket of each step of the cycle, and how many steps that bucket had before it.
    """
    bucket = np.repeat(np.arange(len(counts), dtype=np.int16), counts)
    ordinal = np.concatenate([np.arange(n, dtype=np.int64) for n in counts])
    due = (ordinal + 0.5) / np.array(counts)[bucket]
    order = np.argsort(due, kind="stable")
    return bucket[order], ordinal[order]


def _check_buckets(buckets: Sequence[tuple[int, int]]) -> None:
    if not buckets or len(set(buckets)) != len(buckets):
        raise UserError(f"data.buckets={tuple(buckets)}: give at least one, and each once.")
    for bucket in buckets:
        if len(bucket) != 2 or any(side <= 0 or side % 32 for side in bucket):
            raise UserError(
                f"data.buckets: {tuple(bucket)} is not (H, W) in positive multiples of 32."
            )


def _check_numbers(global_batch: int, short_sides: Sequence[int], max_long_side: int) -> None:
    if global_batch < 1:
        raise UserError(f"data.global_batch={global_batch}: give at least 1.")
    if not short_sides or min(short_sides) < 1 or max(short_sides) > max_long_side:
        raise UserError(
            f"short sides {tuple(short_sides)} with data.max_long_side={max_long_side}: give at "
            "least one, each between 1 and the long side."
        )
