"""What a folder of data holds: COCO, Roboflow, YOLO or Pascal VOC, by its files' names and places.

`find_layout` decides and says what it found; it reads no annotation but the first file names.
"""

import os

from atss_jax.data.formats import FORMATS, load_format
from atss_jax.data.splits import Layout, folders
from atss_jax.errors import MissingFileError, UserError


def find_layout(folder: str | os.PathLike, val_fraction: float = 0.2) -> Layout:
    """Finds training and validation set in a folder, or by a data.yaml or one JSON file.

    Args:
      folder: the path; where it holds nothing but another folder, that one is looked at.
      val_fraction: share of the images that validate where there is one list for all, chosen by a
        hash of the file name. So an image stays in its part when others are added, but for sets so
        small that a part would be empty.

    Raises:
      FileNotFoundError: no such folder.
      UserError: nothing known in it, or several things; the message lists what was looked for.
    """
    root = os.fspath(folder).rstrip("/") or "/"
    if not os.path.exists(root):
        raise MissingFileError(f"data.root={root!r}: no such folder (a local one is needed).")
    found, problems = _find(root, val_fraction)
    if os.path.isdir(root) and not found and not problems:
        for entry in folders(root):
            more, troubles = _find(entry.path, val_fraction)
            found, problems = found + more, problems + troubles
    if len(found) == 1:
        return found[0]
    if found:
        several = "\n".join(f"- {layout}" for layout in found)
        raise UserError(
            f"data.root={root!r} holds several sets:\n{several}\nGive the folder or the file of "
            "one, or the paths (data.train_annotations, data.train_images, data.val_annotations, "
            "data.val_images)."
        )
    if problems:
        raise UserError(f"data.root={root!r}: " + "\n".join(problems))
    if os.path.isfile(root):
        raise UserError(
            f"data.root={root!r}: neither a folder, nor a data.yaml, nor a COCO JSON file with "
            "images and annotations."
        )
    there = sorted(os.listdir(root))[:8]
    looked_for = ", ".join(FORMATS.values())
    raise UserError(
        f"data.root={root!r}: no data set found there. Looked for {looked_for}. It holds "
        f"{', '.join(there) if there else 'nothing'}."
    )


def _find(root: str, val_fraction: float) -> tuple[list[Layout], list[str]]:
    """The layouts in a folder, and what is wrong with those that are nearly there."""
    found, problems = [], []
    for kind in FORMATS:
        try:
            layout = load_format(kind).find(root, val_fraction)
        except UserError as error:
            problems.append(str(error))
        else:
            found += [layout] if layout else []
    return found, problems
