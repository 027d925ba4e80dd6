"""The version of Ister, from which the package is built."""

__version__ = "0.1.0"
