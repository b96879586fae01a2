"""Compares a judge with labels: `gotr1 judge --calibrate`."""
