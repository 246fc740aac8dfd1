"""Reads the text of a compiled XLA program: instructions, loops, source lines.

Only what the reports need. The format has no specification; `tests/test_aot_report.py` holds a
stored excerpt of the one that jaxlib 0.12 with libtpu 0.0.50 writes.
"""

import dataclasses
import functools
import math
import re

ELEMENT_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
"""Bytes of an element; other types (tokens, 8-bit floats) count as none."""


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a result type.

    Attributes:
      type: element type, such as "bf16".
      shape: sizes, in logical order.
      layout: dimensions from the fastest to the slowest.
      tile: of the two fastest dimensions (slower, faster), or of the fastest alone; () for none.
    """

    type: str
    shape: tuple[int, ...]
    layout: tuple[int, ...]
    tile: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements."""
        return int(math.prod(self.shape) * ELEMENT_BYTES.get(self.type, 0))

    @property
    def padded_bytes(self) -> int:
        """Bytes in memory, with the fastest dimensions rounded up to whole tiles."""
        sizes = [self.shape[i] for i in self.layout]
        for i, side in enumerate(reversed(self.tile)):
            if i < len(sizes):
                sizes[i] = math.ceil(sizes[i] / side) * side
        return int(math.prod(sizes) * ELEMENT_BYTES.get(self.type, 0))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
      name: unique in the program.
      opcode: such as "fusion".
      results: arrays of the result, several for a tuple.
      operands: names of the operands.
      text: the attributes, as they stand behind the operands.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str

    @functools.cached_property
    def cycles(self) -> int | None:
        """The compiler's estimate, or None where it has none."""
        found = re.search(r'"estimated_cycles":"?(\d+)', self.text)
        return int(found[1]) if found else None

    @functools.cached_property
    def op_name(self) -> str:
        """Path of the JAX operation that it comes from, "" if unknown."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""

    def called(self, *attributes: str) -> list[str]:
        """Computations that an attribute names: calls, body, condition, branch_computations."""
        names = []
        for attribute in attributes:
            for found in re.finditer(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.text):
                names += re.findall(r"%([\w.\-]+)", found[1])
        return names


@dataclasses.dataclass(frozen=True)
class HloProgram:
    """A compiled program.

    Attributes:
      computations: name to instructions, in order.
      entry: name of the computation that is run.
      frames: of a stack: number to (file, line, number of the caller's frame).
    """

    computations: dict[str, list[Instruction]]
    entry: str
    frames: dict[int, tuple[str, int, int]]

    def source(self, instruction: Instruction, package: str = "atss_jax/") -> str:
        """Our line that an instruction comes from, as "models/layers.py:45"; "" if unknown.

        Args:
          instruction: of this program.
          package: folder of the files that are ours.
        """
        found = re.search(r"stack_frame_id=(\d+)", instruction.text)
        frame = int(found[1]) if found else 0
        while frame in self.frames:
            file, line, frame = self.frames[frame]
            _, inside, rest = file.rpartition(f"/{package}")
            if inside:
                return f"{rest}:{line}"
        found = re.search(r'source_file="([^"]*)" source_line=(\d+)', instruction.text)
        if found and f"/{package}" in found[1]:
            return f"{found[1].rpartition(f'/{package}')[2]}:{found[2]}"
        return ""

    def inside(self, instruction: Instruction) -> list[Instruction]:
        """The instructions of a fusion, nested ones included; itself where it is none."""
        if instruction.opcode != "fusion":
            return [instruction]
        return [
            inner
            for name in instruction.called("calls")
            for each in self.computations[name]
            for inner in self.inside(each)
        ]

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a `while` runs, or None where the text does not say it.

        TPU programs carry no count: it is then the only integer constant of the condition, where
        JAX compares a counter that begins at 0.
        """
        found = re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.text)
        if found:
            return int(found[1])
        constants = {
            int(value[1])
            for name in loop.called("condition")
            for each in self.computations[name]
            for inner in self.inside(each)
            if inner.opcode == "constant"
            and inner.results[0].type in ("s32", "s64", "u32")
            and (value := re.match(r"(\d+)\)", inner.text))
        }
        return constants.pop() if len(constants) == 1 else None


_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::T\(([\d,]+)\))?)?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")


def parse(text: str) -> HloProgram:
    """The program of `compiled.as_text()`."""
    computations: dict[str, list[Instruction]] = {}
    entry = current = ""
    tables: dict[str, dict[int, str]] = {}
    table = ""
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = line
            tables[table] = {}
        elif table and (found := re.match(r"^(\d+) (.*)$", line)):
            tables[table][int(found[1])] = found[2]
        elif found := _HEAD.match(line):
            table, current = "", found[2]
            computations[current] = []
            entry = current if found[1] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(_instruction(found[1], found[2]))
    return HloProgram(computations, entry, _frames(tables))


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    results, rest = text[:end], text[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    close = _closing(f"({rest}", 0)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[: close - 1]))
    attributes = rest if opcode == "constant" else rest[close:]  # a constant's value is kept
    arrays = tuple(
        Array(kind, _numbers(shape), _numbers(layout), _numbers(tile))
        for kind, shape, layout, tile in _ARRAY.findall(results)
    )
    return Instruction(name, opcode, arrays, operands, attributes)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _closing(text: str, start: int) -> int:
    """Place of the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)


def _frames(tables: dict[str, dict[int, str]]) -> dict[int, tuple[str, int, int]]:
    def field(text: str, name: str) -> int:
        found = re.search(rf"\b{name}=(\d+)", text)
        return int(found[1]) if found else 0

    files = {k: v.strip('"') for k, v in tables.get("FileNames", {}).items()}
    places = {
        k: (files.get(field(v, "file_name_id"), ""), field(v, "line"))
        for k, v in tables.get("FileLocations", {}).items()
    }
    frames = tables.get("StackFrames", {})
    # Written numbers of callers are one too high where the first frame would be its own caller.
    shift = int(1 in frames and field(frames[1], "parent_frame_id") == 1)
    return {
        k: (*places.get(field(v, "file_location_id"), ("", 0)), field(v, "parent_frame_id") - shift)
        for k, v in frames.items()
    }
