"""The broker's side of the wire."""
