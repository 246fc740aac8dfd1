"""Sphinx configuration of the documentation; `bash scripts/build_docs.sh` builds it."""

import shutil
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

import generate_reference  # noqa: E402  (found by the line above)

import atss_jax  # noqa: E402

project = "atss_jax"
author = "The atss_jax authors"
copyright = "2026, the atss_jax authors"
version = release = atss_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "generated/fields.md"]  # fields.md is included by configuration.md

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # they hold their outputs; tests/test_notebooks.py runs them

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True}
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = f"atss_jax {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "home_page_in_toc": True,
}
copybutton_exclude = ".linenos, .gp, .go"
linkcheck_anchors = False  # of other sites; -W checks those of this one


def prepare(app: Any) -> None:
    """Writes what pages include: the recipe's fields, and the notebooks beside the pages."""
    generated = DOCS / "generated"
    generated.mkdir(exist_ok=True)
    (generated / "fields.md").write_text(generate_reference.fields_page())
    for notebook in (ROOT / "scripts/notebooks").glob("*.ipynb"):
        shutil.copy(notebook, generated / notebook.name)


def setup(app: Any) -> None:
    """Registers `prepare` with Sphinx."""
    app.connect("config-inited", lambda app, config: prepare(app))
