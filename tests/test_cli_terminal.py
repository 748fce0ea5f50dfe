"""``distlock run`` on a terminal: Ctrl-C, Ctrl-Z, pipelines and job control, under a shell as a person has it."""

from __future__ import annotations

import os
import pty
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import distlock

from .children import untraced
from .test_cli_run import end_all, env

__all__ = ("env",)


class Shell:
    """An interactive one, as a person has it."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], {**env, "PS1": "READY> "})  # noqa: S606
        self.shown = ""
        self.expect("READY> ")

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def expect(self, pattern: str) -> str:
        """Waits for it; what it matched. What came before is forgotten."""
        while not (found := re.search(pattern, self.shown)):
            self.shown += os.read(self._end, 4096).decode(errors="replace")
        self.shown = self.shown[found.end() :]
        return found[0]

    def continues(self, typed: str, shown: str) -> None:
        """The stopped command is brought back, and reads what is typed then."""
        self.type("fg\n")
        self.expect("distlock run k[^\n]*\n")
        self.type(typed)
        self.expect(shown)

    def close(self) -> None:
        end_all(self.pid)
        os.waitpid(self.pid, 0)
        os.close(self._end)


@pytest.fixture
def shell(env: dict[str, str], tmp_path: Path) -> Iterator[Shell]:
    shell = Shell({**untraced(env), "PY": sys.executable}, tmp_path)
    yield shell
    shell.close()


RUN = '"$PY" -m distlock run k --ttl 30 -- '


def test_the_terminal_is_the_commands(shell):
    shell.type(f"{RUN} sh -c 'echo one; read x; echo got $x'; echo status $?\n")
    shell.expect("one\r\n")
    shell.type("this\n")
    shell.expect("got this\r\n")
    shell.expect("status 0\r\n")
    shell.type("echo still mine\n")
    shell.expect("still mine\r\n")


def test_ctrl_c_is_for_the_command(shell):
    script = 'trap "echo caught; exit 9" INT; echo one; while :; do sleep 0.01; done'
    shell.type(f"{RUN} sh -c '{script}'; echo status $?\n")
    shell.expect("one\r\n")
    shell.type("\x03")
    shell.expect("caught\r\n")
    shell.expect("status 9\r\n")


def test_ctrl_c_ends_the_shells_loop_too(shell):
    shell.type(f"for i in 1 2 3; do {RUN} sh -c 'echo begun; exec sleep 1001'; done; echo over $?\n")
    shell.expect("begun\r\n")
    shell.type("\x03")
    shell.expect("READY> ")
    shell.type("echo next\n")
    shell.expect("next\r\n")
    assert "begun" not in shell.shown


def test_a_pipeline_keeps_its_terminal(shell):
    """less, for one, would be stopped if the command had it."""
    shell.type(f"{RUN} sh -c 'echo one; sleep 0.1' | sh -c 'cat; read x < /dev/tty; echo got $x'\n")
    shell.expect("one\r\n")
    shell.type("this\n")
    shell.expect("got this\r\n")
    shell.type(f"echo piped | {RUN} sh -c 'cat; read x < /dev/tty; echo got $x' | cat\n")
    shell.expect("piped\r\n")
    shell.type("that\n")
    shell.expect("got that\r\n")


def test_the_others_of_a_pipeline_have_the_terminal_while_the_command_runs(shell):
    waits = "touch begun; while [ ! -e go ]; do sleep 0.02; done"
    reads = "while [ ! -e begun ]; do sleep 0.02; done; echo asks; read x < /dev/tty; echo got $x; touch go; cat"
    shell.type(f"{RUN} sh -c '{waits}' | sh -c '{reads}'; echo status $?\n")
    shell.expect("asks\r\n")
    shell.type("this\n")
    shell.expect("got this\r\n")
    shell.expect("status 0\r\n")


def test_ctrl_z_while_it_waits_for_the_lock(shell, env):
    with distlock.connect(env["DISTLOCK_URL"]) as locks:
        with locks.lock("k"):
            shell.type(f"{RUN} echo entered\n")
            shell.expect("waiting for 'k'")
            shell.type("\x1a")
            shell.expect("Stopped")
            shell.expect("READY> ")
        shell.type("fg\n")
        shell.expect("\nentered\r\n")


def test_ctrl_z_and_fg(shell):
    shell.type(f"{RUN} sh -c 'echo one; read x; echo got $x'; echo status $?\n")
    shell.expect("one\r\n")
    shell.type("\x1a")
    shell.expect("Stopped")
    shell.expect("READY> ")
    shell.continues("this\n", "got this\r\n")


def test_in_the_background_it_waits_for_its_turn_at_the_terminal(shell):
    shell.type(f"{RUN} sh -c 'read x; echo got $x' &\n")
    shell.expect("READY> ")
    shell.type("while ! jobs | grep -q Stopped; do sleep 0.05; done; echo it is stopped\n")
    shell.expect("it is stopped\r\n")
    shell.continues("this\n", "got this\r\n")


def test_waiting_is_said_on_a_terminal(shell, env):
    with distlock.connect(env["DISTLOCK_URL"]) as locks:
        with locks.lock("k"):
            shell.type(f"{RUN} echo entered; echo status $?\n")
            shell.expect("distlock: waiting for 'k'")
        shell.expect("\nentered\r\n")
        shell.expect("status 0\r\n")
