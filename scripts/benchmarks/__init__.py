"""Benchmarks: `python -m scripts.benchmarks NAME [--json FILE]`, or `scripts/bench NAME`."""
