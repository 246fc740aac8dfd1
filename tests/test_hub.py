"""Weights by name: the real client against a hub on loopback, its cache, and no network at all."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save

from atss_jax.configs import coco_json
from atss_jax.errors import UserError
from atss_jax.models import hub, pretrained
from atss_jax.models.config import ModelConfig
from atss_jax.models.detector import DetectorNetwork, init_variables
from atss_jax.models.weight_table import BACKBONES
from atss_jax.run import given_paths, pretrained_recipe, start_weights
from tests import hub_server

ROOT = Path(__file__).resolve().parents[1]

FETCH = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
from atss_jax.errors import UserError
from atss_jax.models import hub
name = hub.parse_name(sys.argv[1])
try:
    print(hub.fetch(name, name.file or hub.WEIGHTS_FILE, option="config.model.init_from"))
except UserError as error:
    print("UserError:", error)
"""


@pytest.fixture
def server():
    pytest.importorskip("huggingface_hub")
    with hub_server.running() as server:
        yield server


def fetch(name, environment):
    """What a process prints that fetches a name."""
    done = subprocess.run(
        [sys.executable, "-c", FETCH, name], env=environment, cwd=ROOT, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def test_names():
    assert hub.parse_name("timm/resnet50.tv_in1k") == ("timm/resnet50.tv_in1k", "main", "")
    parsed = hub.parse_name("hf://me/cells@v1.0/sub/x.npz")
    assert parsed == ("me/cells", "v1.0", "sub/x.npz")
    assert hub.parse_name("hf://me/cells/x.npz") == ("me/cells", "main", "x.npz")
    assert set(pretrained._READERS) == set(hub.WEIGHT_SUFFIXES)
    for name in ("timm/resnet50.tv_in1k", "me/cells@v1", "hf://anything"):
        assert hub.is_hub_name(name)
    for path in (
        "weights/R-50.safetensors",
        "weights/R-50.pkl",
        "/tmp/x",
        "x.npz",
        "a/b/c",
        "tests/oracles",
        "../a",
    ):
        assert not hub.is_hub_name(path), path
    with pytest.raises(UserError, match="no name of the hub"):
        hub.parse_name("hf://alone")


@pytest.mark.slow
def test_fetched_once_checked_and_kept(server, tmp_path):
    """Also at a commit, and from the cache without a network; a damaged cache is refused."""
    content = save({"a": np.arange(3.0)})
    server.files["me/cells"] = {"model.safetensors": content}
    environment = server.environment(tmp_path)
    path, log = fetch("me/cells", environment)
    assert Path(path).read_bytes() == content
    commit = server.commit_of("me/cells")
    assert f"revision {commit}" in log and "sha256" in log
    assert fetch(f"me/cells@{commit}", environment)[0] == path
    assert sum(r.startswith("GET") for r in server.requests) == 1
    asked = len(server.requests)
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    assert fetch("me/cells", offline)[0] == path and len(server.requests) == asked
    Path(path).resolve().write_bytes(b"x" * len(content))
    assert "The file in the cache is damaged: delete" in fetch("me/cells", offline)[0]


@pytest.mark.slow
def test_what_cannot_be_fetched_is_explained(server, tmp_path):
    server.files["me/cells"] = {"README.md": b"no weights"}
    environment = server.environment(tmp_path)
    for name, text in {
        "me/none": "me/none: no such repository on the hub",
        "me/cells@v7": "me/cells: no revision v7",
        "me/cells": "me/cells: no file model.safetensors at main",
    }.items():
        assert f"UserError: {text}" in fetch(name, environment)[0]
    offline, _ = fetch("timm/resnet50.tv_in1k", environment | {"HF_HUB_OFFLINE": "1"})
    address = f"{server.address}/timm/resnet50.tv_in1k/resolve/main/model.safetensors"
    assert f"fetch {address} and give the path to config.model.init_from" in offline
    assert "models--timm--resnet50.tv_in1k" in offline


@pytest.mark.slow
def test_nobody_answers(tmp_path):
    pytest.importorskip("huggingface_hub")
    with hub_server.running() as server:
        environment = server.environment(tmp_path)
    assert "the hub cannot be reached" in fetch("timm/resnet50.tv_in1k", environment)[0]


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'atss_jax\[hub\]'. Or fetch https://.*main/"):
        pretrained.local_path("timm/resnet50.tv_in1k")


@pytest.mark.parametrize("name", ["hf://me/cells/x.npz", "hf://me/cells", "me/cells@v1"])
def test_a_run_asks_the_hub_and_no_file_system_for_a_name(name, monkeypatch, tmp_path):
    file = tmp_path / "x.npz"
    np.savez(file, a=np.arange(3.0))
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda name, file_, option: asked.append(name) or file)
    source = start_weights._read(name)
    assert asked == [hub.parse_name(name)] and source.arrays["a"].tolist() == [0, 1, 2]


def test_a_missing_client_is_found_before_anything_slow(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    recipe = coco_json.recipe()
    for name in ("hf://me/cells/x.npz", "timm/resnet50.tv_in1k"):
        model = dataclasses.replace(recipe.model, init_from=name)
        data = dataclasses.replace(recipe.data, source="tfds")
        with pytest.raises(UserError, match=r"pip install 'atss_jax\[hub\]'"):
            given_paths.check(
                dataclasses.replace(recipe, model=model, data=data), "train", str(tmp_path)
            )


@pytest.mark.slow
def test_half_width_resnet_under_a_name(server, shared, tmp_path):
    """The network gets the numbers of the file that the hub serves."""
    weights = shared / "weights/thin_resnet50_1by2_fp16.npz"
    if not weights.exists():
        pytest.skip("no weights here")
    server.files["local/thin-resnet50"] = {"thin.npz": weights.read_bytes()}
    path, _ = fetch("hf://local/thin-resnet50/thin.npz", server.environment(tmp_path))
    model = DetectorNetwork(ModelConfig(width=0.5, fpn_channels=32, head_convs=1), 3)
    variables = jax.device_get(jax.jit(lambda: init_variables(model, (64, 96), 0))())
    loaded = pretrained.load_into(path, variables)
    kernel = loaded["params"]["backbone"]["layer4_2"]["conv3"]["kernel"]
    with np.load(weights) as arrays:
        np.testing.assert_array_equal(kernel, arrays["layer4.2.conv3.weight"].astype(np.float32))


@pytest.mark.parametrize("name", BACKBONES)
def test_one_argument_sets_what_belongs_together(name):
    recipe = coco_json.recipe(f"backbone={name}")
    weights = BACKBONES[name]
    assert (recipe.model.backbone, recipe.model.init_from) == (name, weights.name)
    assert hub.is_hub_name(weights.name)
    assert recipe.model.width == 1 and recipe.model.frozen_stages == 2
    assert recipe.model.backbone_norm == "frozen_bn" and recipe.model.flavour == "torchvision"
    assert recipe.data.mean == weights.mean and recipe.data.channel_order == "rgb"
    assert recipe.optim == coco_json.recipe().optim
    shapes = jax.eval_shape(
        lambda: init_variables(DetectorNetwork(recipe.model, 3), recipe.data.buckets[0], 0)
    )
    backbone = shapes["params"]["backbone"], shapes["batch_stats"]["backbone"]
    kernels = sum(a.size for a in jax.tree.leaves(backbone[0]))
    norms = sum(a.size for a in jax.tree.leaves(backbone[1]))
    features = 512 if name in ("resnet18", "resnet34") else 2048
    assert kernels + norms + 1000 * (features + 1) == weights.parameters


def test_unknown_backbone():
    with pytest.raises(UserError, match="backbone='resnet51': no pretrained weights. Use one of"):
        pretrained_recipe.with_backbone(coco_json.recipe(), "resnet51")
    with pytest.raises(UserError, match="'backbon': not known. Did you mean 'backbone'"):
        coco_json.recipe("backbon=resnet50")
