"""A network that the kernel cuts: nothing goes wrong behind it, in whichever direction packets vanish."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .wires import why_no_wire


def test_nothing_goes_wrong_behind_a_wire_that_is_cut(tmp_path):
    reason = why_no_wire()
    if reason:
        pytest.skip(f"no network namespaces for everyone: {reason}")
    # A machine may stand still for seconds, which no network is to blame for.
    options = ["--wired", "--fault", "all of them", "--seconds", "8", "--grace", "15", "--out", str(tmp_path / "logs")]
    done = subprocess.run([sys.executable, "-m", "tests.proof", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
