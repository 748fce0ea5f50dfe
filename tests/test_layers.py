"""Imports run one way: cli → manager → lock, lease → _core → backends.base → types, errors."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import distlock

PACKAGE = Path(distlock.__file__).parent


class Layer(NamedTuple):
    """What the modules of a layer may import besides each other: other layers, and packages from outside."""

    layers: frozenset[str]
    packages: frozenset[str] = frozenset()


def layer(layers: str, packages: str = "") -> Layer:
    return Layer(frozenset(layers.split()), frozenset(packages.split()))


ANY_BACKEND = "backends.*"
FOUNDATION = "_types _errors _clock"
CONTRACT = f"{FOUNDATION} instrumentation backends.base"
SHARED = (  # by stores of one shape
    "backends._clerk backends._dice backends._placed backends._places backends._records backends._urls"
)
RECIPES = f"{CONTRACT} _options _wrapping _core _lock _lease"
# A module belongs to the layer with its name or the longest dotted prefix of it. Drivers stand beside
# the one layer that may know them. A new module at the top must be placed here.
LAYERS = {
    "_errors": layer(FOUNDATION),
    "_types": layer(FOUNDATION),
    "_clock": layer(FOUNDATION),
    "instrumentation": layer(FOUNDATION),
    "backends": layer(CONTRACT),  # the folder's own __init__
    "backends.base": layer(FOUNDATION),
    "backends._clerk": layer("backends.base"),
    "backends._dice": layer("backends.base"),
    "backends._placed": layer("backends.base backends._clerk backends._places"),
    "backends._places": layer("backends.base backends._records"),
    "backends._records": layer("backends.base"),
    "backends._urls": layer("backends.base"),
    "backends.memory": layer(f"{FOUNDATION} backends.base"),
    "backends.file": layer(f"{FOUNDATION} backends.base backends._dice"),
    "backends.redis": layer(f"{FOUNDATION} backends.base backends._dice", "redis anyio"),
    "backends.etcd": layer(f"{FOUNDATION} backends.base {SHARED}", "grpc google"),
    "backends.zookeeper": layer(f"{FOUNDATION} backends.base {SHARED}", "kazoo puresasl"),
    "_options": layer(FOUNDATION),
    "_open": layer(CONTRACT),
    "_core": layer(CONTRACT, "anyio"),
    "_who": layer(f"{FOUNDATION} _core"),
    "_lease": layer(RECIPES, "anyio"),
    "_lock": layer(RECIPES, "anyio"),
    "_wrapping": layer(FOUNDATION),
    "_once": layer(RECIPES),
    "_manager": layer(f"{RECIPES} _once _open _who", "anyio"),
    "_default": layer(f"{RECIPES} _once _manager"),
    "": layer(f"{RECIPES} _manager _default"),  # distlock/__init__.py
    "bench": layer(
        f"{RECIPES} _open _manager testing {ANY_BACKEND}", "anyio grpc kazoo matplotlib psutil redis rich sqlalchemy"
    ),
    "cli": layer(f"{RECIPES} _open _manager bench testing", "typer rich anyio"),
    "__main__": layer("cli"),
    "contrib": layer("idempotency", "anyio apscheduler celery sqlalchemy"),
    "idempotency": layer(f"{FOUNDATION} _once _default"),
    "testing": layer(
        f"{RECIPES} _open _who _manager _default idempotency {ANY_BACKEND}", "anyio pytest trio hypothesis redis rich"
    ),
}
# What stands above the library uses it as everyone does: `from distlock import ...`.
USERS = {"bench", "cli", "contrib", "testing"}


def layer_of(module: str) -> str | None:
    """The layer of a module, which is given by its name inside distlock; None if it has no place."""
    parts = module.split(".") if module else []
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in LAYERS and not (name == "backends" and length < len(parts)):
            return name
    return None if parts else ""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> Iterator[str]:
    """All imports of a file as absolute names, lazy ones too, but not those that only type checkers see."""
    module = ["distlock", *module_name(path).split(".")] if module_name(path) else ["distlock"]
    package = module if path.name == "__init__.py" else module[:-1]
    for node in runtime_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            # `from .backends import redis` names a module, `from ._types import Grant` does not.
            yield from (f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base for alias in node.names)


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from [other, *runtime_nodes(other)]
        else:
            yield child
            yield from runtime_nodes(child)


def is_module(name: str) -> bool:
    if not name.startswith("distlock."):
        return False
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").exists() or path.is_dir()


def is_allowed(importer: str, imported: str) -> bool:
    own = LAYERS[importer]
    root, _, inside = imported.partition(".")
    if root != "distlock":
        return root in sys.stdlib_module_names or root == "__future__" or root in own.packages
    if not inside:
        return importer in USERS
    target = layer_of(inside)
    return (
        target == importer
        or target in own.layers
        or (ANY_BACKEND in own.layers and inside.startswith("backends."))
        # A user of the library may import its public modules.
        or (importer in USERS and target in ("idempotency", "instrumentation", "backends.base"))
    )


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path) or "distlock")
def test_imports_run_one_way(path):
    importer = layer_of(module_name(path))
    assert importer is not None, "a new module: give it a place in LAYERS"
    wrong = sorted({name for name in imports_of(path) if not is_allowed(importer, name)})
    assert wrong == []


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("_errors", "distlock.backends.base"),
        ("_core", "distlock._lock"),
        ("_core", "distlock.backends.redis"),
        ("_core", "redis.asyncio"),
        ("_lock", "distlock._manager"),
        ("_manager", "distlock.cli"),
        ("_manager", "kazoo"),
        ("backends.memory", "distlock._core.drive"),
        ("backends.redis", "distlock.backends.memory"),
        ("backends.redis", "distlock"),
    ],
)
def test_the_other_way_is_refused(importer, imported):
    assert not is_allowed(importer, imported)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("cli", "distlock"),
        ("_manager", "distlock._lock"),
        ("_lock", "distlock._core.acquire"),
        ("_core", "distlock.backends.base"),
        ("backends.redis", "distlock.backends.redis.scripts"),
        ("backends.redis", "redis.asyncio"),
    ],
)
def test_the_right_way_is_open(importer, imported):
    assert is_allowed(importer, imported)
