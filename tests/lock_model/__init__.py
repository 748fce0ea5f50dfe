"""The whole of distlock on a clock, threads, a network and stores that are simulated: see docs/proof.md."""
