"""What a detector found on one image: arrays, and what people do with them."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from atss_jax.drawing import visualize
from atss_jax.structures import Detections


class Found(NamedTuple):
    """One detection."""

    name: str
    """Of the class."""
    score: float
    """In [0, 1]."""
    box: tuple[float, float, float, float]
    """(x1, y1, x2, y2) px of the upright image."""


class Result:
    """The detections of one image, best first; `len()` counts them, iteration gives `Found`.

    Args:
      detections: [n], without empty slots.
      class_names: of each class index.
      category_ids: of each class index in the training data.
      image_size: (h, w) px of the upright image.
      read: gives the upright image, uint8 RGB [h, w, 3]; called when something is drawn.
      source: path or address of the image, "" if it came as pixels or bytes.

    Attributes:
      boxes: float [n, 4], xyxy px of the upright image.
      scores: float [n] in [0, 1], descending.
      labels: int [n], class indices.
      detections: the same as `Detections`.
      names: class index -> name, of all classes.
      image_size: (h, w) px of the upright image.
      source: path or address of the image, "" if it came as pixels or bytes.
    """

    def __init__(
        self,
        detections: Detections,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        *,
        image_size: tuple[int, int],
        read: Callable[[], np.ndarray],
        source: str = "",
    ):
        self.detections = detections
        self.boxes, self.scores, self.labels, _ = map(np.asarray, detections)
        self.names = dict(enumerate(class_names))
        self.image_size, self.source = image_size, source
        self._category_ids, self._read = tuple(category_ids), read

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Found]:
        for box, score, label in zip(*self._lists(), strict=True):
            yield Found(self.names[label], score, (box[0], box[1], box[2], box[3]))

    def __repr__(self) -> str:
        """Counts by class, as in "Result(photo.jpg: 2 cat, 1 dog)"."""
        labels, counts = np.unique(self.labels, return_counts=True)
        about = ", ".join(
            f"{count} {self.names[label]}"
            for label, count in zip(labels.tolist(), counts.tolist(), strict=True)
        )
        height, width = self.image_size
        return f"Result({self.source or f'{width} x {height} px'}: {about or 'nothing'})"

    def draw(self, *, min_short_side: int = visualize.MIN_SHORT_SIDE) -> np.ndarray:
        """The image with boxes, class names and scores, uint8 RGB [h, w, 3].

        Args:
          min_short_side: a smaller image is enlarged to it, px, so that the text is legible.
        """
        return visualize.draw_boxes(
            self._read(),
            self.boxes,
            self.labels,
            self.scores,
            list(self.names.values()),
            min_short_side=min_short_side,
        )

    def save(self, path: str | os.PathLike, *, min_short_side: int = visualize.MIN_SHORT_SIDE):
        """Writes the drawing as PNG or JPEG, by the suffix.

        Args:
          path: of the file; its folder must exist.
          min_short_side: see `draw`.

        Raises:
          ValueError: another suffix, or the file cannot be written.
        """
        visualize.save_image(path, self.draw(min_short_side=min_short_side))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, ready for `json.dumps`.

        Returns:
          "source", "width", "height", and "detections": a list of "name", "label", "category_id",
          "score" and "box" (x1, y1, x2, y2 px).
        """
        height, width = self.image_size
        found = [
            {
                "name": self.names[label],
                "label": label,
                "category_id": self._category_ids[label],
                "score": score,
                "box": box,
            }
            for box, score, label in zip(*self._lists(), strict=True)
        ]
        return {"source": self.source, "width": width, "height": height, "detections": found}

    def to_supervision(self) -> Any:
        """`supervision.Detections` with the class names as `data["class_name"]`.

        Raises:
          ImportError: the package supervision is not installed.
        """
        try:
            import supervision  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "to_supervision() needs the package supervision. Install it with "
                "pip install supervision."
            ) from error
        names = [self.names[label] for label in self.labels.tolist()]
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32).reshape(-1, 4),
            confidence=self.scores.astype(np.float32),
            class_id=self.labels.astype(int),
            data={"class_name": np.array(names, dtype=str)},
        )

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return visualize.encode_image(".png", self.draw())

    def _lists(self) -> tuple[list, list, list]:
        return self.boxes.tolist(), self.scores.tolist(), self.labels.tolist()
