"""Files written whole: a reader sees the old file or the new one, never half of one."""

import os

from etils import epath


def write_whole(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes a file under a temporary name beside it, and then renames it.

    Args:
      path: of the file; its folder exists.
      data: content; text is written as UTF-8.
    """
    path = epath.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    temporary.replace(path)
