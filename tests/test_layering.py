"""The rules of the tree, kept by reading the source: who may import whom, and what from outside."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "atss_jax"

RANKS = {
    "typing": 1,
    "structures": 2,
    "pyramid": 2,
    "boxes": 3,
    "anchors": 4,
    "nms": 4,
    "assigners": 5,
    "targets": 5,
    "losses": 5,
    "postprocess": 5,
    "config": 4,
    "config_check": 5,
    "build": 6,
    "run_files": 6,
    "evaluate": 7,
    "train_step": 7,
    "setup": 8,
    "validation": 8,
    "step_log": 9,
    "pictures": 9,
    "train": 10,
    "inference": 9,
    "predict": 10,
    "export": 10,
    "describe": 10,
    "run_mode": 11,
    "main": 12,
}
"""A module imports from strictly lower ranks, and from its own folder."""

EDGES = {
    "models",
    "data",
    "coco_metrics",
    "optim",
    "parallel",
    "checkpoint",
    "metric_writer",
    "visualize",
    "curves",
    "compiled",
    "multiscale",
    "error_analysis",
}
"""Modules at the border to other libraries: ranks 1-2 and their own folder only."""

OUTSIDE = {
    "flax": {"models"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "array_record": {"data"},
    "cv2": {"data", "visualize", "predict"},
    "PIL": {"data"},
    "pycocotools": {"coco_metrics"},
    "hotcoco": {"coco_metrics"},
    "optax": {"optim", "losses", "train_step"},
    "orbax": {"checkpoint"},
    "matplotlib": {"curves"},
    "ml_collections": {"main"},
    "absl": {"main", "data"},  # Grain reads absl flags
    "safetensors": {"models"},
    "torch": {"models"},
    "tensorboardX": {"metric_writer"},
    "wandb": {"metric_writer"},
    "jax2onnx": {"export"},
}
"""Outside library -> the only places that may import it."""


def unit(path: Path) -> str:
    """The ranked unit that a file belongs to: its folder, or its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Dotted names that a file imports, at any depth."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_file_keeps_the_layers(path):
    own = unit(path)
    assert own in RANKS or own in EDGES, f"{own}: give it a rank"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "atss_jax":
            allowed = OUTSIDE.get(parts[0])
            assert allowed is None or own in allowed, f"{path} imports {name}"
            continue
        other = parts[1]
        if other == own:
            continue
        if own in EDGES:
            assert RANKS.get(other, 99) <= 2, f"{path} (edge) imports {name}"
        elif other in EDGES:
            assert RANKS[own] >= 6, f"{path} (rank {RANKS[own]}) imports the edge {name}"
        else:
            assert RANKS[other] < RANKS[own], f"{path} imports {name}, not of a lower rank"


def test_every_ranked_module_exists():
    units = {unit(path) for path in FILES}
    assert set(RANKS) | EDGES == units
