"""The pages for people: their blocks of code, and `main`, which runs those of one page, in order.

``python`` blocks share one namespace, ``sh`` blocks the folder. A block that begins with ``# name.py`` is saved there
under that name, one that defines ``test_*`` is run by pytest as a file of its own, and a ``text`` block right behind
another says what that one prints (``...`` stands for anything).
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
import textwrap
import types
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

__all__ = ("ANYWHERE", "EXAMPLE_URL", "Block", "blocks_of", "fences_of")

EXAMPLE_URL = "redis://localhost:6379/0"
"""Stands in the pages for the server of the tests."""
ANYWHERE = "/tmp/"  # noqa: S108 - and this for the test's own folder

FENCE = re.compile(r"^( *)(```+)([^\n`]*)\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\w+\.py)\n")
TEST = re.compile(r"^ *(async )?def test_", re.MULTILINE)
NO_LOOPS = ("-p", "no:asyncio", "-p", "no:trio")
"""Plugins that are here for other tests; each would have a word to say on the page's own event loops."""
PRINTS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fence and what stands in it."""

    language: str
    line: int
    code: str
    prints: str | None = None

    @property
    def runs(self) -> bool:
        return self.language in ("python", "sh")


def fences_of(text: str) -> list[Block]:
    """Every fence of a page; a ``text`` that belongs to the one before is in that one's ``prints`` too."""
    found = list(FENCE.finditer(text))
    blocks = []
    for fence, after in zip_longest(found, found[1:]):
        output = None
        if after is not None and after[3] == "text" and not text[fence.end() : after.start()].strip():
            output = textwrap.dedent(after[4])
        line = text.count("\n", 0, fence.start(4)) + 1
        blocks.append(Block(fence[3].strip(), line, textwrap.dedent(fence[4]), output))
    return blocks


def blocks_of(page: Path) -> list[Block]:
    """What of a page can be run."""
    return [block for block in fences_of(page.read_text(encoding="utf-8")) if block.runs]


def main(page: str, *skipped_lines: str) -> None:
    """Runs the blocks of ``page`` in the current folder, but for those at ``skipped_lines``, and says how many."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    done = 0
    for block in blocks_of(Path(page)):
        if str(block.line) not in skipped_lines:
            printed = _pretty(_run(block, page, vars(module)))
            if block.prints is not None and not doctest.OutputChecker().check_output(block.prints, printed, PRINTS):
                sys.exit(f"{page}:{block.line} printed:\n{printed}\nand not:\n{block.prints}")
            done += 1
    print(f"{done} blocks ran")  # noqa: T201 - a program


def _run(block: Block, page: str, namespace: dict[str, object]) -> str:
    code = block.code.replace(EXAMPLE_URL, os.environ["DISTLOCK_URL"]).replace(ANYWHERE, f"{os.getcwd()}/")
    if block.language == "sh":
        return _output("bash", "-euo", "pipefail", "-c", code)
    named = FILE.match(code)
    if named:
        Path(named[1]).write_text(code, encoding="utf-8")
    if TEST.search(code):
        return _tested(code, named[1] if named else f"test_line_{block.line}.py")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * (block.line - 1) + code, page, "exec"), namespace)  # noqa: S102 - this is what it is for
    return printed.getvalue()


def _tested(code: str, name: str) -> str:
    Path(name).write_text(code, encoding="utf-8")
    report = _output(sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *NO_LOOPS, name)
    if " passed" not in report or "skipped" in report:
        sys.exit(f"not all tests ran:\n{report}")
    return report


def _output(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[-1]!r} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def _pretty(printed: str) -> str:
    """As the reader would see it."""
    return printed.replace(os.environ["DISTLOCK_URL"], EXAMPLE_URL).replace(f"{os.getcwd()}/", ANYWHERE)


if __name__ == "__main__":
    main(*sys.argv[1:])
