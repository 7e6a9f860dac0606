"""The `fstore` command: parse, call one function, print."""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """Entry point."""
    from central_store.cli import common, root

    common.run(root.fstore)
