"""Weights in and out: formats, names, mismatches, round trips."""

import collections
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import convert_weights
from atss_jax.errors import UserError
from atss_jax.models import pretrained, saved_detector
from atss_jax.models.config import ModelConfig
from atss_jax.models.detector import DetectorNetwork
from atss_jax.models.weight_names import to_flat
from atss_jax.run import recipe_io
from atss_jax.run.detector import Detector
from atss_jax.run.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]


def make_variables(num_classes=3, **changes):
    settings: Any = {"fpn_channels": 32, "head_convs": 1} | changes
    model = DetectorNetwork(ModelConfig(**settings), num_classes)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 32, 64, 3)), jnp.array([[32, 64]])
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), shapes)


def torch_backbone(variables, bottleneck=False):
    """Random arrays under torchvision's names for a ResNet-18 backbone."""
    rng = np.random.default_rng(1)
    state = collections.OrderedDict()
    flat = pretrained.flatten(variables)
    for name, array in flat.items():
        _, part, *modules, leaf = name.split("/")
        if part != "backbone" or leaf != "kernel":
            continue
        module = ".".join(modules).replace("stem_conv", "conv1").replace("_", ".", 1)
        module = module.replace("downsample_conv", "downsample.0")
        state[f"{module}.weight"] = rng.normal(size=array.transpose(3, 2, 0, 1).shape)
        norm = module.replace("downsample.0", "downsample.1").replace("conv", "bn")
        for field in ("weight", "bias", "running_mean"):
            state[f"{norm}.{field}"] = rng.normal(size=array.shape[3])
        state[f"{norm}.running_var"] = rng.uniform(0.5, 1.5, array.shape[3])
        state[f"{norm}.num_batches_tracked"] = np.array(3)
    state["fc.weight"], state["fc.bias"] = np.zeros((10, 512)), np.zeros(10)
    return {k: v.astype(np.float32) for k, v in state.items()}


def equal(a, b):
    flat_a, flat_b = pretrained.flatten(a), pretrained.flatten(b)
    assert flat_a.keys() == flat_b.keys()
    for name, array in flat_a.items():
        np.testing.assert_array_equal(array, flat_b[name], err_msg=name)
        assert array.dtype == flat_b[name].dtype


def test_detector_round_trip_is_exact(tmp_path):
    variables = make_variables(backbone="resnet18", width=0.25, backbone_norm="batch_norm")
    path = tmp_path / "detector.safetensors"
    saved_detector.save_detector(path, variables, ["a", "b", "ü"], '{"x": 1}')
    saved = saved_detector.load_detector(path)
    equal(saved.variables, variables)
    weights = saved_detector.digest(variables)
    assert saved_detector.digest(saved.variables) == weights and len(weights) == 64
    other = jax.tree.map(np.array, variables)
    other["params"]["head"]["cls_logits"]["bias"][2] += 1e-6
    assert saved_detector.digest(other) != weights
    assert saved.class_names == ("a", "b", "ü")
    assert json.loads(saved.config_json) == {"x": 1}
    zeros = jax.tree.map(np.zeros_like, variables)
    equal(pretrained.load_into(path, zeros), variables)
    assert os.listdir(tmp_path) == ["detector.safetensors"]


def test_other_classes_keep_the_start_of_the_last_layer(tmp_path, caplog):
    variables = make_variables(backbone="resnet18", width=0.25)
    path = tmp_path / "detector.safetensors"
    saved_detector.save_detector(path, variables, ["a", "b", "c"], "{}")
    other = make_variables(backbone="resnet18", width=0.25, num_classes=5)
    target = jax.tree.map(np.zeros_like, other)
    loaded = pretrained.load_into(path, target)
    assert "keeps its start values" in caplog.text
    head, source = loaded["params"]["head"], variables["params"]["head"]
    assert not head["cls_logits"]["kernel"].any()
    np.testing.assert_array_equal(
        head["box_regression"]["kernel"], source["box_regression"]["kernel"]
    )


def test_torchvision_backbone_in_both_norms(tmp_path):
    frozen = make_variables(backbone="resnet18", width=0.25, stem_channels=16)
    state = torch_backbone(frozen)
    path = tmp_path / "resnet18.safetensors"
    save_file(state, path)
    loaded = pretrained.load_into(path, frozen)
    np.testing.assert_array_equal(
        loaded["params"]["backbone"]["layer2_1"]["conv2"]["kernel"],
        state["layer2.1.conv2.weight"].transpose(2, 3, 1, 0),
    )
    factor = state["bn1.weight"] / np.sqrt(state["bn1.running_var"] + 1e-5)
    constants = loaded["batch_stats"]["backbone"]["stem_norm"]
    np.testing.assert_allclose(constants["scale"], factor, rtol=1e-6)
    np.testing.assert_allclose(
        constants["bias"], state["bn1.bias"] - factor * state["bn1.running_mean"], rtol=1e-5
    )
    equal(loaded["params"]["head"], frozen["params"]["head"])

    trained = make_variables(
        backbone="resnet18", width=0.25, stem_channels=16, backbone_norm="batch_norm"
    )
    loaded = pretrained.load_into(path, trained)
    norm = loaded["batch_stats"]["backbone"]["layer1_0"]["norm2"]
    np.testing.assert_allclose(norm["var"], state["layer1.0.bn2.running_var"], rtol=1e-6)


def test_caffe_names_and_restricted_unpickling(tmp_path):
    variables = make_variables(backbone="resnet50", width=1 / 16, stem_channels=8)
    blobs = {}
    for name, array in pretrained.flatten(variables).items():
        _, part, *modules, leaf = name.split("/")
        if part != "backbone" or leaf != "kernel":
            continue
        if modules == ["stem_conv"]:
            base, norm = "conv1", "res_conv1"
        else:
            stage, block = modules[0].removeprefix("layer").split("_")
            part = modules[1].replace("downsample_conv", "branch1")
            part = part.replace("conv1", "branch2a").replace("conv2", "branch2b")
            base = f"res{int(stage) + 1}_{block}_{part.replace('conv3', 'branch2c')}"
            norm = base
        blobs[f"{base}_w"] = array.transpose(3, 2, 0, 1)
        blobs[f"{norm}_bn_s"] = np.arange(array.shape[3], dtype=np.float32)
        blobs[f"{norm}_bn_b"] = -np.arange(array.shape[3], dtype=np.float32)
    blobs |= {"fc1000_w": np.zeros(3, np.float32), "conv1_b": np.zeros(8, np.float32)}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    loaded = pretrained.load_into(path, jax.tree.map(np.zeros_like, variables))
    equal(loaded["params"]["backbone"], variables["params"]["backbone"])
    scale = loaded["batch_stats"]["backbone"]["layer2_0"]["downsample_norm"]["scale"]
    np.testing.assert_array_equal(scale, np.arange(len(scale)))

    evil = tmp_path / "evil.pkl"
    evil.write_bytes(b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path) + b"/hacked'\ntR.")
    with pytest.raises(ValueError, match=r"asks for os\.system: only arrays"):
        pretrained.read_arrays(evil)
    assert not (tmp_path / "hacked").exists()


def test_mismatch_prints_a_diff(tmp_path):
    wide = make_variables(backbone="resnet18", width=0.25, stem_channels=16)
    path = tmp_path / "resnet18.safetensors"
    save_file(torch_backbone(wide), path)
    narrow = make_variables(backbone="resnet18", width=0.25, stem_channels=8)
    with pytest.raises(ValueError) as error:
        pretrained.load_into(path, narrow)
    text = str(error.value)
    assert "- params/backbone/stem_conv/kernel (7, 7, 3, 16)" in text
    assert "+ params/backbone/stem_conv/kernel (7, 7, 3, 8)" in text
    deep = make_variables(backbone="resnet34", width=0.25, stem_channels=16)
    with pytest.raises(ValueError, match=r"\n\+ params/backbone/layer1_2/conv1/kernel \(3, 3, 16"):
        pretrained.load_into(path, deep)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        pretrained.read_arrays(tmp_path / "none.npz")
    odd = tmp_path / "odd.bin"
    odd.write_bytes(b"")
    with pytest.raises(ValueError, match="unknown suffix"):
        pretrained.read_arrays(odd)
    with pytest.raises(ValueError, match=r"encoder\.weight"):
        to_flat({"encoder.weight": np.zeros(3)})
    foreign = tmp_path / "foreign.safetensors"
    save_file({"conv1.weight": np.zeros(3, np.float32)}, foreign)
    np.savez(tmp_path / "foreign.npz", weight=np.zeros(3))
    for path in (foreign, tmp_path / "foreign.npz"):
        with pytest.raises(ValueError, match="not written by atss_jax"):
            saved_detector.load_detector(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pkl"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_files_are_named(tmp_path, suffix, damage):
    path = tmp_path / f"weights{suffix}"
    arrays = {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}
    if suffix == ".safetensors":
        save_file(arrays, path)
    elif suffix == ".npz":
        np.savez(path, allow_pickle=False, **arrays)
    else:
        path.write_bytes(pickle.dumps(arrays))
    whole = path.read_bytes()
    garbage = np.random.default_rng(0).bytes(1000)
    path.write_bytes({"cut": whole[: len(whole) // 2], "garbage": garbage, "empty": b""}[damage])
    with pytest.raises(UserError, match=rf"weights{suffix}: cannot be read.*[Cc]opy or download"):
        pretrained.read_arrays(path)


def test_files_of_other_things_are_named(tmp_path):
    path = tmp_path / "list.pkl"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match=r"list\.pkl: holds a list, not arrays by name"):
        pretrained.read_arrays(path)
    path.write_bytes(pickle.dumps({"epoch": 3}))
    with pytest.raises(UserError, match=r"list\.pkl: holds no arrays"):
        pretrained.read_arrays(path)
    path = tmp_path / "array.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match=r"array\.npz: holds a ndarray"):
        pretrained.read_arrays(path)


@pytest.mark.parametrize(
    ("field", "value"), [("conv1.weight", np.nan), ("bn1.bias", np.inf), ("bn1.running_var", -1)]
)
def test_numbers_that_are_not_finite_are_refused(field, value):
    variables = make_variables(backbone="resnet18", width=0.25, stem_channels=16)
    state = torch_backbone(variables)
    state[field].flat[0] = value
    with pytest.raises(UserError, match=r"R-18: . of \d+ arrays hold .*first .*backbone/stem_"):
        pretrained.insert(state, variables, source="R-18")


def test_shapes_that_cannot_be(tmp_path):
    variables = make_variables(backbone="resnet18", width=0.25, stem_channels=16)
    state = torch_backbone(variables)
    with pytest.raises(UserError, match=r"stem_conv/kernel of shape \(3,\)"):
        pretrained.insert({**state, "conv1.weight": np.zeros(3)}, variables)
    del state["layer1.0.bn1.running_mean"]
    with pytest.raises(UserError, match=r"- params/backbone/layer1_0/norm1/scale"):
        pretrained.insert(state, variables)


def test_the_log_says_what_was_taken(caplog):
    variables = make_variables(backbone="resnet18", width=0.25, stem_channels=16)
    state = {n: a.astype(np.float16) for n, a in torch_backbone(variables).items()}
    with caplog.at_level(logging.INFO, logger="atss_jax"):
        pretrained.insert(state, variables, source="R-18")
    (text,) = caplog.messages
    assert text.startswith("R-18: 60 arrays taken (backbone), cast from float16; ")
    assert " keep their start values (fpn, head)" in text
    assert "22 of the file not used (bn1.num_batches_tracked, fc.bias, fc.weight, ...)" in text


def test_half_width_resnet50(shared):
    """The shared file loads, and gives finite features of the right spread."""
    variables = make_variables(backbone="resnet50", flavour="msra", width=0.5)
    path = shared / "weights" / "thin_resnet50_1by2_fp16.npz"
    loaded = pretrained.load_into(path, variables)
    arrays = np.load(path)
    np.testing.assert_array_equal(
        loaded["params"]["backbone"]["layer4_2"]["conv3"]["kernel"],
        arrays["layer4.2.conv3.weight"].astype(np.float32),
    )
    np.testing.assert_array_equal(
        loaded["batch_stats"]["backbone"]["layer3_0"]["downsample_norm"]["scale"],
        arrays["layer3.0.downsample.scale"],
    )


def test_convert_weights_script(tmp_path):
    variables = make_variables(backbone="resnet18", width=0.25, stem_channels=16)
    source, target = tmp_path / "in.npz", tmp_path / "out.safetensors"
    np.savez(source, **torch_backbone(variables))
    script = str(ROOT / "scripts" / "convert_weights.py")
    command = [sys.executable, script, f"--input={source}", f"--output={target}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "(backbone)" in done.stdout
    equal(pretrained.load_into(target, variables), pretrained.load_into(source, variables))


@pytest.fixture
def convert(tmp_path, monkeypatch):
    """Runs convert_weights.py here, with a home folder that holds in.npz; its exit code."""
    variables = make_variables(backbone="resnet18", width=0.25, stem_channels=16)
    np.savez(tmp_path / "in.npz", **torch_backbone(variables))
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convert_weights.py", *arguments])
        return convert_weights.main()

    return run


def test_converted_weights_go_into_a_new_folder_also_of_the_home(convert, tmp_path, capsys):
    assert convert("--input=~/in.npz", "--output=~/new/folder/out.safetensors") == 0
    assert "(backbone)" in capsys.readouterr().out
    assert (tmp_path / "new/folder/out.safetensors").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input=~/in.npz", "--output=~/in.npz/a.safetensors"], "in.npz"),
        (["--workdir=~/none", "--output=~/a.safetensors"], "none: no such weights file"),
    ],
)
def test_what_cannot_be_converted_is_said_in_a_line(convert, capsys, arguments, message):
    assert convert(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("output", "message"),
    [("gs://bucket/a.safetensors", "give a file on a disk"), ("~", "is a folder. Give a file")],
)
def test_weights_are_written_to_a_file_on_a_disk(convert, capsys, output, message):
    with pytest.raises(SystemExit, match="2"):
        convert("--input=~/in.npz", f"--output={output}")
    assert message in capsys.readouterr().err


def test_a_run_in_a_bucket_is_read_by_the_detector_alone(convert, tmp_path, monkeypatch):
    variables = make_variables(backbone="resnet18", width=0.25, stem_channels=16)
    loaded = SimpleNamespace(
        variables=variables, config=Recipe(), class_names=("a", "b", "c"), category_ids=(1, 2, 3)
    )
    paths = []
    monkeypatch.setattr(Detector, "load", lambda path: paths.append(path) or loaded)
    assert convert("--workdir=gs://bucket/run", "--output=~/out.safetensors") == 0
    saved = saved_detector.load_detector(tmp_path / "out.safetensors")
    assert paths == ["gs://bucket/run"] and saved.class_names == ("a", "b", "c")
    assert recipe_io.recipe_from_json(saved.config_json) == Recipe()
    equal(saved.variables, variables)
