"""The pinned environments of the peers, made when they are needed and kept in ``.tox/pinned``."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ._driver import ROOT, Failed
from ._peer import Peer

__all__ = ("python_of",)

FOLDER = ROOT / ".tox" / "pinned"


def python_of(peer: Peer) -> str:
    """The interpreter of its environment, which is made if it is not there; `Failed` if that cannot be."""
    if not peer.pins:
        return sys.executable
    pins = peer.pins.split()
    digest = hashlib.sha256(" ".join([peer.python, *sorted(pins)]).encode()).hexdigest()[:16]
    folder = FOLDER / digest
    python, whole = folder / "bin" / "python", folder / "whole"
    if not whole.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _run(_interpreter(peer.python), "-m", "venv", str(folder))
        # Without dependencies: the pins are all of them, and some peers insist on older drivers than they need.
        _run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", *pins)
        whole.write_text(" ".join(pins))
    return str(python)


def _interpreter(version: str) -> str:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = shutil.which(f"python{version}")
    of_pyenv = (str(path) for path in sorted(pyenv.glob(f"versions/{version}.*/bin/python")))
    for path in (sys.executable, *([on_path] if on_path else []), *of_pyenv):
        asked = "import sys; print('%d.%d' % sys.version_info[:2])"
        said = subprocess.run([path, "-c", asked], capture_output=True, text=True, check=False)
        if said.stdout.strip() == version:
            return path
    raise Failed(f"it needs Python {version}, which is neither on PATH nor in pyenv")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command[1:4])}: {(done.stderr or done.stdout).strip()[-300:]}")
