"""What the processes of a job tell each other beside collectives, by JAX's coordination service.

Before the first collective they compare what must be equal. From then on each shows that it lives,
and says so when it fails, because a process in a collective with a dead one waits for ever.
"""

import contextlib
import difflib
import hashlib
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax._src import distributed

from atss_jax.errors import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")
"""Packages that must have one version on all processes."""
COMPARE_SECONDS = 600.0
"""How long the slowest process may read its data."""
BEAT_SECONDS = 3.0
"""Between two signs of life."""
SILENT_SECONDS = 30.0
"""A process without one for so long is lost."""
NOTICE_SECONDS = 3.0
"""A failing process stays so long, for the others to read why."""
END_SECONDS = 8.0
"""Process 0 waits at its end so long for the others."""
PREFIX = "atss_jax/"
_NUMBERS = itertools.count()
"""Of the comparisons of this process: all processes make the same ones, and a key is set once."""
RESTART_EXIT_CODE = 75
"""A process was lost: the same command goes on."""


def client() -> Any:
    """The connection to the job's key-value store; None with one process."""
    return distributed.global_state.client if jax.process_count() > 1 else None


def code_and_versions() -> str:
    """One line for each package version, and one for the source of this package."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    lines = [f"python {sys.version_info.major}.{sys.version_info.minor}"]
    lines += [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return "\n".join([*lines, f"atss_jax source {digest.hexdigest()[:16]}"])


def check_same(texts: Mapping[str, str], *, timeout: float = COMPARE_SECONDS) -> None:
    """Raises on every process unless all hold the same texts; uses no collective.

    Args:
      texts: what is compared -> its text, such as a recipe as JSON.
      timeout: seconds to wait for the slowest process.

    Raises:
      UserError: names what differs, where, and how.
      RuntimeError: a process did not come to the comparison.
    """
    if jax.process_count() > 1:
        compare(
            client(),
            jax.process_index(),
            jax.process_count(),
            texts,
            timeout=timeout,
            number=next(_NUMBERS),
        )


def compare(
    store: Any,
    index: int,
    count: int,
    texts: Mapping[str, str],
    *,
    timeout: float,
    number: int = 0,
) -> None:
    """`check_same` over a key-value store, as process `index` of `count`."""
    milliseconds = int(timeout * 1000)
    for what, text in texts.items():
        folder = f"{PREFIX}same/{what.replace(' ', '_')}/{number}/"
        store.key_value_set(f"{folder}{index}", text or " ")
        try:
            if index == 0:
                others = [
                    store.blocking_key_value_get(f"{folder}{i}", milliseconds)
                    for i in range(1, count)
                ]
                verdict = _differences(what, text or " ", others)
                store.key_value_set(f"{folder}verdict", verdict or " ")
            else:
                verdict = store.blocking_key_value_get(f"{folder}verdict", milliseconds).strip()
        except Exception as error:
            raise RuntimeError(
                f"the processes could not compare {what} within {timeout:.0f} s: one of them does "
                f"not answer ({error})."
            ) from error
        if verdict:
            raise UserError(verdict)


def _differences(what: str, first: str, others: list[str]) -> str:
    """A sentence about those that differ from process 0; "" when none does."""
    different = [i for i, text in enumerate(others, 1) if text != first]
    if not different:
        return ""
    other = others[different[0] - 1]
    lines = [
        line
        for line in difflib.unified_diff(first.splitlines(), other.splitlines(), n=0, lineterm="")
        if not line.startswith(("---", "+++", "@@"))
    ]
    return (
        f"{what} differs between process 0 (-) and processes {different} (+). Start all of them "
        "with the same code, data and configuration.\n" + "\n".join(lines[:20])
    )


def announce_failure(code: int, reason: str) -> None:
    """Tells all other processes to end with this code; returns when they had time to read it."""
    store = client()
    if store is None:
        return
    try:
        text = f"{code} process {jax.process_index()}: {reason[:300]}"
        store.key_value_set(f"{PREFIX}failed", text, allow_overwrite=True)
        time.sleep(NOTICE_SECONDS)
    except Exception:  # the store went with process 0: the others notice that by themselves
        logging.debug("no notice to the other processes", exc_info=True)


def announce_stop() -> None:
    """Tells all other processes that this one was told to stop and cannot wait for them.

    Process 0 stays until they have read it: JAX aborts those that lose it.
    """
    store = client()
    if store is None:
        return
    text = f"{RESTART_EXIT_CODE} process {jax.process_index()}: it was told to stop"
    with contextlib.suppress(Exception):  # another reason stands there already
        store.key_value_set(f"{PREFIX}failed", text)
    if jax.process_index() == 0:
        time.sleep(NOTICE_SECONDS)


def end_together(code: int) -> NoReturn:
    """Ends this process of a job whose processes all end; JAX's own end may hang.

    After a signal near the end of a run, JAX's threads may wait for a process that has ended
    already (seen with 0.10.2). Process 0 stays until the others are gone: JAX aborts those that
    lose it.
    """
    store, index = client(), jax.process_index()
    with contextlib.suppress(
        Exception
    ):  # a process that is gone, or late, does not hold the others
        store.key_value_set(f"{PREFIX}done/{index}", str(code), allow_overwrite=True)
        if index == 0:
            until = time.monotonic() + END_SECONDS
            for other in range(1, jax.process_count()):
                left = max(0.0, until - time.monotonic())
                store.blocking_key_value_get(f"{PREFIX}done/{other}", int(left * 1000))
            time.sleep(1.0)  # from its note to its end
    os._exit(code)


def is_of_runtime(error: BaseException) -> bool:
    """Whether JAX's runtime failed, such as a collective with a process that is gone."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, jax.errors.JaxRuntimeError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def await_verdict(error: BaseException) -> None:
    """After an error of JAX's runtime, gives the watch time to find out whose fault it is.

    A collective fails when another process is gone. Then the watch ends this process, with the code
    that the other announced, or to be started again. Returns where all others live, and at once
    for other errors.
    """
    if is_of_runtime(error):
        time.sleep(SILENT_SECONDS + 2 * BEAT_SECONDS)


def watch() -> None:
    """From now on this process shows that it lives, and ends when another fails or is lost."""
    if jax.process_count() > 1:
        threading.Thread(target=_watch, args=(client(), _end), daemon=True).start()


def _end(code: int, reason: str) -> None:
    """Ends this process, which may hang in a collective."""
    os.write(2, f"error: {reason}\n".encode())
    if jax.process_index() == 0 and code == RESTART_EXIT_CODE:
        announce_failure(code, reason)
    end_together(code)


def _watch(store: Any, end: Callable[[int, str], None]) -> None:
    """Beats, and looks for the failure of others: process 0 at all, the others at process 0."""
    index, count = jax.process_index(), jax.process_count()
    watched = range(1, count) if index == 0 else [0]
    beats: dict[int, tuple[str, float]] = {}
    number = 0
    while True:
        number += 1
        try:
            store.key_value_set(f"{PREFIX}beat/{index}", str(number), allow_overwrite=True)
            failed = _get(store, f"{PREFIX}failed")
            code, _, reason = failed.partition(" ")
            if failed and not reason.startswith(f"process {index}:"):
                end(int(code), f"ended because of {reason}")
                return
            now = time.monotonic()
            for other in watched:
                beat = _get(store, f"{PREFIX}beat/{other}")
                if beat and beats.get(other, ("", 0.0))[0] != beat:
                    beats[other] = (beat, now)
                elif other in beats and now - beats[other][1] > SILENT_SECONDS:
                    reason = f"process {other} has not answered for {SILENT_SECONDS:.0f} s"
                    end(RESTART_EXIT_CODE, f"{reason}; the same command goes on")
                    return
        except Exception:  # process 0 is gone or going: JAX ends this process
            logging.debug("the job's store does not answer", exc_info=True)
        time.sleep(BEAT_SECONDS / 2)


def _get(store: Any, key: str) -> str:
    """A value; "" where there is none."""
    try:
        return store.key_value_try_get(key)
    except Exception as error:
        if "NOT_FOUND" in str(error):
            return ""
        raise
