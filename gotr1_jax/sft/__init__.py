"""Losses of supervised training, as small pure functions."""
