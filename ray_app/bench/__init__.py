"""Benchmarks as commands: `ugt bench ...`."""
