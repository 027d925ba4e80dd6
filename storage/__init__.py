"""Bytes that last: the write-ahead log, cursors, the catalogue, and the object store."""
