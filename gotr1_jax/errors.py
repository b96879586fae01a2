"""The two errors that a person running a command meets, and their exit codes."""

from __future__ import annotations


class GotR1Error(Exception):
    """Base of errors that are printed as one line, without a traceback."""

    exit_code = 1


class RunError(GotR1Error):
    """Something failed while running: a full disk, a lost checkpoint, too many bad updates."""

    exit_code = 1


class InputError(GotR1Error):
    """What the user gave cannot be used: a wrong path, key, value or combination."""

    exit_code = 2
