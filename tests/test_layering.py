"""The rules of the tree, kept by reading the source: who may import whom, and what from outside."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "atss_jax"

EVERYWHERE = {"config", "errors", "files"}
"""Modules without JAX that every room may import: recipe fields, a user's error, whole files."""

SEES = {
    "errors": set(),
    "files": set(),
    "config": set(),
    "typing": set(),
    "structures": {"typing"},
    "geometry": {"typing", "structures"},
    "assigners": {"typing", "structures", "geometry"},
    "models": {"typing", "structures", "geometry"},
    "data": {"typing", "structures"},
    "runtime": {"typing", "structures"},
    "drawing": {"typing", "structures"},
    "training": {"typing", "structures", "geometry", "assigners", "models", "runtime"},
    "evaluation": {"typing", "structures", "geometry", "models", "runtime"},
    "run": {
        *("typing", "structures", "geometry", "assigners", "models", "data"),
        *("runtime", "drawing", "training", "evaluation"),
    },
    "configs": {"run"},
    "main": {"run", "runtime"},
    "cli": {"main", "run", "runtime", "config"},
}
"""Room -> the rooms that it may import from, beside itself. Only `run` sees a whole recipe."""

OUTSIDE = {
    "flax": {"models"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "array_record": {"data"},
    "cv2": {"data", "drawing", "run"},
    "PIL": {"data"},
    "pycocotools": {"evaluation"},
    "hotcoco": {"evaluation"},
    "optax": {"training"},
    "orbax": {"runtime"},
    "matplotlib": {"drawing"},
    "ml_collections": {"main", "configs", "run"},
    "absl": {"main", "data"},  # Grain reads absl flags
    "safetensors": {"models"},
    "torch": {"models"},
    "tensorboardX": {"runtime"},
    "wandb": {"runtime"},
    "jax2onnx": {"run"},
    "onnx": {"run"},
    "supervision": {"run"},
    "huggingface_hub": {"models", "run"},
}
"""Outside library -> the only places that may import it."""


def unit(path: Path) -> str:
    """The room that a file belongs to: its folder, or its own name."""
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


FILES = sorted(
    {*PACKAGE.rglob("*.py"), *(PACKAGE / "configs").glob("*.py")} - {PACKAGE / "__init__.py"}
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_file_sees_only_what_its_room_may(path):
    own = unit(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "atss_jax":
            allowed = OUTSIDE.get(parts[0])
            assert allowed is None or own in allowed, f"{path} imports {name}"
        elif len(parts) > 1 and parts[1] != own:  # the package itself is free to see
            assert parts[1] in SEES[own] | EVERYWHERE, f"{path} imports {name}"


def test_every_room_exists():
    assert set(SEES) == {unit(path) for path in FILES}
