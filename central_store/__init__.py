"""The central store: keeps, finds and hands out what facilities send. Command: `fstore`."""
