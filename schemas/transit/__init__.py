"""The only part of `schemas` with I/O: durable files, shelves, SFTP."""
