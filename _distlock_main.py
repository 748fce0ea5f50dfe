"""Where the command ``distlock`` starts. Outside the package, whose import takes a while: Ctrl-C in it is no error."""

import signal

__all__ = ("main",)


def main() -> None:
    """Runs the command line and exits."""
    caught = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if caught:  # and not ignored, as under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from distlock.cli import main as run

    if caught:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
