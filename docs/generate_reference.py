"""The configuration reference as Markdown, from the recipe's dataclasses.

python docs/generate_reference.py
"""

from atss_jax.config import FieldInfo, field_infos
from atss_jax.run.recipe_io import GROUPS


def fields_page() -> str:
    """One section per group of the recipe, one definition per field."""
    return "\n".join(_section(name) for name in GROUPS)


def _section(name: str) -> str:
    fields = [_definition(info) for info in field_infos(GROUPS[name])]
    return "\n".join([f"## {name}", "", _group_summary(name), "", *fields])


def _group_summary(name: str) -> str:
    """First paragraph of the group's docstring."""
    return " ".join((GROUPS[name].__doc__ or "").split("\n\n")[0].split())


def _definition(info: FieldInfo) -> str:
    """A definition list entry: long defaults and meanings both have the page's whole width."""
    return (
        f"`{info.name}` = `{info.default!r}`\n"
        f": {_escape(info.description)}\n"
        f"  *{_escape(info.type)}*\n"
    )


def _escape(text: str) -> str:
    """Text without the marks that Markdown would read, but for code."""
    parts = text.split("`")
    for i in range(0, len(parts), 2):  # outside of backticks
        for mark in "*_<[$":
            parts[i] = parts[i].replace(mark, "\\" + mark)
    return "`".join(parts)


if __name__ == "__main__":
    print(fields_page())
