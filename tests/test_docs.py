"""What README and docs claim: links, files, commands, fields and Python exist; doctests run."""

import ast
import doctest
import importlib
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from atss_jax import cli, main
from atss_jax.config import field_infos
from atss_jax.run import recipe_files
from atss_jax.run.recipe_io import GROUPS, field_names

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
}
MODULES = [
    "atss_jax." + ".".join(path.relative_to(ROOT / "atss_jax").with_suffix("").parts)
    for path in sorted((ROOT / "atss_jax").rglob("*.py"))
    if ">>> " in path.read_text() and path.name != "__init__.py"
] + ["atss_jax.configs.common"]
NO_FIELDS = {"run.lock", "model.safetensors", "data.yaml"}
"""Names of files that look like fields."""
FOREIGN = {"path", "export", "tools"}
"""Folders in examples, of a workdir, of other projects."""


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    failed, tried = doctest.testmod(importlib.import_module(name), verbose=False)
    assert tried > 0 and failed == 0


def blocks(language):
    """(page, text) of the code blocks in a language."""
    pattern = rf"^```{language}\n(.*?)^```"
    return [(p, b) for p, text in PAGES.items() for b in re.findall(pattern, text, re.S | re.M)]


def shell_blocks():
    """(page, text) of what readers type: bash blocks, and the commands of console blocks."""
    consoles = [(p, "\n".join(re.findall(r"^\$ (.*)", b, re.M))) for p, b in blocks("console")]
    return [*blocks("bash"), *consoles]


def commands():
    """(page, words) of the commands in shell blocks."""
    found = []
    for page, block in shell_blocks():
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            found += [(page, words)] if words else []
    return found


def inline_code():
    """(page, text) of the code within sentences and tables."""
    found = []
    for page, text in PAGES.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
        found += [(page, code) for code in re.findall(r"`([^`\n]+)`", prose)]
    return found


def anchors(page):
    """Anchors of the headings of a page, as GitHub and MyST name them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_exist(page):
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", PAGES[page]):
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        if path.parent == ROOT / "docs/generated":
            continue  # made when the site is built
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text()), target


def test_files_named_in_sentences_exist():
    rooms = {p.name for p in (ROOT / "atss_jax").iterdir() if p.is_dir()} - {"configs"}
    pattern = r"(\w+)/[\w/.]+\.(py|sh|md|sbatch|yaml|ipynb)"
    named = [c.split()[-1] for _, c in inline_code()]
    named = [n for n in named if (m := re.fullmatch(pattern, n)) and m[1] not in FOREIGN]
    assert len(named) > 30
    for name in named:
        room = name.partition("/")[0]
        assert (ROOT / ("atss_jax" if room in rooms else "") / name).is_file(), name


@pytest.mark.parametrize(("page", "text"), shell_blocks())
def test_shell_parses(page, text):
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert done.returncode == 0, f"{page}: {done.stderr}"


@pytest.mark.parametrize(
    ("page", "words"), commands(), ids=lambda v: v if isinstance(v, str) else " ".join(v)[:60]
)
def test_command_names_what_exists(page, words):
    for word in words:
        if re.match(r"scripts/[\w/]+\.(py|sh)", word):
            assert (ROOT / word).is_file(), f"{page}: {word}"
        if word.startswith("--config=") and "path/to" not in word:
            recipe_files.load_recipe(word.removeprefix("--config="))
    if words[0].rpartition("/")[2] == "atss" and words[1] in cli.MODES:
        given = [word for word in words[2:] if word != "..."]
        assert main.check_flag_names(cli.main_flags(words[1], given)) is None
    if "atss_jax.main" in words:
        flags = words[words.index("atss_jax.main") + 1 :]
        text = " ".join(flags)
        assert "--config" in text or re.search(
            "--mode=(eval|predict|export|describe|selftest)", text
        )
        assert main.check_flag_names(flags) is None


def test_commands_named_exist():
    shells = [" ".join(words) for _, words in commands()]
    named = [text for text in (*shells, *(code for _, code in inline_code())) if "atss " in text]
    named = [m[1] for text in named if (m := re.match(r"(?:\S+/)?atss ([a-z]+)", text))]
    assert len(named) > 40
    assert set(named) <= {*cli.MODES, *cli.TOOLS, "config"}


def test_fields_named_in_sentences_exist_and_take_the_value():
    infos = {f"{i.group}.{i.name}": i for group in GROUPS.values() for i in field_infos(group)}
    pattern = rf"(?:--config\.)?((?:{'|'.join(GROUPS)})\.\w+)(?:=(.*))?"
    named = {}
    for page, code in inline_code():
        if page == "CHANGELOG.md" or code in NO_FIELDS:
            continue
        for word in shlex.split(code) if "--config." in code else [code]:
            if match := re.fullmatch(pattern, word):
                named[match.groups()] = page
    assert len(named) > 100
    for (field, value), page in named.items():
        assert field in field_names(), f"{page}: {field}"
        choices = infos[field].choices
        if value and choices and value[0] not in "(.":
            assert value.strip("\"'") in choices, f"{page}: {field}={value}"


def test_recipes_named_in_sentences_load():
    pattern = rf"(?:--config=)?((?:{'|'.join(recipe_files.packaged_names())})(?::.+)?)"
    named = {m[1] for _, code in inline_code() if (m := re.fullmatch(pattern, code))}
    named = {name for name in named if "..." not in name}
    assert len(named) > 12
    for name in named:
        recipe_files.load_recipe(name)


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_compiles_and_its_imports_exist(page, text):
    for node in ast.walk(ast.parse(text, page)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("atss_jax"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or importlib.util.find_spec(inside), inside


def test_readme_stays_a_page():
    assert len(PAGES["README.md"].splitlines()) < 150


def test_configuration_reference_has_every_field():
    spec = importlib.util.spec_from_file_location("_reference", ROOT / "docs/generate_reference.py")
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    rows = re.findall(r"^## (\w+)$|^`(\w+)` = `", reference.fields_page(), re.M)
    group, found = "", []
    for heading, field in rows:
        group = heading or group
        found += [f"{group}.{field}"] if field else []
    assert found == field_names()
