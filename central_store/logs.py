"""Log lines: where they go and how they look. What they may say is each writer's promise."""

from __future__ import annotations

import logging


def log_to_stderr(level: int = logging.INFO) -> None:
    """One line for each event; never identity, never a password."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", force=True)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
