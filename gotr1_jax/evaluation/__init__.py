"""Benchmarks that papers report, and what a model still understands: `gotr1 eval`."""
