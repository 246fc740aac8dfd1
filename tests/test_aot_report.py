"""What compilers say of devices that are not here: of a stored program, and of compiled parts."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import aot_report
from atss_jax.configs import coco_json
from atss_jax.errors import UserError
from atss_jax.models.config import ModelConfig
from atss_jax.run import recipe_io
from atss_jax.run.ahead import costs, hlo_text, programs, topology
from atss_jax.run.ahead.figures import measure, program_figures
from atss_jax.run.recipe import Recipe
from atss_jax.runtime import parallel, tpu_options
from tests.ahead_case import report

ROOT = Path(__file__).resolve().parents[1]
EXCERPT = Path(__file__).with_name("compiled_excerpt.hlo").read_text()


@pytest.fixture(scope="module")
def program():
    return hlo_text.parse(EXCERPT)


def figures(**changes):
    report = {"topology": "v5e:2x2", "micro_batch": 2, "peak_memory_mib": 16e9 / 2**21} | changes
    analysis = {"flops": 3e6, "bytes accessed": 819e6}
    return program_figures(EXCERPT, report, analysis, 1.5e6)


def test_instructions_and_source_lines(program):
    entry = {i.name: i for i in program.computations[program.entry]}
    assert program.entry == "main"
    assert entry["fusion.1"].operands == ("a", "k")
    assert entry["fusion.1"].cycles == 3000
    assert entry["out"].cycles is None
    assert program.source(entry["fusion.1"]) == "models/layers.py:45"
    assert program.source(entry["fusion.3"]) == ""  # a stack without a file of ours
    assert program.trip_count(entry["while.1"]) == 9
    assert [a.shape for a in entry["s"].results] == [(), (2, 8, 8, 3)]


def test_padding_rounds_the_two_fastest_dimensions_up():
    array = hlo_text.Array("bf16", (2, 8, 8, 3), (3, 2, 1, 0), (8, 128))
    assert array.num_bytes == 2 * 2 * 8 * 8 * 3
    assert array.padded_bytes == 2 * 2 * 8 * 8 * 128
    array = hlo_text.Array("f32", (8, 300), (0, 1), (8, 128))  # 8 lanes of 128, 300 -> 304 rows
    assert array.padded_bytes == 4 * 128 * 304


def test_times_by_kind_and_part():
    found = figures()
    milliseconds = 1e3 / 1.5e9
    assert found["modelled_ms"] == pytest.approx(20_000 * milliseconds)  # 3 + 6 + 2 + 9 x 1
    assert found["data_movement_share"] == pytest.approx(2 / 20)
    assert found["ms_by_kind"] == pytest.approx(
        {k: v * milliseconds for k, v in
         {"convolution": 9000, "data movement": 2000, "element-wise": 9000}.items()}
    )  # fmt: skip
    assert found["ms_by_part"]["class tower"]["forward"] == pytest.approx(3000 * milliseconds)
    assert found["ms_by_part"]["C3"]["backward"] == pytest.approx(6000 * milliseconds)
    assert found["ms_by_part"]["losses"]["forward"] == pytest.approx(9000 * milliseconds)
    assert found["largest"][0]["runs"] == 9
    assert found["mfu"] == pytest.approx(1.5e6 / (found["modelled_ms"] / 1e3 * 197e12))
    assert found["mfu_compiler"] == pytest.approx(2 * found["mfu"])
    assert found["without_estimate"] == 2  # the copy at the end and the all-reduce
    assert found["memory_share"] == pytest.approx(0.5)
    assert found["bound_ms_by_bytes"] == pytest.approx(1.0)


def test_collectives_convolutions_and_loops(program):
    found = figures()
    assert [(c["type"], c["mib"]) for c in found["collectives"]] == [
        ("bf16", 9 * 256 * 256 * 2 / 2**20),
        ("f32", 256 * 4 / 2**20),
    ]
    assert found["convolutions"] == {
        "by_type": {"convolution bf16 x bf16 -> bf16": 2},
        "rewritten_space_to_batch": 1,
    }
    assert found["loops"] == [{"trip_count": 9, "source": "training/losses.py:72"}]
    assert costs.scheduled(program)[0].part == "class tower"


def test_an_asynchronous_collective_is_counted_once():
    """Compilers for TPUs repeat it in every computation that runs meanwhile."""

    def gather(name, channel):
        return (
            f"%{name} (p: bf16[16,32]) -> bf16[64,32] {{\n"
            "  %p = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(0)\n"
            "  ROOT %all-gather = bf16[64,32]{1,0:T(8,128)(2,1)} all-gather(%p), "
            f"channel_id={channel}, dimensions={{0}}, "
            'backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}\n}\n\n'
        )

    text = "HloModule step\n\n" + gather("begin", 7) + gather("meanwhile", 7) + gather("next", 8)
    (found,) = costs.collectives(hlo_text.parse(text))
    assert (found["operations"], found["asynchronous"]) == (2, True)
    assert found["mib"] == 2 * 64 * 32 * 2 / 2**20


def computation(name, *lines, entry=False):
    """Text of a computation of an array and a counter."""
    head = "(p: (f32[256], s32[])) -> (f32[256], s32[])"
    first = f"%p.{name} = (f32[256]{{0}}, s32[]) parameter(0)"
    body = "".join(f"  {line}\n" for line in (first, *lines))
    return f"{'ENTRY ' if entry else ''}%{name} {head} {{\n{body}}}\n\n"


def loop(name, body, trips):
    count = f'{{"known_trip_count":{{"n":"{trips}"}}}}' if trips else "{}"
    return (
        f"%{name} = (f32[256]{{0}}, s32[]) while(%p), condition=%cond, body=%{body}, "
        f"backend_config={count}"
    )


def reduce(name, channel, rest=""):
    return f"%{name} = f32[256]{{0}} all-reduce(%x), channel_id={channel}, to_apply=%add{rest}"


def all_reduces(*computations):
    text = "HloModule step\n\n" + computation("cond") + computation("add") + "".join(computations)
    return costs.collectives(hlo_text.parse(text))


def test_a_collective_counts_as_often_as_its_loops_run():
    found = all_reduces(
        computation("inner", reduce("a", 1)),
        computation("outer", reduce("b", 2), loop("w1", "inner", 5)),
        computation("unknown", reduce("c", 3)),
        computation("main", reduce("d", 4), loop("w2", "outer", 4), loop("w3", "unknown", 0),
                    entry=True),
    )  # fmt: skip
    assert [(f["operations"], f["arrays"], f["mib"]) for f in found] == [
        (26, 26, 26 * 256 * 4 / 2**20)  # 4 x 5 + 4 + 1 + 1
    ]


def test_a_collective_in_a_fusion_of_a_loop():
    """An asynchronous one in several computations counts as often as the one that runs most."""
    is_async = ', backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}'
    fused = "%f.{0} = f32[256]{{0}} fusion(%p), kind=kCustom, calls=%{0}"
    found = all_reduces(
        computation("begin", reduce("a", 1, is_async)),
        computation("meanwhile", reduce("b", 1, is_async)),
        computation("body", fused.format("meanwhile")),
        computation("main", fused.format("begin"), loop("w", "body", 3), entry=True),
    )
    assert [(f["asynchronous"], f["operations"]) for f in found] == [(True, 3)]


def test_gpu_programs_have_no_times():
    assert figures(topology="h100:8")["modelled_ms"] is None


def test_diff_names_what_changed_and_what_is_not_comparable():
    shared = {"part": "train", "bucket": [800, 1344], "per_device": 2, "dtype": "bfloat16"}
    shared |= {"fsdp": False, "versions": {"jax": "1"}, "memory_mib": {"temp": 100.0}}
    before = {"topology": "v5e:2x2", "peak_memory_mib": 200.0} | shared | figures()
    after = before | {"peak_memory_mib": 100.0, "topology": "v6e:2x2"}
    text = aot_report.diff(before, after)
    assert "not the same topology: v5e:2x2 and v6e:2x2" in text
    row = next(line for line in text.splitlines() if line.startswith("peak_memory_mib"))
    assert row.split()[1:] == ["200", "100", "-50.0%"]


def case_of(per_device=2, **model):
    """The paper's recipe with fields of the network changed, on one device."""
    recipe = Recipe(model=ModelConfig(**model))
    return programs.Case(recipe, topology.make_mesh("cpu"), (64, 96), per_device, 3)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "convnext_tiny"])
@pytest.mark.parametrize("width", [0.25, 1.0])
def test_the_pyramid_is_that_of_the_recipe(backbone, width):
    """Its variables have the shapes of the whole network's, and its inputs those of C3 to C5."""
    case = case_of(backbone=backbone, width=width, p6_from="c5", fpn_channels=64)
    variables, maps, *_ = programs.fpn(case).arguments
    assert variables["params"]["p6"]["kernel"].shape[2] == maps[2].shape[-1] != 64
    assert [m.shape[:3] for m in maps] == [(2, 8, 12), (2, 4, 6), (2, 2, 3)]
    whole, *_ = programs.predict(case).arguments
    assert jax.tree.map(lambda leaf: leaf.shape, variables["params"]) == jax.tree.map(
        lambda leaf: leaf.shape, whole["params"]["fpn"]
    )


@pytest.mark.parametrize("relu", [True, False])
def test_the_pyramid_is_compiled_as_the_recipe_says(relu):
    case = case_of(relu_before_p7=relu)
    program = programs.fpn(case)
    text = str(program.function.trace(*program.arguments).jaxpr)
    assert ("relu" in text) == relu


def test_the_stem_of_resnets_alone():
    variables, *_ = programs.stem(case_of(stem_channels=24)).arguments
    assert variables["params"]["stem_conv"]["kernel"].shape == (7, 7, 3, 24)
    message = "'convnext_tiny': only ResNets and ResNeXts have a part stem. Use --part=backbone."
    with pytest.raises(UserError, match=message):
        programs.stem(case_of(backbone="convnext_tiny"))


@pytest.mark.parametrize(
    ("part", "images", "options"),
    [
        ("train", 2, tpu_options.NO_SPACE_TO_BATCH),
        ("predict", 4, {}),
        ("postprocess", 4, {}),
        ("head", 4, tpu_options.NO_SPACE_TO_BATCH),
    ],
)
def test_parts_have_the_options_of_the_step_that_they_belong_to(monkeypatch, part, images, options):
    """Programs that compile at once stand for the large ones."""
    monkeypatch.setitem(programs.PROGRAMS, part, programs.assigner)
    monkeypatch.setattr(parallel, "platform_of", lambda mesh: "tpu")
    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_without(options))
    case = case_of(per_device=4)
    optim = dataclasses.replace(case.config.optim, accumulate=2)
    case = case._replace(config=dataclasses.replace(case.config, optim=optim))
    found = measure(case, "v5e:2x2", part)
    assert (found["micro_batch"], found["compiler_options"]) == (images, options)


def compile_without(expected):
    """Compiles on a CPU, without the options that are expected."""
    compile_plainly = jax.stages.Lowered.compile

    def compile_here(lowered, compiler_options=None):
        assert (compiler_options or {}) == expected
        return compile_plainly(lowered)

    return compile_here


@pytest.mark.parametrize("name", ["v5e", "v5e:4", "h100", "h100:0", "tpu:2x2", "cpu:2"])
def test_unknown_topologies_are_refused(name):
    with pytest.raises(UserError, match="use a TPU slice"):
        topology.split_topology(name)


def test_missing_compilers_are_named(monkeypatch):
    monkeypatch.setattr(topology, "_is_installed", lambda name: False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(UserError, match=r"libtpu, is not installed.*tpu-aot"):
        topology.prepare_environment("v5e:2x2")
    with pytest.raises(UserError, match=r"GPU compiler is not installed.*cuda12"):
        topology.prepare_environment("h100:8")


def describe(*flags, what="--config=coco_json"):
    """`atss describe` of a small network, without data, in a process of its own."""
    small = ["--data.buckets=((64,96),)", "--data.image_size=-1", "--data.global_batch=8"]
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "atss_jax.cli", "describe", what, *small, *flags],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5e"], "--topology=v5e: use a TPU slice (v5e:2x2,"),
        (["--topology=cpu", "--part=stam"], "--part=stam: no such part. Did you mean stem?"),
        (["--topology=cpu", "--data.global_batch=auto"], "the memory that it would be chosen by"),
        (["--topology=cpu", "--optim.accumulate=3"], "does not divide over 1 devices x 3"),
        (["--mode=eval", "--workdir=x", "--topology=cpu"], "--mode=eval: only for describe"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(flags, message):
    done = describe(*flags)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_describe_compiles_the_recipe_and_classes_of_a_run(tmp_path):
    (tmp_path / "config.json").write_text(recipe_io.recipe_to_json(coco_json.recipe()))
    classes = {"class_names": ["a", "b", "c"], "category_ids": [1, 2, 3]}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    done = describe("--topology=cpu", "--part=losses", what=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"3 classes (of {tmp_path})" in done.stdout


def test_describe_compiles_a_recipe_and_says_what_its_figures_are():
    done = describe("--topology=cpu", "--part=losses")
    assert done.returncode == 0, done.stderr
    assert "losses on cpu (1 devices), 8 images of 64x96 a device, float32" in done.stdout
    assert "80 classes (assumed: the data set is not here)" in done.stdout
    assert "a compiler's estimates: compiled, not run" in done.stdout
    assert "no modelled time" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", ["stem", "fpn", "head_layer", "losses", "assigner", "postprocess", "optimizer"]
)
def test_parts_compile_without_any_accelerator(tmp_path, part):
    found = report(tmp_path, "--topology=cpu", f"--part={part}")
    assert found["modelled_ms"] is None
    assert found["memory_mib"]["argument"] > 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_part_compiles_for_a_tpu(tmp_path):
    found = report(tmp_path, "--topology=v5e:2x2", "--part=head_layer")
    assert found["modelled_ms"] > 0
    assert 0 < found["mfu"] < 1
    assert list(found["convolutions"]["by_type"]) == ["convolution bf16 x bf16 -> bf16"]
    assert {c["kind"] for c in found["collectives"]} == {"all-reduce"}
    assert any(line.startswith("models/convolutions.py") for line in found["ms_by_line"])
