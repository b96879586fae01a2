"""Trackers of experiments: where a run's metrics and sample images go besides its directory."""
