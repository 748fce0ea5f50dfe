"""How Sphinx builds the site: ``./scripts/test -e docs``. It needs no network and neither do its readers."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

import distlock

project = "distlock"
author = "distlock contributors"
version = release = distlock.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True
# Only names of our own have a page here to lead to; the rest is shown as code.
nitpick_ignore_regex = [("py:.*", r"(?!distlock\.).*"), ("py:.*", r"distlock\.\w+(\.\w+)*\.[FLS]")]
suppress_warnings = ["myst.strikethrough"]

# Docstrings are plain prose: `a name` is whatever of that name there is, else just code.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False

highlight_language = "none"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
pygments_style = "friendly"
pygments_dark_style = "monokai"

html_theme = "furo"
html_title = f"distlock {version}"
html_static_path = ["_static"]
html_css_files = ["distlock.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}


def at_home(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """A type is defined in ``distlock._lock`` and documented where users import it from."""
    target = str(node.get("reftarget", ""))
    name = target.rpartition(".")[2] if target.startswith("distlock._") else target
    for module in ("distlock", "distlock.backends.base", "distlock.testing"):
        home = f"{module}.{name}"
        found = env.domains["py"].resolve_xref(
            env, node["refdoc"], app.builder, node.get("reftype", "obj"), home, node, content
        )
        if found is not None:
            return found
    return None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", at_home)
