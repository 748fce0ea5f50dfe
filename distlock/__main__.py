"""``python -m distlock``."""

from .cli import main

main()
