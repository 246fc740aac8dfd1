"""The API reference is complete: names, parameters, errors, shapes.

`ruff` (rules D) sees to it that everything public has a docstring at all.
"""

import ast
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import atss_jax

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
LISTED = re.findall(r"auto(?:function|class):: (\S+)", PAGE.read_text())


def find(dotted):
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def documented_units():
    """(name, object, docstring) of every listed function, class and public method."""
    for dotted in LISTED:
        found = find(dotted)
        yield dotted, found, found.__doc__
        if not inspect.isclass(found):
            continue
        for name, member in vars(found).items():
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if not name.startswith("_") and inspect.isfunction(function):
                yield f"{dotted}.{name}", function, function.__doc__


UNITS = {name: (found, doc) for name, found, doc in documented_units()}


def section(doc, *titles):
    """Text of a docstring's section, as `Args`."""
    for title in titles:
        found = re.search(rf"^ *{title}:\n((?: +.*\n|\n)+)", inspect.cleandoc(doc) + "\n", re.M)
        if found:
            return found[1]
    return ""


def test_every_public_name_is_listed():
    public = {id(getattr(atss_jax, name)) for name in atss_jax.__all__}
    listed = {id(find(dotted)) for dotted in LISTED}
    missing = [name for name in atss_jax.__all__ if id(getattr(atss_jax, name)) not in listed]
    assert public <= listed, missing


@pytest.mark.parametrize("name", UNITS)
def test_parameters_errors_and_shapes_are_documented(name):
    found, doc = UNITS[name]
    assert doc, "no docstring"
    parameters = [
        parameter
        for parameter in inspect.signature(found).parameters.values()
        if parameter.name not in ("self", "cls") and not parameter.name.startswith("_")
    ]
    text = section(doc, "Args", "Attributes")
    source = textwrap.dedent(inspect.getsource(found))
    for parameter in parameters:
        is_field = re.search(rf'^    {parameter.name}:[^\n]*\n    """', source, re.M)
        is_listed = re.search(rf"^ *\*{{0,2}}(?:\w+, )*{parameter.name}\b", text, re.M)
        assert is_field or is_listed, f"{parameter.name} is not described"
        annotation = str(parameter.annotation)
        if annotation in ("Array", "np.ndarray", "<class 'jax.Array'>", "<class 'numpy.ndarray'>"):
            pytest.fail(f"{parameter.name} has no shape")
    if inspect.isfunction(found):
        raises = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise)]
        assert not raises or section(doc, "Raises"), "Raises is missing"
