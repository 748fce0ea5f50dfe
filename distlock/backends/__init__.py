"""Where locks live: one module or package per kind of store."""
