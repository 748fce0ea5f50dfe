"""The shop on trial: a crowd, faults, protections switched off, the audit, the pace. The shop knows nothing of it."""
