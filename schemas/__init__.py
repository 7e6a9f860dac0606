"""What both sides agree on: formats, names, columns, keys; and in `transit` the way they travel.

A thing is here only if changing it on one side alone would break the other. Read FORMAT.md first.
"""
