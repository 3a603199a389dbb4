"""The documentation site: `make docs` builds it into build/docs; a warning is an error."""

from sphinx.application import Sphinx

import deftx

project = "deftx"
author = "The deftx contributors"
release = deftx.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
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
napoleon_numpy_docstring = False
napoleon_attr_annotations = True
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88


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
