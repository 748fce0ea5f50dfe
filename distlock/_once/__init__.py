"""Work that is to be done once: the implementation of `distlock.idempotency`."""
