"""Why a file is not stored: every reason code, its meaning and the next step, in one table.

The codes are stable: programs may rely on them. A module of its own, so that commands which only speak of
files need not load what reads them.
"""

from __future__ import annotations

CAPTURE: dict[str, tuple[str, str]] = {
    "empty": ("The file has no bytes.", "Send the image from the modality again."),
    "not-dicom": ("The file is no DICOM file.", "Nothing to do; `ignore` in the settings passes over it."),
    "dicomdir": ("A DICOMDIR lists other files; it is no image.", "Nothing to do: its images are taken."),
    "no-sop-instance-uid": ("No SOP Instance UID can be found.", "Have the modality or PACS send it again."),
    "too-large": ("The file is larger than `max_file_mib`.", "Raise `max_file_mib`, up to 8191."),
    "unreadable": ("The file or folder cannot be read.", "Check its permissions and the disk."),
    "vanished": ("The file was there and is gone.", "Put it back if it should be stored."),
    "changed-while-reading": ("The file changed while it was read.", "The next round takes it."),
}  # fmt: skip
"""Why a file was not taken: code to meaning and next step."""
TRANSIENT: frozenset[str] = frozenset({"unreadable", "vanished", "changed-while-reading"})
"""Reasons that may be gone the next time: the ledger does not remember them."""

ROUND: dict[str, tuple[str, str]] = {
    "not-a-file": (
        "A link that leads nowhere, a device or a pipe.",
        "Remove it from the source, or ignore it.",
    ),
    "settling": ("The file changed a moment ago and may still be growing.", "The next round takes it."),
    "new": ("Not looked into yet.", "The next `fsync sync` takes it."),
    "ready": ("Sealed and waiting to be sent.", "The next `fsync sync` sends it."),
    "sent": ("On the store's shelf; no receipt yet.", "Wait for the store, then run `fsync sync` again."),
    "lost": ("The store reported that it lost this file.", "The next `fsync sync` sends it again."),
    "lost-and-gone": (
        "The store reported that it lost this file, and it is not here any more.",
        "Put it back into its source from a backup, then run `fsync sync`; ask the store's operator.",
    ),
}
"""Why a file waits, beyond what reading it says."""

PRUNE: dict[str, str] = {
    "not-stored": "No receipt yet, refused, lost or erased, or not looked into: `fsync status` says more.",
    "no-receipt": "No receipt for its batch is in `receipts/`, or its signature does not verify now.",
    "too-young": "Its receipt is younger than `--older-than`.",
    "replicas": "Fewer replicas of its batch are known than `--require-replicas` asks for.",
    "changed": "It is not the file that was sent any more; the next `fsync sync` looks at it.",
    "link": "A link, or behind one: what it leads to does not lie in the source.",
    "unreadable": "It cannot be read or not be deleted: check permissions and the disk.",
}
"""Why `fsync prune` leaves a file where it is."""


def explain(reason: str) -> tuple[str, str]:
    """Meaning and next step of a reason code; `store:` stands before the store's own codes."""
    known = ROUND.get(reason) or CAPTURE.get(reason)
    return known or ("The store refused the batch this file was in.", "Run `fsync sync --retry-refused`.")
