"""`python -m facility_sync` is `fsync`."""

from facility_sync.cli import main

main()
