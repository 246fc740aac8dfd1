"""Experiments of `fault_matrix.py --real`: the command line on a tiny run, half a minute each.

Where a run can go on, it must end equal bit for bit to an undisturbed one.
"""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np

from fault_damage import HangError, SilentlyWrongError, WrongCodeError, cut, flip, zero_block
from fault_ground import STEPS, contents, expect, ground, in_loop
from tiny_run import PREEMPTED, ROOT, Run, command, differences, environment, patched

Case = tuple[str, str, Callable[[], None]]
OTHERS_SECONDS = 60.0
"""When one of several processes fails, all have ended after so long."""
JUMP = """
import os, time
real = time.time
time.time = lambda: real() - 86400 * os.path.exists({now!r})
"""


def disk_full() -> None:
    """A save without space: code 1 and the traceback, and the checkpoint before it is whole."""
    here = ground()
    workdir = here.stopped_at(10)
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "limited"]
    expect(here.start(workdir, prefix=limited), 1, says="File too large|EFBIG|LoopError")
    here.check_end(workdir)


def clock_jumps() -> None:
    """The clock is set back by a day in the loop."""
    here = ground()
    workdir, now = here.new(), here.folder / "now"
    run = here.start(workdir, variables=patched(here.folder / "clock", JUMP.format(now=str(now))))
    in_loop(run)
    now.touch()
    expect(run, 0)
    here.check_end(workdir)


def two_runs() -> None:
    """The second start in a workdir is refused, the first goes on."""
    here = ground()
    workdir = here.stopped_at(10)
    first = here.start(workdir)
    in_loop(first, 12)
    first.send(signal.SIGSTOP)  # so that it does not end before the second has looked
    expect(Run(workdir, here.flags, here.folder / "second.txt", mode="train"), 2, says="another")
    first.send(signal.SIGCONT)
    expect(first, 0)
    here.check_end(workdir)


@contextlib.contextmanager
def copy_of_data(change: Callable[[dict[str, Any]], None]) -> Generator[Path, None, None]:
    """A folder "data" elsewhere with a changed label file."""
    here = ground()
    with tempfile.TemporaryDirectory(dir=here.folder) as name:
        folder = Path(name) / "data"
        shutil.copytree(here.data, folder, ignore=shutil.ignore_patterns("cache"))
        labels = json.loads((folder / "train.json").read_text())
        change(labels)
        (folder / "train.json").write_text(json.dumps(labels))
        yield folder


@contextlib.contextmanager
def moved_data(change: Callable[[dict[str, Any]], None]) -> Generator[list[str], None, None]:
    """Flags of a copy of the data, with a changed label file."""
    with copy_of_data(change) as folder:
        yield [
            f"--config.data.train_annotations={folder / 'train.json'}",
            f"--config.data.train_images={folder / 'train'}",
        ]


def data_moved() -> None:
    """The same data in another folder: the run goes on."""
    with moved_data(lambda _: None) as flags:
        ground().check_end(ground().stopped_at(30), *flags)


def data_replaced(change: Callable[[dict[str, Any]], None]) -> None:
    """Other data than the run was trained on: refused, and nothing changes."""
    workdir = ground().stopped_at(30)
    before = contents(workdir)
    with moved_data(change) as flags:
        expect(ground().start(workdir, *flags), 2, says="error: ")
    if contents(workdir) != before:
        raise SilentlyWrongError("a refused start changed the workdir")


def image_broken() -> None:
    """An image that cannot be read any more: code 1, its name; goes on when it is whole again."""
    here = ground()
    workdir, image = here.stopped_at(10), here.data / "train" / "0.png"
    content = image.read_bytes()
    image.write_bytes(content[:40])
    try:
        expect(here.start(workdir), 1, 2, says=re.escape("0.png"))
    finally:
        image.write_bytes(content)
    here.check_end(workdir)


def workdir_moved() -> None:
    """A workdir that is moved away in the run: it stops; goes on at the new place."""
    here = ground()
    workdir = here.new()
    run = here.start(workdir)
    in_loop(run, 6)
    moved = workdir.rename(workdir.with_name(f"{workdir.name}-moved"))
    expect(run, 1, says="gone")
    assert not (workdir / "checkpoints").exists(), "written into a folder that is no run"
    here.check_end(moved)


def killed(*flags: str) -> None:
    """SIGKILL in the loop; no worker process outlives it."""
    here = ground()
    workdir = here.new()
    run = here.start(workdir, *flags)
    in_loop(run)
    run.send(signal.SIGKILL)
    run.wait()
    end = time.monotonic() + 20
    while left := subprocess.run(["pgrep", "-f", str(workdir)], capture_output=True).stdout:
        assert time.monotonic() < end, f"processes remain: {left.decode()}"
        time.sleep(0.5)
    here.check_end(workdir)


def worker_killed() -> None:
    """A reading process is killed, as by a lack of memory: no hang, and the run can go on."""
    here = ground()
    workdir = here.new()
    run = here.start(workdir, "--config.data.num_workers=2")
    in_loop(run, 6)
    listed = ["pgrep", "-P", str(run.processes[0].pid)]
    children = subprocess.run(listed, capture_output=True, text=True).stdout.split()
    assert children, "no workers"
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)
    expect(run, 0, 1)
    here.check_end(workdir)


def cache_damaged() -> None:
    """Bits flipped in every compiled program on disk: compiled again, never run."""
    here = ground()
    rng = np.random.default_rng(0)
    cache = here.folder / "damaged_cache"
    shutil.copytree(here.data / "cache", cache)
    for path in cache.rglob("*"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(flip(path.read_bytes(), rng))
    here.check_end(here.stopped_at(30), f"--config.run.compilation_cache={cache}")


def suspended() -> None:
    """A machine that sleeps for a while."""
    here = ground()
    workdir = here.new()
    run = here.start(workdir)
    in_loop(run)
    run.send(signal.SIGSTOP)
    time.sleep(12.0)
    run.send(signal.SIGCONT)
    expect(run, 0)
    here.check_end(workdir)


def reader_gone() -> None:
    """`train | head`: what nobody reads any more does not end the run."""
    here = ground()
    workdir = here.stopped_at(10)
    read, write = os.pipe()
    process = subprocess.Popen(
        command(workdir, here.flags, "train"),
        cwd=ROOT, stdout=write, stderr=write, env=environment(here.folder),
    )  # fmt: skip
    os.close(write)
    text = b""
    while b"step 12/" not in text:
        text += os.read(read, 1000)
    os.close(read)
    code = process.wait(300)
    if code != 0:
        raise WrongCodeError(f"{code} instead of 0")
    here.check_end(workdir)


def terminal_closed() -> None:
    """A terminal that is closed: the run stops as on a signal."""
    here = ground()
    workdir = here.stopped_at(10)
    pid, terminal = pty.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.chdir(ROOT)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the run would go on
            arguments = command(workdir, here.flags, "train")
            os.execve(arguments[0], arguments, environment(here.folder))
        os._exit(99)
    text = b""
    while b"step 12/" not in text:
        text += os.read(terminal, 1000)
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != PREEMPTED:
        raise WrongCodeError(f"{code} instead of {PREEMPTED}")
    here.check_end(workdir)


def damaged(mode: str, damage: Callable[[bytes, np.random.Generator], bytes]) -> None:
    """The newest checkpoint is damaged: each command says so and uses the one before."""
    here = ground()
    workdir = here.stopped_at(20)
    rng = np.random.default_rng(len(mode))
    files = [p for p in (workdir / "checkpoints" / "20").rglob("*") if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    content = path.read_bytes()
    while (changed := damage(content, rng)) == content:
        pass
    path.write_bytes(changed)
    extra = [f"--config.predict.input={here.data / 'val'}"] if mode == "predict" else []
    expect(here.start(workdir, *extra, mode=mode), 0, says="20 is damaged(.|\n)*15")
    if mode == "train":
        found = differences(here.reference, workdir, STEPS)
        if found:
            raise SilentlyWrongError(f"the end is another: {found}")


def recipe_differs() -> None:
    """Two processes with another recipe: both end with code 2, and show the field."""
    different = {1: ["--config.optim.momentum=0.5"]}
    run = ground().start(ground().new(), processes=2, different=different)
    expect(run, 2, seconds=OTHERS_SECONDS, says=r"\+    \"momentum\": 0.5")


@contextlib.contextmanager
def two_with_own_data(
    change: Callable[[dict[str, Any]], None],
) -> Generator[tuple[Run, Path], None, None]:
    """Two processes that read the same path in two places, and the images of the second."""
    here = ground()
    flags = [flag.replace(str(here.data), "data") for flag in here.flags]
    flags[flags.index("--config=configs/quickstart.py")] = "--config=quickstart"
    with copy_of_data(change) as folder:
        places = [here.folder, folder.parent]
        run = Run(here.new(), flags, here.log, mode="train", processes=2, places=places)
        yield run, folder / "train"


def data_differ() -> None:
    """Two processes with other boxes: both end with code 2."""

    def change(labels: dict[str, Any]) -> None:
        labels["annotations"][0]["bbox"][2] -= 1

    with two_with_own_data(change) as (run, _):
        expect(run, 2, seconds=OTHERS_SECONDS, says="the data differs")


def one_fails() -> None:
    """An image that only one of two processes cannot read: both end."""
    with two_with_own_data(lambda _: None) as (run, images):
        in_loop(run, 6)
        for path in images.iterdir():
            path.write_bytes(b"no image")
        expect(run, 1, 2, seconds=OTHERS_SECONDS)


def one_killed(index: int, *codes: int) -> None:
    """One of two processes is killed: the other ends, so that the launcher starts it again."""
    here = ground()
    run = here.start(here.new(), processes=2)
    in_loop(run, 6)
    run.processes[index].kill()
    begin = time.monotonic()
    try:
        code = run.processes[1 - index].wait(OTHERS_SECONDS)
    except subprocess.TimeoutExpired as error:
        run.send(signal.SIGKILL)
        raise HangError(f"the other lives after {time.monotonic() - begin:.0f} s") from error
    if code not in codes:
        raise WrongCodeError(f"{code} instead of {codes}: {run.text()[-2000:]}")


def cases() -> list[Case]:
    """All experiments with real processes."""

    def class_renamed(labels: dict[str, Any]) -> None:
        labels["categories"][0]["name"] = "oval"

    def image_left_out(labels: dict[str, Any]) -> None:
        labels["images"].pop()

    found: list[Case] = [
        ("storage", "disk full in a save", disk_full),
        ("storage", "image broken", image_broken),
        ("clock", "set back by a day in the loop", clock_jumps),
        ("two runs", "second start", two_runs),
        ("two runs", "workdir moved in the loop", workdir_moved),
        ("replaced data", "moved", data_moved),
        ("replaced data", "a class renamed", lambda: data_replaced(class_renamed)),
        ("replaced data", "an image left out", lambda: data_replaced(image_left_out)),
        ("kill", "SIGKILL", killed),
        ("kill", "SIGKILL, two workers", lambda: killed("--config.data.num_workers=2")),
        ("kill", "workers killed", worker_killed),
        ("storage", "compilation cache damaged", cache_damaged),
        ("limits", "suspended", suspended),
        ("limits", "reader of the output gone", reader_gone),
        ("signals", "terminal closed", terminal_closed),
        ("processes", "other recipe", recipe_differs),
        ("processes", "other data", data_differ),
        ("processes", "an error on one", one_fails),
        ("processes", "one killed", lambda: one_killed(1, PREEMPTED)),
        ("processes", "process 0 killed", lambda: one_killed(0, 1, -6, PREEMPTED)),
    ]
    for mode in ("train", "eval", "predict", "export"):
        for name, damage in (("flip", flip), ("block zeroed", zero_block), ("cut", cut)):
            if mode == "train" or name != "cut":
                found.append(("damage", f"{name}, {mode}", lambda m=mode, d=damage: damaged(m, d)))
    return [(group, f"real: {name}", action) for group, name, action in found]
