"""The one family of errors, sorted by what the caller does next.

Guarantees: everything this project raises on purpose is a `SyncError`; the class says what to do
(wait and retry, refuse and report, ask before repeating, change a setting, stop), `exit_code` is the
process's exit status, `hint` the next step for a person. No message holds a patient's name, ID or path.

Leaves to others: finer kinds stand next to the code that raises them. Programming mistakes stay
`TypeError`, `ValueError`, `AssertionError` and show a traceback (exit status 1).
"""

from __future__ import annotations


class SyncError(Exception):
    """Something went wrong that this project foresaw.

    Args:
        message: one sentence for a technician; no patient data, no path that leaves the terminal.
        hint: the next step, one sentence; overrides the class's own.
    """

    exit_code = 1
    hint = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint


class Incomplete(SyncError):
    """The command finished, but not everything it was asked for is done."""

    exit_code = 3
    hint = "See the report above for what is left and why."


class Busy(SyncError):
    """Another process is doing the same work right now."""

    exit_code = 4
    hint = "Wait for it to finish; nothing needs to be repeated."


class SettingsError(SyncError):
    """A person must change something first."""

    exit_code = 10


class TransitError(SyncError):
    """The road is bad: try again later."""

    exit_code = 11
    hint = "Nothing is lost. Check the network and the store's address, then run the command again."


class OutcomeUnknown(TransitError):
    """It may have arrived: look before repeating."""

    exit_code = 12
    hint = "Run the command again: it looks first, and repeats only what is missing."


class HostKeyError(SyncError):
    """The server is not the one that was trusted: never retried."""

    exit_code = 13
    hint = "Stop: ask the store's operator. If its key changed on purpose: `fsync trust` the new card."


class AccessDenied(SyncError):
    """The request was refused by the other side."""

    exit_code = 14


class FormatError(SyncError):
    """These bytes are not what both sides agreed on: refuse them."""

    exit_code = 15


class VersionError(FormatError):
    """A format version this program does not know."""

    hint = "Update this installation, or the one that wrote the file."


class SealError(SyncError):
    """Not for us, altered, or signed by somebody else: refuse it, loudly."""

    exit_code = 16


class Damaged(SyncError):
    """Our own stored bytes changed: stop and check."""

    exit_code = 17
    hint = "Run `fstore check --read-data`."


class NotExact(SyncError):
    """A restored file is not byte-identical to the one the facility read."""

    exit_code = 18


INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM: 128 + SIGINT, as shells count (POSIX XCU 2.8.2)."""

EXIT_CODES: tuple[tuple[int, str, str], ...] = (
    (0, "ok", "Everything asked for is done."),
    (1, "bug", "A mistake in the program: please report the traceback."),
    (2, "usage", "The command line was wrong; `--help` shows examples."),
    *(
        (kind.exit_code, kind.__name__, (kind.__doc__ or "").strip())
        for kind in (
            Incomplete, Busy, SettingsError, TransitError, OutcomeUnknown, HostKeyError,
            AccessDenied, FormatError, SealError, Damaged, NotExact,
        )
    ),
    (INTERRUPTED, "interrupted", "Stopped by a signal; the next run goes on where this one stopped."),
)  # fmt: skip
"""Exit status, name, meaning: the one table; `--help` and docs are derived from it."""
