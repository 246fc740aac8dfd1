"""Experiments with damaged checkpoints, a failing storage and a clock that jumps.

Each is a function that raises AssertionError, or one of its two sharper kinds below, if the
behaviour is wrong.
"""

import contextlib
import errno
import logging
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from atss_jax.errors import UserError
from atss_jax.run import workdir_lock
from atss_jax.runtime import checkpoint_record
from atss_jax.runtime.checkpoint import Checkpointer, restore_part


class LostError(AssertionError):
    """Work that was saved cannot be had again."""


class SilentlyWrongError(AssertionError):
    """Other numbers than the saved ones, without a word."""


SIZE = 20_000


def make_state(step: int) -> dict[str, Any]:
    """A state whose numbers tell its step."""
    return {
        "params": {"w": jnp.arange(SIZE, dtype=jnp.float32) + step, "b": jnp.full(300, 1.0 * step)},
        "ema_params": None,
        "step": jnp.int32(step),
    }


def abstract(tree: Any) -> Any:
    """Shapes of a tree on the first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def save(folder: Path, *steps: int) -> None:
    """Checkpoints of these steps."""
    keeper = Checkpointer(epath.Path(folder))
    for step in steps:
        run = {"bad_steps": step, "evaluated": {}, "seconds": 1.0}
        keeper.save(step, make_state(step), wait=True, run=run)
    keeper.close()


def resume(folder: Path) -> int:
    """The step that training goes on from; its arrays and facts must be those of that step."""
    keeper = Checkpointer(epath.Path(folder))
    try:
        found = keeper.restore_latest(abstract(make_state(0)))
    finally:
        keeper.close()
    if found is None:
        raise LostError("nothing was restored")
    check_arrays(found.state, found.step)
    if found.run is not None and found.run["bad_steps"] != found.step:
        raise SilentlyWrongError(f"facts of another step: {found.run}")
    return found.step


def read_only(folder: Path) -> int:
    """The step that evaluation, prediction and export use (one function reads for all three)."""
    part = {"params": make_state(0)["params"]}
    step, found = restore_part(epath.Path(folder), abstract(part))
    check_arrays({**make_state(step), **found}, step)
    return step


def check_arrays(found: Any, step: int) -> None:
    """Raises unless all arrays are those that were saved."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(make_state(step)), strict=True):
        if np.asarray(a).tobytes() != np.asarray(b).tobytes():
            raise SilentlyWrongError(f"restored as step {step}, but an array differs")


def files_of(folder: Path, step: int) -> list[Path]:
    """All files of a checkpoint and its record."""
    found = sorted(p for p in (folder / str(step)).rglob("*") if p.is_file())
    return [*found, folder / f"{step}.json"]


def flip(content: bytes, rng: np.random.Generator) -> bytes:
    """One bit flipped."""
    changed = bytearray(content)
    changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def zero_block(content: bytes, rng: np.random.Generator) -> bytes:
    """Up to 64 bytes zeroed."""
    start = int(rng.integers(len(content)))
    return content[:start] + bytes(len(content[start : start + 64])) + content[start + 64 :]


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    """The end missing."""
    return content[: int(rng.integers(len(content)))]


def extend(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes behind the end."""
    return content + rng.bytes(7)


DAMAGE = {"bit flipped": flip, "block zeroed": zero_block, "cut": cut, "extended": extend}


@contextlib.contextmanager
def folder_of(*steps: int) -> Generator[Path, None, None]:
    """A folder with checkpoints; a copy of one that is saved once."""
    with tempfile.TemporaryDirectory() as name:
        if steps:
            key = "-".join(map(str, steps))
            saved = Path(_saved().name) / key
            if not saved.exists():
                save(saved, *steps)
            shutil.copytree(saved, Path(name) / "c")
        yield Path(name) / "c"


_KEPT: list[tempfile.TemporaryDirectory] = []


def _saved() -> tempfile.TemporaryDirectory:
    if not _KEPT:
        _KEPT.append(tempfile.TemporaryDirectory())
    return _KEPT[0]


def damaged(name: str, kind: str) -> None:
    """A damaged file of the newest checkpoint: all readers fall back, or nothing differs."""
    with folder_of(3, 6) as folder:
        path = folder / name
        content, number = path.read_bytes(), 0
        rng = np.random.default_rng(sum(name.encode()))
        changed = content
        while changed == content:
            changed = DAMAGE[kind](content, rng)
            number += 1
            assert number < 100
        path.write_bytes(changed)
        assert read_only(folder) == 3, "reading did not fall back"
        assert resume(folder) == 3, "training did not fall back"
        if not (folder / "6.damaged").exists():
            raise LostError("the damaged checkpoint is not kept")
        save(folder, 6)
        assert resume(folder) == 6


def missing(name: str) -> None:
    """A deleted file falls back; a deleted record means an unchecked, but right, checkpoint."""
    with folder_of(3, 6) as folder:
        (folder / name).unlink()
        expected = 6 if name == "6.json" else 3
        assert read_only(folder) == expected and resume(folder) == expected


def all_damaged() -> None:
    """Nothing that can be read is an error, never a new start."""
    with folder_of(3, 6) as folder:
        for step in (3, 6):
            shutil.rmtree(folder / str(step) / "default")
        for read in (resume, read_only):
            with contextlib.suppress(ValueError):
                read(folder)
                raise LostError("started anew over damaged checkpoints")


def failing_read(failures: int) -> None:
    """A read that fails is no damage: tried again, then an error; nothing is renamed."""
    original, calls = checkpoint_record.checksum, []

    def failing(path: Any) -> Any:
        calls.append(path)
        if len(calls) <= failures:
            raise OSError(errno.EIO, "input/output error")
        return original(path)

    with (
        folder_of(3, 6) as folder,
        mock.patch.object(checkpoint_record, "checksum", failing),
        mock.patch.object(checkpoint_record, "PAUSE_SECONDS", 0.0),
    ):
        if failures < checkpoint_record.READ_ATTEMPTS:
            assert resume(folder) == 6
        else:
            with contextlib.suppress(OSError):
                resume(folder)
                raise SilentlyWrongError("a storage that fails was not reported")
        if not (folder / "6").exists():
            raise LostError("a failed read was taken for damage")


def disk_full() -> None:
    """A save that fails leaves the one before it whole."""
    with folder_of(3) as folder:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        try:
            save(folder, 6)
            raise SilentlyWrongError("a save without space was not reported")
        except SilentlyWrongError:
            raise
        except Exception:
            logging.debug("as it should", exc_info=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert resume(folder) == 3
        save(folder, 6)
        assert resume(folder) == 6


def clock(seconds: float) -> None:
    """A clock that jumps changes nothing."""
    original = time.time
    with folder_of(3) as folder:
        keeper = Checkpointer(epath.Path(folder))
        with mock.patch("time.time", lambda: original() + seconds):
            run = {"bad_steps": 6, "evaluated": {}, "seconds": 1.0}
            keeper.save(6, make_state(6), wait=True, run=run)
            with workdir_lock.hold(epath.Path(folder)):
                workdir_lock.check_still_held(epath.Path(folder))
        keeper.close()
        assert resume(folder) == 6


def refused(action: Callable[[], Any], kind: type[Exception] = UserError) -> None:
    """Raises unless the action does, with this kind."""
    try:
        action()
    except kind:
        return
    raise SilentlyWrongError("accepted")
