"""A refusal with its reason: apart from `central_store.replies`, so that who refuses needs no keys."""

from __future__ import annotations

from schemas.errors import FormatError


class Refused(FormatError):
    """A refusal with a reason finer than its error class.

    Args:
        reason: a key of `central_store.replies.REASONS`.
        message: one sentence, without patient data.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[Refused], tuple[str, str]]:
        return type(self), (self.reason, str(self))
