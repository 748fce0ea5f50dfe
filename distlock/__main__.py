"""``python -m distlock``."""

from .cli import main

raise SystemExit(main())
