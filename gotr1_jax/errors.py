"""What ends a command with one line for the person who ran it, and the exit codes."""

from __future__ import annotations


class GotR1Error(Exception):
    """Base of errors that are printed as one line, without a traceback."""

    exit_code = 1


class RunError(GotR1Error):
    """Something failed while running: a full disk, a lost checkpoint, too many bad updates."""

    exit_code = 1


class Stopped(GotR1Error):
    """The run was told to stop and did; nothing is wrong. 75 is sysexits' "try again"."""

    exit_code = 75


class InputError(GotR1Error):
    """What the user gave cannot be used: a wrong path, key, value or combination."""

    exit_code = 2
