"""What processes tell each other, over a stand-in for the job's key-value store."""

import contextlib
import json
import os
import socket
import threading
import time

import jax
import pytest
from etils import epath

from atss_jax.errors import UserError
from atss_jax.run import stop_signal, workdir_lock
from atss_jax.runtime import parallel, peers


class Store:
    """A key-value store with the calls of JAX's client."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            assert allow_overwrite or key not in self.values
            self.values[key] = value
            self.changed.notify_all()

    def key_value_try_get(self, key):
        if key not in self.values:
            raise RuntimeError("NOT_FOUND: no such key")
        return self.values[key]

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                raise RuntimeError("DEADLINE_EXCEEDED")
            return self.values[key]


def compare_all(*texts, count=None, timeout=5.0):
    """The exception of each process, None where all is well."""
    store = Store()
    errors: list[Exception | None] = [None] * len(texts)

    def one(index):
        try:
            peers.compare(
                store, index, count or len(texts), {"the data": texts[index]}, timeout=timeout
            )
        except Exception as error:
            errors[index] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_equal_processes_go_on():
    assert compare_all("a", "a", "a") == [None, None, None]


def test_a_difference_is_an_error_of_every_process():
    errors = compare_all("x\nseed 0", "x\nseed 0", "x\nseed 1")
    for error in errors:
        assert isinstance(error, UserError)
        assert "the data differs" in str(error) and "[2]" in str(error)
        assert "-seed 0" in str(error) and "+seed 1" in str(error)


def test_a_process_that_does_not_come_is_said():
    (error,) = compare_all("a", count=2, timeout=0.1)
    assert isinstance(error, RuntimeError) and "does not answer" in str(error)


def run_watch(monkeypatch, store, index, count=2):
    """What `_watch` ends this process with."""
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(peers, "SILENT_SECONDS", 0.1)
    ended = []
    peers._watch(store, lambda code, reason: ended.append((code, reason)))
    return ended[0]


def test_a_failure_ends_the_others_with_its_code(monkeypatch):
    store = Store()
    store.values[f"{peers.PREFIX}failed"] = "2 process 1: UserError: no such file"
    code, reason = run_watch(monkeypatch, store, 0)
    assert code == 2 and "process 1: UserError: no such file" in reason


@pytest.mark.parametrize("index, lost", [(0, 1), (1, 0)])
def test_a_lost_process_ends_the_others_to_be_started_again(monkeypatch, index, lost):
    store = Store()
    store.values[f"{peers.PREFIX}beat/{lost}"] = "7"
    code, reason = run_watch(monkeypatch, store, index)
    assert code == stop_signal.PREEMPTED_EXIT_CODE and f"process {lost} has not answered" in reason


def test_a_lost_process_is_noticed_here_before_jax_aborts_the_others():
    noticed = peers.SILENT_SECONDS + 2 * peers.BEAT_SECONDS
    ended = noticed + peers.NOTICE_SECONDS + peers.END_SECONDS
    assert ended + 10 < parallel.HEARTBEAT_SECONDS / 2


def test_software_is_one_text_for_one_checkout():
    text = peers.code_and_versions()
    assert text == peers.code_and_versions() and f"jax {jax.__version__}" in text


def test_a_port_in_use_is_an_error_of_the_user():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="cannot listen"):
            parallel._check_port(f"localhost:{port}")


def test_a_lock_of_another_host_counts_while_it_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock, "PATIENCE_SECONDS", 0.6)
    lock = tmp_path / "run.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "time": 0}))
    over = threading.Event()

    def touch():
        while not over.wait(0.05):
            os.utime(lock)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(UserError, match="elsewhere"), workdir_lock.hold(epath.Path(tmp_path)):
            pass
    finally:
        over.set()
        thread.join()
    with workdir_lock.hold(epath.Path(tmp_path)):  # silent: a kill left it behind
        workdir_lock.check_still_held(epath.Path(tmp_path))
        lock.unlink()
        with pytest.raises(RuntimeError, match="gone or of another run"):
            workdir_lock.check_still_held(epath.Path(tmp_path))
    assert not lock.exists()


def test_after_an_error_of_the_runtime_the_watch_has_time_to_find_a_lost_process(monkeypatch):
    slept = []
    monkeypatch.setattr(peers.time, "sleep", slept.append)
    peers.await_verdict(ValueError("an image is broken"))
    assert not slept
    try:
        try:
            raise jax.errors.JaxRuntimeError("connection closed by peer")
        except jax.errors.JaxRuntimeError as error:
            raise RuntimeError("the run was ended") from error
    except RuntimeError as error:
        peers.await_verdict(error)
    assert len(slept) == 1 and slept[0] > peers.SILENT_SECONDS


def test_a_process_that_was_told_to_stop_ends_the_others_to_be_started_again(monkeypatch):
    store, ended = Store(), []
    monkeypatch.setattr(peers, "client", lambda: store)
    monkeypatch.setattr(peers, "NOTICE_SECONDS", 0.0)
    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.02)
    peers.announce_stop()
    store_text = store.values[f"{peers.PREFIX}failed"]
    peers.announce_stop()  # a reason that stands there already stays
    assert store.values[f"{peers.PREFIX}failed"] == store_text
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    peers._watch(store, lambda code, reason: ended.append((code, reason)))
    assert ended == [(75, "ended because of process 0: it was told to stop")]


@pytest.mark.parametrize("others_end", [True, False])
def test_process_0_ends_after_the_others_or_without_them(monkeypatch, others_end):
    store, order, index = Store(), [], threading.local()

    class Ended(BaseException):
        pass

    def end(code):
        order.append((index.value, code))
        raise Ended

    monkeypatch.setattr(peers, "client", lambda: store)
    monkeypatch.setattr(peers, "END_SECONDS", 20.0 if others_end else 0.2)
    monkeypatch.setattr(peers.time, "sleep", lambda seconds: order.append(("waits", seconds)))
    monkeypatch.setattr(jax, "process_index", lambda: index.value)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(peers.os, "_exit", end)

    def process(number):
        index.value = number
        with contextlib.suppress(Ended):
            peers.end_together(75)

    threads = [threading.Thread(target=process, args=[n]) for n in (0, 1, 2)]
    for thread in threads[: 3 if others_end else 2]:
        thread.start()
        time.sleep(0.05)
    for thread in threads[: 3 if others_end else 2]:
        thread.join(10)
    ends = [entry for entry in order if entry[1] == 75]
    assert ends[-1] == (0, 75) and len(ends) == (3 if others_end else 2)
    assert (("waits", 1.0) in order) == others_end
