"""Files of finished rows: read with their mistakes named, written whole or not at all."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atss_jax import files

KEYS = ("run", "preset", "seed", "command", "metrics", "evaluations", "steps", "all_seconds")
"""What every result has, besides "device" and "versions"."""


def read(path: Path) -> list[dict[str, Any]]:
    """Results of a shared folder or of a file that `report --json` wrote, each run once.

    Raises:
      ValueError: no such file or folder, one that is damaged, or something else.
    """
    if path.is_dir():
        hint = " Remove it, and its row runs again."
        return [_checked(_parsed(file, hint), file) for file in sorted(path.glob("rows/*.json"))]
    content = _parsed(path)
    if not isinstance(content, dict) or not isinstance(content.get("results"), list):
        raise ValueError(f"{path}: no results of `paper_rows.py report --json`. Give such a file.")
    found = [_checked(result, path) for result in content["results"]]
    names = [(result["preset"], result["run"], result["seed"]) for result in found]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}: has {'-'.join(map(str, double))} more than once. Remove one.")
    return found


def failed_jobs(path: Path) -> list[str]:
    """Names of the jobs of a shared folder that failed; none of a file."""
    return [file.stem for file in sorted(path.glob("failed/*.json"))] if path.is_dir() else []


def read_costs(path: Path, base: str) -> dict[str, float]:
    """A step's cost over the base's, by recipe, of a file of `bench_recipes.py --json`.

    Args:
      path: of the file.
      base: recipe that the others were measured against.

    Raises:
      ValueError: no such file, another base, or a recipe that could not be measured.
    """
    content = _parsed(path)
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, dict):
        raise ValueError(f"{path}: no figures of `bench_recipes.py --json`. Give such a file.")
    problems = {name: row["problem"] for name, row in rows.items() if "problem" in row}
    if problems:
        raise ValueError(f"{path}: not measured: {problems}. Measure again.")
    costs = {name: float(row["ratio"]) for name, row in rows.items()}
    if costs.get(base) != 1.0:
        raise ValueError(f"{path}: measured against another recipe than {base}, its first one.")
    return costs


def write(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Writes results into one file that `read` reads."""
    text = json.dumps({"results": list(results)}, indent=1, sort_keys=True) + "\n"
    files.write_whole(path, text)


def _parsed(path: Path, hint: str = "") -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}).{hint}") from error


def _checked(result: Any, path: Path) -> dict[str, Any]:
    missing = [key for key in KEYS if not isinstance(result, dict) or key not in result]
    if missing:
        raise ValueError(f"{path}: a result without {', '.join(missing)}: not of `paper_rows.py`.")
    return result
