"""Durable storage: the write-ahead log, cursors, the catalogue, and the object store."""
