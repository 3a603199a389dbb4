"""The documentation site: `make docs` builds it into build/docs, and takes a warning for an error."""

import re

from sphinx.application import Sphinx

import deftx

project = "deftx"
author = "The deftx contributors"
release = deftx.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["figures"]
html_theme = "furo"
html_title = "deftx"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
myst_heading_anchors = 3
default_role = "code"  # docstrings write `name`
smartquotes = False
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88

ENTRY = re.compile(
    r"(\w[\w, ]*?) {2,}(\S.*)"
)  # "name  what it is", and more lines of it further in


def _as_definitions(
    app: object, kind: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Turn our docstrings' columns of names and meanings into reST's lists of definitions, in place."""
    laid_out: list[str] = []
    for line in lines:
        if entry := ENTRY.fullmatch(line):
            laid_out += ["", f"**{entry[1]}**", f"   {entry[2]}"]
        elif laid_out and laid_out[-1].startswith("   ") and line.startswith("    "):
            laid_out.append(f"   {line.strip()}")
        else:
            laid_out.append(line)
    lines[:] = laid_out


def _plain_defaults(
    app: object,
    kind: str,
    name: str,
    thing: object,
    options: object,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """A signature that Sphinx can read where a dataclass has a mapping by default."""
    return signature and signature.replace("<factory>", "{}"), returned


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _plain_defaults)
    app.connect("autodoc-process-docstring", _as_definitions)
