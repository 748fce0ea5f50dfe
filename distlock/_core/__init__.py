"""Acquiring, keeping and releasing, written once for sync code, asyncio and trio. Knows no driver."""
