"""Work that is done once, on every store that keeps results, in every colour."""

from __future__ import annotations

import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import distlock
from distlock.testing import OnceConformance, Store


@pytest.mark.may_block
class TestMemory(OnceConformance):
    @pytest.fixture
    def store(self) -> Store:
        url = f"memory://{uuid.uuid4()}"
        backend: Any = distlock.connect(url)._backend.results()
        return Store(
            connect=partial(distlock.connect, url),
            lose=lambda key: backend._locks.pop(key),
            left=lambda: [*backend._locks, *backend._wakes, *backend._records],
        )


class TestFile(OnceConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        url = f"file://{tmp_path}"
        backend: Any = distlock.connect(url)._backend.results()
        return Store(
            connect=partial(distlock.connect, url),
            lose=lambda key: Path(backend.path_of(key)).unlink(),
            url=url,
            left=lambda: [path for path in tmp_path.rglob("*.*") if not path.name.startswith(".clock-")],
        )
