"""The `fsync` command: parse, call one function, print."""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """Entry point."""
    from facility_sync.cli import common, root

    common.run(root.fsync)
