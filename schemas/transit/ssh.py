"""paramiko, imported without `invoke`, which it takes if it is there to run `Match exec` of an `ssh_config`.

Nobody here reads one, and loading it is a sixth of the imports of a short command.

Guarantees: whoever imports `invoke` for itself gets it.
"""

from __future__ import annotations

import sys

_held_back = "invoke" not in sys.modules
if _held_back:
    sys.modules["invoke"] = None  # type: ignore[assignment]  # to import it is an ImportError
try:
    import paramiko
finally:
    if _held_back:
        del sys.modules["invoke"]

__all__ = ["paramiko"]
