"""The configuration reference as Markdown, from the recipe's dataclasses.

python docs/generate_reference.py
"""

from atss_jax.config import FieldInfo, field_infos
from atss_jax.run.recipe_io import GROUPS


def fields_page() -> str:
    """One section per group of the recipe, one table row per field."""
    return "\n".join(_section(name) for name in GROUPS)


def _section(name: str) -> str:
    rows = [_row(info) for info in field_infos(GROUPS[name])]
    head = [f"## {name}", "", _group_summary(name), ""]
    table = ["| field | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(head + table)


def _group_summary(name: str) -> str:
    """First paragraph of the group's docstring."""
    return " ".join((GROUPS[name].__doc__ or "").split("\n\n")[0].split())


def _row(info: FieldInfo) -> str:
    cells = (f"`{info.name}`", info.type, f"`{info.default!r}`", info.description)
    return "| " + " | ".join(_escape(cell) for cell in cells) + " |"


def _escape(text: str) -> str:
    """Text that does not end a table cell or start emphasis outside code."""
    parts = text.replace("|", "\\|").split("`")
    for i in range(0, len(parts), 2):  # outside of backticks
        for mark in "*_<[$":
            parts[i] = parts[i].replace(mark, "\\" + mark)
    return "`".join(parts)


if __name__ == "__main__":
    print(fields_page())
