"""Figures of a compiled program, from its text.

Times are the compiler's own `estimated_cycles` of every instruction that is scheduled, loops times
their trip counts, divided by the clock. They rank costs; they do not predict a step's time.
"""

import collections
import re
from typing import Any, NamedTuple

from atss_jax.run.ahead.hlo_text import Array, HloProgram, Instruction

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "after-all", "partition-id", "replica-id", "opt-barrier", "call",
}  # fmt: skip
"""Opcodes that cost nothing themselves."""

MOVING = {
    "copy", "pad", "slice", "transpose", "concatenate", "reshape", "reverse", "dynamic-slice",
    "dynamic-update-slice", "copy-start", "copy-done", "slice-start", "slice-done", "async-start",
    "async-done", "gather",
}  # fmt: skip
"""Opcodes that move values without computing any."""

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
)  # fmt: skip

CALLING = (
    "calls", "to_apply", "body", "condition", "branch_computations", "true_computation",
    "false_computation", "called_computations",
)  # fmt: skip
"""Attributes that name computations."""

KINDS = (
    "convolution", "data movement", "element-wise", "reduce", "broadcast", "sort", "collective",
    "other",
)  # fmt: skip

_STAGES = (
    (r"backbone/(stem_\w+|stem)", "stem"),
    (r"backbone/layer1_", "C2"),
    (r"backbone/layer2_", "C3"),
    (r"backbone/layer3_", "C4"),
    (r"backbone/layer4_", "C5"),
    (r"\bfpn\b|FeaturePyramid", "FPN"),
    (r"cls_tower", "class tower"),
    (r"box_tower", "box tower"),
    (r"\b(cls_logits|box_regression|centerness|level_scale)\b", "prediction convolutions"),
    (r"\b(head|Head|Tower)\b", "head, rest"),
    (r"\bbackbone\b|ResNet", "stem"),  # pooling, and what stands outside of blocks
)
_FILES = (
    ("training/losses.py", "losses"),
    ("training/box_losses.py", "losses"),
    ("assigners/", "assigner"),
    ("training/targets.py", "assigner"),
    ("training/optim.py", "optimizer"),
    ("training/train_step.py", "optimizer"),
    ("evaluation/", "post-processing"),
    ("geometry/nms.py", "post-processing"),
    ("models/detector.py", "input and masks"),
    ("geometry/pyramid.py", "input and masks"),
)


class Cost(NamedTuple):
    """One scheduled instruction."""

    instruction: Instruction
    runs: int
    cycles: int | None
    """Of all runs; None where the compiler gives no estimate."""
    kind: str
    part: str
    backward: bool
    source: str


def scheduled(program: HloProgram) -> list[Cost]:
    """All instructions that are run, with the trip counts of loops.

    Of branches the longest counts. A loop whose count is unknown counts once; `loops` lists it.
    """

    def visit(name: str, runs: int) -> list[Cost]:
        found: list[Cost] = []
        for each in program.computations[name]:
            if each.opcode == "while":
                found += visit(each.called("body")[0], runs * (program.trip_count(each) or 1))
            elif each.opcode == "conditional":
                names = ("branch_computations", "true_computation", "false_computation")
                branches = [visit(branch, runs) for branch in each.called(*names)]
                found += max(branches, key=lambda costs: sum(c.cycles or 0 for c in costs))
            elif each.opcode == "call":
                found += visit(each.called("to_apply")[0], runs)
            if each.opcode not in FREE:
                found.append(_cost(program, each, runs))
        return found

    return visit(program.entry, 1)


def loops(program: HloProgram) -> list[dict[str, Any]]:
    """Every `while` with its trip count (None where unknown) and our line."""
    return [
        {"trip_count": program.trip_count(each), "source": program.source(each)}
        for instructions in program.computations.values()
        for each in instructions
        if each.opcode == "while"
    ]


def _runs(program: HloProgram) -> dict[str, int]:
    """How often each computation runs: the product of the trip counts of the loops around it.

    A loop whose count is unknown counts once.
    """
    runs: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        if times <= runs.get(name, 0):
            return
        runs[name] = times
        for each in program.computations.get(name, []):
            trips = (program.trip_count(each) or 1) if each.opcode == "while" else 1
            for called in each.called(*CALLING):
                visit(called, times * trips)

    visit(program.entry, 1)
    return runs


def _cost(program: HloProgram, each: Instruction, runs: int) -> Cost:
    source = program.source(each)
    cycles = None if each.cycles is None else each.cycles * runs
    backward = "transpose(" in each.op_name
    return Cost(each, runs, cycles, _kind(program, each), _part(each, source), backward, source)


def _kind(program: HloProgram, each: Instruction) -> str:
    opcodes = {i.opcode for i in program.inside(each)} - FREE
    if opcodes & {"convolution", "dot"} or re.search(r"cudnn|cublas|__triton_gemm", each.text):
        return "convolution"
    if any(each.opcode.startswith(name) for name in COLLECTIVES):
        return "collective"
    if opcodes & {"reduce", "reduce-window", "select-and-scatter"}:
        return "reduce"
    if opcodes & {"sort", "custom-call"}:
        return "sort" if "sort" in opcodes or "TopK" in each.text else "other"
    if opcodes <= MOVING | {"convert"} and opcodes & MOVING:
        return "data movement"
    return "broadcast" if opcodes == {"broadcast"} else "element-wise"


def _part(each: Instruction, source: str) -> str:
    for pattern, part in _STAGES:
        if re.search(pattern, each.op_name):
            return part
    for file, part in _FILES:
        if source.startswith(file):
            return part
    return "unattributed"


def collectives(program: HloProgram) -> list[dict[str, Any]]:
    """Collectives by kind, element type, and whether asynchronous; MiB are of one device.

    One within loops counts as often as they run, as in `scheduled`. Compilers for TPUs write an
    asynchronous one several times, at its start and into what runs meanwhile, always with the same
    channel; it counts once.
    """
    runs = _runs(program)
    found: dict[tuple[Any, ...], tuple[str, bool, list[Array], int]] = {}
    for computation, instructions in program.computations.items():
        for each in instructions:
            base = each.opcode.removesuffix("-start")
            if base not in COLLECTIVES:
                continue
            is_start = each.opcode.endswith("-start")
            is_async = is_start or "async_collective" in each.text
            arrays = list(each.results)
            if is_start and len(arrays) == 2 * len(each.operands):  # (inputs, outputs)
                arrays = arrays[len(arrays) // 2 :]
            channel = re.search(r"channel_id=(\d+)", each.text)
            key: tuple[Any, ...] = (computation, each.name)
            if is_async and channel:
                key = (base, channel[1], *((a.type, a.shape) for a in arrays))
            times = runs.get(computation, 1)
            if key not in found or times > found[key][3]:
                found[key] = base, is_async, arrays, times
    groups: dict[tuple[str, str, bool], list[int]] = {}
    for base, is_async, arrays, times in found.values():
        for kind in {a.type for a in arrays}:
            total = groups.setdefault((base, kind, is_async), [0, 0, 0])
            mine = [a for a in arrays if a.type == kind]
            total[0] += times
            total[1] += times * len(mine)
            total[2] += times * sum(a.num_bytes for a in mine)
    return [
        {
            "kind": kind,
            "type": element,
            "asynchronous": is_async,
            "operations": operations,
            "arrays": arrays,
            "mib": num_bytes / 2**20,
        }
        for (kind, element, is_async), (operations, arrays, num_bytes) in sorted(groups.items())
    ]


def convolutions(program: HloProgram, per_device: int) -> dict[str, Any]:
    """Convolutions and products by types, and how many were rewritten from space to batch.

    A rewritten one has no dimension of `per_device` images on its left.
    """
    types: collections.Counter[str] = collections.Counter()
    rewritten = 0
    for instructions in program.computations.values():
        shapes = {i.name: i.results for i in instructions}
        for each in instructions:
            cudnn = re.search(r'custom_call_target="(__cudnn\$conv\w+)"', each.text)
            if each.opcode not in ("convolution", "dot") and not cudnn:
                continue
            operands = [shapes[n][0] for n in each.operands[:2] if shapes.get(n)]
            name = cudnn[1].removeprefix("__cudnn$") if cudnn else each.opcode
            joined = " x ".join(a.type for a in operands)
            precision = re.search(r"operand_precision=\{(\w+),", each.text)
            asked = f", {precision[1]} precision" if precision else ""
            types[f"{name} {joined} -> {each.results[0].type}{asked}"] += 1
            labels = re.search(r"dim_labels=(\w+)_\w+->", each.text)
            if each.opcode == "convolution" and labels and re.search(r"\d", labels[1]) and operands:
                rewritten += per_device not in operands[0].shape
    return {"by_type": dict(types.most_common()), "rewritten_space_to_batch": rewritten}


def padding(costs: list[Cost], largest: int = 5) -> dict[str, Any]:
    """MiB that results take beyond their elements, because of whole tiles; the largest of them."""
    waste = []
    for cost in costs:
        for array in cost.instruction.results:
            extra = array.padded_bytes - array.num_bytes
            if extra > 2**20:
                shape = f"{array.type}[{','.join(map(str, array.shape))}]"
                waste.append((extra / 2**20, array.num_bytes / 2**20, shape, cost.source))
    waste.sort(reverse=True)
    return {
        "mib": sum(w[0] for w in waste),
        "largest": [
            {"extra_mib": extra, "mib": mib, "array": shape, "source": source}
            for extra, mib, shape, source in waste[:largest]
        ],
    }


def times(costs: list[Cost], hertz: float) -> dict[str, Any]:
    """Modelled milliseconds: the sum, by kind, by part, by source line, and the largest costs."""
    milliseconds = 1e3 / hertz
    kinds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    parts: dict[str, dict[str, float]] = {}
    lines: dict[str, float] = {}
    for cost in costs:
        ms = (cost.cycles or 0) * milliseconds
        kinds[cost.kind] += ms
        entry = parts.setdefault(cost.part, {"forward": 0.0, "backward": 0.0})
        entry["backward" if cost.backward else "forward"] += ms
        line = cost.source or "none"
        lines[line] = lines.get(line, 0.0) + ms
    total = sum(kinds.values())
    ranked = sorted(costs, key=lambda c: -(c.cycles or 0))[:20]
    return {
        "modelled_ms": total,
        "without_estimate": sum(c.cycles is None for c in costs),
        "data_movement_share": kinds["data movement"] / total if total else None,
        "ms_by_kind": {k: v for k, v in kinds.items() if v},
        "ms_by_part": dict(sorted(parts.items(), key=lambda item: -sum(item[1].values()))),
        "ms_by_line": dict(sorted(lines.items(), key=lambda item: -item[1])[:20]),
        "largest": [
            {
                "ms": (c.cycles or 0) * milliseconds,
                "runs": c.runs,
                "kind": c.kind,
                "part": c.part,
                "source": c.source,
                "opcode": c.instruction.opcode,
                "op_name": c.instruction.op_name,
                "results": [f"{a.type}{list(a.shape)}" for a in c.instruction.results[:2]],
            }
            for c in ranked
            if c.cycles
        ],
    }
