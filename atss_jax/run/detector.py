"""A trained detector on any images, from Python.

    from atss_jax.run.detector import Detector
    detector = Detector.load("workdirs/mine")
    found = detector("photo.jpg", threshold=0.3)    # found.boxes, found.scores, found.labels
    found.save("drawing.jpg")
    several = detector(["a.jpg", "https://...", pil_image, array])

Coordinates are px of the upright original, whatever size the network sees. One device.
"""

import collections
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import jax
import numpy as np
from etils import epath

from atss_jax.data import images
from atss_jax.data.any_image import is_url, read_image
from atss_jax.data.batch_plan import choose_bucket
from atss_jax.errors import UserError
from atss_jax.evaluation import passes
from atss_jax.evaluation.coco_results import with_min_score
from atss_jax.models import hub, pretrained, saved_detector
from atss_jax.models.detector import DetectorNetwork, init_variables
from atss_jax.run import build, classes, predict_steps, recipe_io, validation, workdir_files
from atss_jax.run.recipe import Recipe
from atss_jax.run.result import Result
from atss_jax.runtime.metric_writer import quiet_dependencies
from atss_jax.runtime.parallel import AXIS
from atss_jax.structures import Detections

CHUNKS_IN_FLIGHT = 2
"""Batches given to the device before the oldest result is fetched."""


class Detector:
    """A network with its weights, ready for images.

    Args:
      config: the recipe it was trained with.
      variables: {"params": ..., "batch_stats": ...}.
      class_names: of each class index.
      category_ids: of each class index in the training data.
      batch_size: images that the device sees at once.
      step: updates that the weights have behind them; None where nobody knows.

    Attributes:
      config: the recipe.
      class_names: of each class index.
      category_ids: of each class index in the training data.
      step: updates that the weights have behind them, or None.
    """

    def __init__(
        self,
        config: Recipe,
        variables: Any,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        *,
        batch_size: int = 1,
        step: int | None = None,
    ):
        self.config, self.step = config, step
        self.class_names, self.category_ids = tuple(class_names), tuple(category_ids)
        self.variables, self._batch_size = variables, batch_size
        self.model = _network(config, class_names)
        self._looks = predict_steps.make_looks(config, self.model)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        config: Recipe | None = None,
        class_names: Sequence[str] | None = None,
        batch_size: int = 1,
        checkpoint: str | int = "last",
    ) -> "Detector":
        """A detector from a run's workdir, or from a weights file.

        Args:
          path: a workdir, "hf://owner/name" of `publish.push`, a safetensors file that
            scripts/convert_weights.py wrote of a workdir, or other weights (.safetensors, .npz).
          config: recipe; needed for other weights. That of a workdir may be given with changes that
            leave the network alone.
          class_names: needed for other weights; the first two know them.
          batch_size: images that the device sees at once.
          checkpoint: of a workdir: "last", "best" (by AP in training) or a step.

        Raises:
          UserError: nothing there, no such checkpoint, weights without a recipe or classes, or of
            another network.
        """
        quiet_dependencies()
        path = recipe_io.expand_user(path)
        if path.startswith(hub.PREFIX):
            path = pretrained.local_path(path)
        folder = epath.Path(path)
        if not folder.is_dir():
            if config is None and class_names is None:
                saved = saved_detector.load_detector(path)
                return cls(
                    recipe_io.recipe_from_json(saved.config_json),
                    saved.variables,
                    saved.class_names,
                    saved.category_ids,
                    batch_size=batch_size,
                )
            if config is None or class_names is None:
                raise UserError(f"{path}: give both config=... and class_names=..., or neither.")
            model = _network(config, class_names)
            start = jax.jit(
                lambda: init_variables(model, config.data.buckets[0], config.run.seed)
            )()
            variables = pretrained.load_into(os.fspath(path), jax.device_get(start))
            ids = range(1, len(class_names) + 1)
            return cls(config, variables, class_names, tuple(ids), batch_size=batch_size)
        if config is None:
            config = workdir_files.read_config(folder)
        else:
            workdir_files.check_workdir(config, folder, training=False)
        names, ids = load_classes(config, folder)
        model = _network(config, names)
        mesh = jax.make_mesh(
            (1,), (AXIS,), devices=jax.local_devices()[:1],
            axis_types=(jax.sharding.AxisType.Auto,),
        )  # fmt: skip
        step, variables = validation.restore_variables(
            config, folder, model, mesh, which=str(checkpoint)
        )
        return cls(config, variables, names, ids, batch_size=batch_size, step=step)

    @property
    def names(self) -> dict[int, str]:
        """Class index, as in `Detections.labels`, -> name."""
        return dict(enumerate(self.class_names))

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]  # a list is a list of images
        self, image: list | tuple, *, threshold: float = 0.0, channel_order: str = "rgb"
    ) -> list[Result]: ...

    @overload
    def __call__(
        self, image: Any, *, threshold: float = 0.0, channel_order: str = "rgb"
    ) -> Result: ...

    def __call__(
        self, image: Any, *, threshold: float = 0.0, channel_order: str = "rgb"
    ) -> Result | list[Result]:
        """What is on an image, or on each of a list.

        Args:
          image: a path, an http(s) address, bytes or a binary file of an encoded image, a PIL
            image, a NumPy or JAX array (uint8 RGB [h, w, 3]), or a list or tuple of these.
          threshold: lowest score returned. The recipe's `eval.score_threshold` comes first.
          channel_order: "bgr" for arrays of OpenCV. Nothing in the pixels tells the orders apart,
            so a wrong one lowers scores without an error.

        Returns:
          A `Result` in px of the upright image; a list of them for a list.

        Raises:
          ValueError: an image does not decode, or is another array; a threshold outside [0, 1].
          TypeError: something else was given.
        """
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold={threshold}: give a score between 0 and 1.")
        several = isinstance(image, list | tuple)
        max_pixels = self.config.data.max_pixels
        waiting: collections.deque[tuple[Any, np.ndarray | None, tuple[int, int]]]
        waiting = collections.deque()

        def read() -> Iterator[np.ndarray]:
            for one in image if several else [image]:
                pixels = read_image(one, channel_order=channel_order, max_pixels=max_pixels)
                # pixels of a long list of paths are not kept for drawings that nobody asks for
                is_path = isinstance(one, str | os.PathLike) and not is_url(one)
                waiting.append((one, None if is_path else pixels, pixels.shape[:2]))
                yield pixels

        results = [
            self._result(found, threshold, *waiting.popleft()) for found in self.detect(read())
        ]
        return results if several else results[0]

    def _result(
        self,
        found: Detections,
        threshold: float,
        image: Any,
        pixels: np.ndarray | None,
        size: tuple[int, int],
    ) -> Result:
        """Of one image; without pixels, its path is read again for a drawing."""
        max_pixels = self.config.data.max_pixels
        return Result(
            with_min_score(found, threshold),
            self.class_names,
            self.category_ids,
            image_size=size,
            read=lambda: read_image(image, max_pixels=max_pixels) if pixels is None else pixels,
            source=os.fspath(image) if isinstance(image, str | os.PathLike) else "",
        )

    def detect(self, pictures: Iterable[np.ndarray]) -> Iterator[Detections]:
        """Detections of each image, in order, while the device works on the next ones.

        Args:
          pictures: uint8 RGB [h, w, 3], of any sizes.
        """
        stream, in_flight = iter(pictures), collections.deque()
        while chunk := list(itertools.islice(stream, self._batch_size)):
            in_flight.append((len(chunk), [self._start(chunk, look) for look in self._looks]))
            if len(in_flight) > CHUNKS_IN_FLIGHT:
                yield from self._finish(*in_flight.popleft())
        while in_flight:
            yield from self._finish(*in_flight.popleft())

    def _start(self, chunk: list[np.ndarray], look: predict_steps.Look) -> list[tuple]:
        """Gives a chunk's images to the device, one batch per bucket that occurs."""
        data, one_pass = self.config.data, look.settings
        targets = [
            images.resized_size(c.shape[:2], one_pass.short_side, one_pass.max_long_side)
            for c in chunk
        ]
        buckets = passes.pass_buckets(
            np.array(targets), data.buckets, one_pass.short_side / data.short_side
        )
        members: dict[Any, list[int]] = collections.defaultdict(list)
        for i, target in enumerate(targets):
            members[choose_bucket(target, buckets)].append(i)
        started = []
        for bucket, rows in members.items():
            pixels = np.zeros((self._batch_size, *bucket, 3), np.uint8)
            sizes = np.tile(np.array(bucket, np.int32), (self._batch_size, 1))
            scales = np.ones((self._batch_size, 2), np.float32)
            for row, i in enumerate(rows):
                placement = images.Placement.whole(targets[i])
                images.write_row(pixels[row], chunk[i], placement)
                sizes[row], scales[row] = placement.size, placement.scale(chunk[i].shape)
            found = look.predict_step(self.variables, pixels, sizes, scales)
            started.append((rows, scales, found))
        return started

    def _finish(self, count: int, started: list[list[tuple]]) -> Iterator[Detections]:
        """Fetches a chunk's detections, merges its passes and drops empty slots."""
        per_pass = []
        for look, batches in zip(self._looks, started, strict=True):
            found: Any = [None] * count
            for rows, scales, detections in batches:
                detections = jax.device_get(detections)
                for row, i in enumerate(rows):
                    found[i] = (jax.tree.map(lambda x, row=row: x[row], detections), scales[row])
            stacked = jax.tree.map(lambda *x: np.stack(x), *(f[0] for f in found))
            per_pass.append((look.settings, stacked, np.stack([f[1] for f in found])))
        limit = self.config.eval.max_detections
        merged = per_pass[0][1]
        if len(per_pass) > 1:
            merged = passes.merge_images(per_pass, max_detections=limit)
        for i in range(count):
            keep = np.asarray(merged.is_valid[i])
            yield Detections(*(np.asarray(field[i])[keep] for field in merged))


def _network(config: Recipe, class_names: Sequence[str]) -> DetectorNetwork:
    return DetectorNetwork(config.model, len(class_names), config.anchors.num_per_location)


def load_classes(config: Recipe, workdir: epath.Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(names, category ids) of the classes that a workdir's network was trained on."""
    found = classes.read_classes(workdir)
    if found is not None:
        return found
    dataset = build.load_dataset(config, "train")  # a workdir from before classes.json
    return dataset.class_names, dataset.category_ids
