"""Experiments of `fault_matrix.py` on what the processes of a job tell each other.

Threads and a store in memory stand for processes and JAX's coordinator.
"""

import socket
import threading
import time
from unittest import mock

import jax

from atss_jax.runtime import parallel, peers
from fault_damage import refused


class Store:
    """A stand-in for the key-value store of a job."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        """As JAX's."""
        del allow_overwrite
        self.values[key] = value

    def key_value_try_get(self, key: str) -> str:
        """As JAX's."""
        if key not in self.values:
            raise RuntimeError("NOT_FOUND")
        return self.values[key]

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        """As JAX's."""
        end = time.monotonic() + milliseconds / 1000
        while key not in self.values:
            if time.monotonic() > end:
                raise RuntimeError("DEADLINE_EXCEEDED")
            time.sleep(0.01)
        return self.values[key]


def processes(texts: list[str], count: int, kind: type[Exception] | None) -> None:
    """All processes of a comparison end alike."""
    store = Store()
    errors: list[Exception | None] = [None] * len(texts)

    def one(index: int) -> None:
        try:
            peers.compare(store, index, count, {"the data": texts[index]}, timeout=0.5)
        except Exception as error:  # noqa: BLE001 - looked at below
            errors[index] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(type(error) is (kind or type(None)) for error in errors), errors


def lost_peer(values: dict[str, str], code: int) -> None:
    """What ends this process when another failed or vanished."""
    store, ended = Store(), []
    store.values = {peers.PREFIX + key: value for key, value in values.items()}
    with (
        mock.patch.object(peers, "BEAT_SECONDS", 0.02),
        mock.patch.object(peers, "SILENT_SECONDS", 0.1),
        mock.patch.object(jax, "process_count", lambda: 2),
    ):
        peers._watch(store, lambda code, _: ended.append(code))
    assert ended == [code]


def port_in_use() -> None:
    """A port in use is said, where JAX would crash."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        refused(lambda: parallel._check_port(f"localhost:{taken.getsockname()[1]}"))
