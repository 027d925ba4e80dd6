"""Ister: a topic/subscription message broker (this package is what users import)."""
