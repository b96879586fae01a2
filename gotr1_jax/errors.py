"""Errors that end a command with a one-line message, and their exit codes."""

from __future__ import annotations


class GotR1Error(Exception):
    """Base of errors that are printed as one line, without a traceback."""

    exit_code = 1


class RunError(GotR1Error):
    """Something failed while running: a full disk, a lost checkpoint, too many bad updates."""

    exit_code = 1


class UnreachableError(RunError):
    """A server does not answer, and may do so later."""


class Stopped(GotR1Error):
    """The run stopped on request, without an error. 75 is EX_TEMPFAIL of sysexits.h: try again."""

    exit_code = 75


class InputError(GotR1Error):
    """Invalid input: a wrong path, key, value or combination."""

    exit_code = 2


class ConfigError(InputError, ValueError):
    """A value of a configuration's field is out of range, or fields do not fit each other."""
