"""Every backend through the suite, in every colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import distlock
from distlock._open import BUILT_IN
from distlock.testing import Conformance, Store, redis_store

from .example_backend import SQLiteBackend


@pytest.mark.may_block
class TestMemory(Conformance):
    @pytest.fixture
    def store(self, request: pytest.FixtureRequest) -> Store:
        url = f"memory://{id(request)}"
        backend: Any = distlock.connect(url)._backend

        def lose(key: str) -> None:
            with backend._mutex:
                del backend._locks[key]

        return Store(connect=lambda: distlock.connect(url), lose=lose, left=lambda: [*backend._locks, *backend._wakes])


class TestFile(Conformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        url = f"file://{tmp_path}"
        backend: Any = distlock.connect(url)._backend
        return Store(
            connect=lambda: distlock.connect(url),
            lose=lambda key: Path(backend.path_of(key)).unlink(),
            url=url,
            left=lambda: [*tmp_path.glob("*/*.lock")],
        )


class TestRedis(Conformance):
    @pytest.fixture
    def store(self, redis_url: str) -> Store:
        return redis_store(redis_url)


class TestExample(Conformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        backend = SQLiteBackend(str(tmp_path / "locks.db"))
        return Store(connect=lambda: distlock.connect(SQLiteBackend(backend._path)), lose=backend.lose)


def test_every_backend_goes_through_the_suite() -> None:
    suites = {cls.__name__.removeprefix("Test").lower() for cls in Conformance.__subclasses__()}
    assert {module for module, _ in BUILT_IN.values()} <= suites
