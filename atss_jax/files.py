"""Files written whole: a reader sees the old file or the new one, never half of one."""

import contextlib
import os
import uuid

from etils import epath


def write_whole(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes a file under a temporary name of its own beside it, and then renames it.

    Of several writers, the last one to rename wins.
    On a local disk it is there before the rename, so that no empty file is left when power fails.

    Args:
      path: of the file; its folder exists.
      data: content; text is written as UTF-8.

    Raises:
      OSError: it cannot be written; the old file stays, and nothing else.
    """
    path = epath.Path(path)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            if "://" not in os.fspath(path):
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
