"""Becomes another program, which the kernel kills when the process that started it dies, even by ``kill -9``.

usage: tied.py PARENT COMMAND [ARGUMENT…]

Linux alone has this; elsewhere it is as if the command had been started directly. What the command itself starts is
not tied. Run as a file, with nothing imported that takes time.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)

if __name__ == "__main__":
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == int(parent):  # else it has died before it was looked for
        os.execvp(command[0], command)
