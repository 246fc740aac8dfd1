"""Ahead-of-time compiled steps: one program per batch shape, counted, with its cost.

Calling a compiled program with another shape is an error, so a silent recompilation in the loop is
impossible; a new shape compiles once more and is reported.
"""

import contextlib
import ctypes
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple, cast

import jax
from etils import epath
from jaxlib import utils  # pyright: ignore[reportAttributeAccessIssue] - compiled

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "Tesla V100": 125e12,
}
"""Dense bfloat16 (V100: float16) peak of a chip, FLOP/s, from the vendors' data sheets."""


LONG_SECONDS = 60.0
"""A compilation that lasts longer is said to be under way."""


class Cost(NamedTuple):
    """What the compiler says of a program, for one device."""

    flops: float
    """Floating point operations of a call on one device; 0 if unknown."""
    argument_bytes: int
    temporary_bytes: int
    trace_seconds: float
    """Tracing and lowering, done again at every start."""
    compile_seconds: float
    """XLA's work, or reading its result from the cache."""


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of a device kind, or None if it is not in `PEAK_FLOPS` (CPUs)."""
    matches = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


class CompiledByShape:
    """A jitted function compiled ahead of time for each shape of its last argument.

    Args:
      function: from `jax.jit`.
      expected: programs that are expected; a further one is a warning.
      options: for XLA. Those of a compiler that does not know them are left out, with a warning.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        expected: int,
        options: Mapping[str, str] | None = None,
    ):
        self._options: dict[str, str | bool] = {**(options or {})}
        self._function = cast(jax.stages.Wrapped, function)
        self._expected = expected
        self._programs: dict[Any, Any] = {}
        self.costs: dict[Any, Cost] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Calls the program for these shapes, compiling it if it is new."""
        return self.program(*arguments)(*arguments)

    def program(self, *arguments: Any) -> Any:
        """The compiled program for these arguments (arrays or `jax.ShapeDtypeStruct`s)."""
        key = _key(arguments)
        if key not in self._programs:
            if len(self._programs) >= self._expected:
                logging.warning(
                    "compiling program %d for batch shapes %s, but only %d were planned",
                    len(self._programs) + 1,
                    key,
                    self._expected,
                )
            start = time.perf_counter()
            lowered = self._function.lower(*arguments)
            traced = time.perf_counter()
            with patient_compiler():
                program = self._compile(lowered)
            self.costs[key] = _cost(program, traced - start, time.perf_counter() - traced)
            return_freed_memory()
            self._programs[key] = program
        return self._programs[key]

    def _compile(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        try:
            return lowered.compile(compiler_options=self._options or None)
        except jax.errors.JaxRuntimeError as error:
            if not self._options or "compile option" not in str(error).lower():
                raise
            logging.warning("compiled without %s: %s", ", ".join(self._options), error)
            return lowered.compile()

    def cost(self, *arguments: Any) -> Cost:
        """Cost of the program that ran for these arguments; only the last one is looked at."""
        return self.costs[_key(arguments)]

    @property
    def num_programs(self) -> int:
        """Programs compiled so far."""
        return len(self._programs)


def _key(arguments: tuple) -> tuple:
    """What programs differ by: the shapes of the last argument."""
    return tuple(leaf.shape for leaf in jax.tree.leaves(arguments[-1]))


@contextlib.contextmanager
def patient_compiler() -> Generator[None, None, None]:
    """While XLA compiles, its alarms at slow work, which ask for bug reports, stay off the screen.

    One line of ours takes their place. What fails is raised, not logged.
    """
    note = "compiling still, %.0f s after the start; the result is kept for the next start"
    timer = threading.Timer(LONG_SECONDS, logging.warning, [note, LONG_SECONDS])
    timer.daemon = True
    timer.start()
    set_level = getattr(utils, "absl_set_min_log_level", lambda level: None)
    set_level(3)  # fatal errors only
    try:
        yield
    finally:
        timer.cancel()
        set_level(int(os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1")))


def return_freed_memory() -> None:
    """Gives the system back what the compiler has freed: 0.8 GiB after a ResNet-50's step.

    The GNU C library would keep it for its threads.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _cost(program: Any, trace_seconds: float, compile_seconds: float) -> Cost:
    analysis = program.cost_analysis() or {}
    memory = program.memory_analysis()
    return Cost(
        flops=float(analysis.get("flops", 0.0)),
        argument_bytes=int(getattr(memory, "argument_size_in_bytes", 0)),
        temporary_bytes=int(getattr(memory, "temp_size_in_bytes", 0)),
        trace_seconds=trace_seconds,
        compile_seconds=compile_seconds,
    )


def use_compilation_cache(folder: str, workdir: epath.Path) -> None:
    """Keeps compiled programs on disk for the next start.

    Args:
      folder: where; "" for `.compilation_cache` beside the workdir, "off" for nowhere.
      workdir: folder of the run.
    """
    if folder == "off":
        return
    folder = folder or os.fspath(workdir.absolute().parent / ".compilation_cache")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
