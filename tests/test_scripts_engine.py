"""Scripts around training: curves, launch files, the benchmark's arithmetic."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import bench_train
import peak_memory
import plot_run
from atss_jax.geometry.anchors import make_grid
from atss_jax.run import build, recipe_io

ROOT = Path(__file__).resolve().parents[1]


def write_run(folder, count=30, quality=0.4):
    folder.mkdir()
    rows = [{"step": s, "loss": 3 / s, "loss_cls": 2 / s} for s in range(1, count)]
    rows.append({"step": count, "eval/AP": quality, "eval/AP50": quality + 0.1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_plot_of_one_and_of_two_runs(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", quality=0.6)
    alone = plot_run.plot([tmp_path / "a"], None)
    assert alone == tmp_path / "a" / "curves.png"
    both = plot_run.plot([tmp_path / "a", tmp_path / "b"], tmp_path / "both.png")
    pictures = [np.asarray(cv2.imread(str(path))) for path in (alone, both)]
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any() and pictures[1].std() > 5


def test_plot_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing or empty"):
        plot_run.plot([tmp_path], None)
    with pytest.raises(ValueError, match="--output"):
        plot_run.plot([tmp_path, tmp_path], None)


@pytest.mark.parametrize("name", ["tpu_pod.sh", "single_host.sh", "slurm.sbatch"])
def test_launch_scripts_are_valid_shell(name):
    subprocess.run(["bash", "-n", str(ROOT / "scripts/launch" / name)], check=True)


def test_single_host_goes_on_after_preemption_and_stops_on_errors(tmp_path):
    counter, fake = tmp_path / "count", tmp_path / "python"
    fake.write_text(
        f'#!/bin/bash\necho "$@" >> {counter}\n'
        f'[ "$(wc -l < {counter})" -lt 3 ] && exit 75\nexit ${{LAST_CODE:-0}}\n'
    )
    fake.chmod(0o755)
    script = str(ROOT / "scripts/launch/single_host.sh")
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(fake), "RESTART_DELAY": "0"}
    done = subprocess.run(["bash", script, "--config=x"], env=environment, check=False)
    lines = counter.read_text().splitlines()
    assert done.returncode == 0 and lines == ["-m atss_jax.main --config=x"] * 3
    counter.unlink()
    done = subprocess.run(["bash", script], env={**environment, "LAST_CODE": "2"}, check=False)
    assert done.returncode == 2 and len(counter.read_text().splitlines()) == 3


def test_jobset_restarts_unless_the_exit_code_is_2_and_its_pods_may_find_each_other():
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "scripts/launch/gke_jobset.yaml").read_text()
    account, role, binding, jobset = yaml.safe_load_all(text)
    assert jobset["kind"] == "JobSet" and jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"]
    (container,) = spec["template"]["spec"]["containers"]
    assert "--config.run.distributed=auto" in " ".join(container["command"])
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    name = account["metadata"]["name"]
    assert spec["template"]["spec"]["serviceAccountName"] == name
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    allowed = {
        (r, verb) for rule in role["rules"] for r in rule["resources"] for verb in rule["verbs"]
    }
    # what jax._src.clusters.k8s_cluster calls
    assert allowed >= {("pods", "list"), ("jobs", "get"), ("services", "list")}
    assert "jax[k8s]" in text


def test_benchmark_reads_a_recipe_with_changes_and_makes_images_for_it(tmp_path):
    values = bench_train.read_recipe(
        str(ROOT / "configs/ablations.py") + ":k=5",
        ["data.buckets=((64, 96),)", "data.global_batch=2", "model.backbone=resnet18"],
    )
    bench_train.use_synthetic_images(values, tmp_path)
    config = recipe_io.recipe_from_mapping(values)
    assert config.assigner.candidates_per_level == 5 and config.model.backbone == "resnet18"
    dataset = build.load_dataset(config, "train")
    plan = build.make_plan(config, dataset)
    assert plan.used_buckets == ((64, 96),) and plan.padding == 0
    assert len(dataset.class_names) == bench_train.NUM_CLASSES


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ("configs/nothing.py", [], "no such file"),
        ("configs/quickstart.py", ["model.widht=1"], "Did you mean config.model.width"),
        ("configs/quickstart.py", ["model.width"], "GROUP.FIELD=VALUE"),
    ],
)
def test_benchmark_says_what_is_wrong(config, change, message):
    with pytest.raises(ValueError, match=message):
        bench_train.read_recipe(str(ROOT / config), change)


class FakeTraining:
    """Steps of 0.5 s that take no time."""

    waited = 0.0

    def __init__(self, values, folder):
        config = recipe_io.recipe_from_mapping(values)
        grid = make_grid(config.anchors, config.data.buckets[0])
        self.setup = SimpleNamespace(plan=SimpleNamespace(used_buckets=(grid.image_shape,)))
        self.is_closed = False
        self.asked = []

    def run(self, steps):
        self.asked.append(steps)
        return [0.5] * steps

    def report(self, seconds):
        return {"step_ms": 1e3 * sum(seconds) / len(seconds), "asked": self.asked}

    def close(self):
        self.is_closed = True


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_the_process_own_and_can_be_forgotten():
    code = "import peak_memory; print(peak_memory.peak_memory_mib())"
    large = np.ones(400 * 2**17)  # 400 MiB
    before = peak_memory.peak_memory_mib()
    own = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True
    )
    assert float(own.stdout) < 200 < 400 < before
    del large
    peak_memory.forget_peak_memory()
    assert peak_memory.peak_memory_mib() < before - 300


def test_benchmark_takes_turns_and_divides_by_the_rivals_time(tmp_path, monkeypatch):
    fake, log = tmp_path / "python", tmp_path / "log"
    fake.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"open({str(log)!r}, 'a').write(' '.join(sys.argv[2:]) + '\\n')\n"
        "for line in sys.stdin:\n"
        f"    open({str(log)!r}, 'a').write(line)\n"
        "    print([[0.25] * int(line), 100.0], flush=True)\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(bench_train, "OurTraining", FakeTraining)
    options = argparse.Namespace(
        config=str(ROOT / "configs/quickstart.py"),
        set=["data.buckets=((64, 96),)", "data.global_batch=2"],
        data="synthetic",
        warmup=1,
        steps=3,
        rounds=2,
        torchvision=str(fake),
    )
    report = bench_train.measure(options, tmp_path)
    assert report["asked"] == [1, 3, 3]
    assert log.read_text().split("\n") == ["64 96 2", "1", "3", "3", ""]
    assert report["step_time_ratio"] == 2.0 and report["torchvision_step_ms"] == 250.0
    assert report["torchvision_peak_rss_mib"] == 100.0
