"""The formats of data sets: a new one is a row here, and a module with what `Format` lists."""

import importlib
from typing import Protocol, cast, runtime_checkable

from atss_jax.data.content import Content
from atss_jax.data.splits import Layout, SplitSource

FORMATS = {
    "coco": (
        "COCO (one JSON file each for train and val, in the folder, in annotations/, or in train/ "
        "and valid/ as Roboflow writes it), one COCO JSON file (split by data.val_fraction)"
    ),
    "yolo": "YOLO (data.yaml with names, train and val)",
    "voc": "Pascal VOC (Annotations/*.xml and JPEGImages)",
}
"""`SplitSource.kind`, which is also the name of the module in this folder -> what it finds."""


@runtime_checkable
class Format(Protocol):
    """What the module of a format has."""

    def find(self, root: str, val_fraction: float) -> Layout | None:
        """The splits in a folder or file; None where there is no set of the format.

        Raises:
          UserError: there is one, but for something that the message names.
        """
        ...

    def read(self, source: SplitSource) -> Content:
        """A split that `find` found -> its lists, unchecked."""
        ...


def load_format(kind: str) -> Format:
    """The module of a key of `FORMATS`."""
    return cast(Format, importlib.import_module(f"atss_jax.data.{kind}"))
