"""Finds and loads recipe files: `--config=configs/x.py:argument`, or a packaged recipe by name.

ml_collections 1.1 loads such files by a call that Python 3.15 removes and that warns since 3.12, so
the file is loaded here.
"""

import difflib
import importlib.util
import re
from pathlib import Path

from ml_collections import ConfigDict

from atss_jax.errors import UserError

PACKAGED = Path(__file__).resolve().parents[1] / "configs"
"""Folder of the recipes that come with the package."""


def packaged_names() -> list[str]:
    """Names of the packaged recipes.

    >>> "quickstart" in packaged_names()
    True
    """
    files = sorted(PACKAGED.glob("*.py"))
    return [f.stem for f in files if f.stem not in ("__init__", "common")]


def find_recipe(name: str) -> Path:
    """The file of a recipe: an existing path, or the name of a packaged one.

    Args:
      name: "configs/quickstart.py", "quickstart.py", "quickstart", or a file of your own.

    Raises:
      UserError: there is no such file; names the nearest packaged recipe.
    """
    if not name:
        raise UserError(f"--config is empty. Give a path, or one of {', '.join(packaged_names())}.")
    path = Path(name).expanduser()
    if path.is_file():
        return path
    packaged = PACKAGED / f"{path.stem}.py"
    if str(path.parent) in (".", "configs") and path.stem in packaged_names():
        return packaged
    near = difflib.get_close_matches(path.stem, packaged_names(), n=1, cutoff=0.0)[0]
    raise UserError(
        f"--config={name}: no such file. Did you mean --config={near}? Give a path, or one of "
        f"{', '.join(packaged_names())}."
    )


def load_recipe(text: str) -> ConfigDict:
    """The ConfigDict of a recipe file.

    Args:
      text: "file.py" or "file.py:argument", see `find_recipe`.

    Raises:
      UserError: no such file, a file that cannot be imported, or one whose `get_config` is missing
        or fails.
    """
    match = re.fullmatch(r"(.*?\.py|[^:]*)(?::(.*))?", text, flags=re.DOTALL)
    name, argument = (match[1], match[2] or "") if match else (text, "")
    path = find_recipe(name)
    spec = importlib.util.spec_from_file_location(f"_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={name}: not a Python file. A recipe is a .py file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except (ImportError, OSError, SyntaxError, TypeError, ValueError, NameError) as error:
        raise UserError(f"--config={name}: cannot be imported: {error}") from error
    if not hasattr(module, "get_config"):
        raise UserError(
            f"--config={name}: has no function get_config(arg). See configs/coco_json.py."
        )
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except UserError:
        raise
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"--config={text}: get_config failed: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config={name}: get_config returns {type(config).__name__}, not a ConfigDict. "
            "Return common.config_dict(recipe), as configs/coco_json.py does."
        )
    return config
