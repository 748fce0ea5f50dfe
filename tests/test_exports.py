"""`__all__` says what a module offers: all of it, in order, and nothing that is not there."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

import distlock

PACKAGE = Path(distlock.__file__).parent
MODULES = [
    "distlock",
    *sorted(
        found.name
        for found in pkgutil.walk_packages([str(PACKAGE)], "distlock.")
        if not found.name.endswith(".__main__")  # importing it would run it
    ),
]
PUBLIC = [name for name in MODULES if not any(part.startswith("_") for part in name.split("."))]
# The command line is a program: its functions are commands, not an API.
LIBRARY = [name for name in PUBLIC if not name.startswith("distlock.cli")]


def order(name: str) -> tuple[int, str]:
    """CONSTANTS, Classes, functions: the order that ruff's RUF022 keeps."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2, name)


def defined_names(module: str) -> set[str]:
    """The names without an underscore that a module's own source defines at its top level."""
    source = importlib.import_module(module).__file__
    assert source is not None
    names = set()
    for node in ast.parse(Path(source).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_says_what_it_exports(name):
    module = importlib.import_module(name)
    is_empty = len(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body) <= 1  # its docstring
    assert is_empty or isinstance(module.__all__, tuple)


@pytest.mark.parametrize("name", MODULES)
def test_exports_exist_once_and_in_order(name):
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", ())
    assert [entry for entry in exported if not hasattr(module, entry)] == []
    assert list(exported) == sorted(set(exported), key=order)


@pytest.mark.parametrize("name", LIBRARY)
def test_what_a_public_module_defines_is_exported(name):
    module = importlib.import_module(name)
    missing = {
        entry
        for entry in defined_names(name) - set(getattr(module, "__all__", ()))
        if not isinstance(getattr(module, entry, None), TypeVar | ParamSpec)
    }
    assert missing == set(), f"export them, or begin their names with an underscore: {sorted(missing)}"


def test_every_folder_of_code_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
