"""What the docs claim: doctests run, README commands name files and fields that exist."""

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest

from atss_jax import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
MODULES = [
    "atss_jax." + ".".join(path.relative_to(ROOT / "atss_jax").with_suffix("").parts)
    for path in sorted((ROOT / "atss_jax").rglob("*.py"))
    if ">>> " in path.read_text() and path.name != "__init__.py"
] + ["atss_jax.configs.common"]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    failed, tried = doctest.testmod(importlib.import_module(name), verbose=False)
    assert tried > 0 and failed == 0


def commands():
    """Shell commands of the README's bash blocks, continuation lines joined, comments dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in (shlex.split(x, comments=True) for x in lines) if line]


def test_readme_has_commands():
    assert len(commands()) >= 10


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_readme_command_names_what_exists(words):
    files = [w.split(":")[0] for w in words if re.match(r"(scripts|configs)/[\w/]+\.(py|sh)", w)]
    files += [w.removeprefix("--config=").split(":")[0] for w in words if w.startswith("--config=")]
    for file in files:
        if "..." not in file:
            assert (ROOT / file).is_file(), file
    if "atss_jax.main" in words:
        assert main.check_flag_names(words[words.index("atss_jax.main") + 1 :]) is None


def test_readme_links_exist():
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
