"""The broker's processes, and what they say to each other."""
