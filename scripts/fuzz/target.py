#!/usr/bin/env python3
"""One target of `tests/kit/fuzz.py` under atheris; see `scripts/fuzz/run`."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import atheris  # noqa: E402

with atheris.instrument_imports(include=["schemas", "facility_sync", "central_store"]):
    from tests.kit.fuzz import TARGETS


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit("targets: " + " ".join(TARGETS))
    target, corpus = TARGETS[name], ROOT / ".fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for data in target.examples:
        (corpus / hashlib.sha256(data).hexdigest()).write_bytes(data)
    atheris.Setup([sys.argv[0], str(corpus), *sys.argv[2:]], target.survives)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
