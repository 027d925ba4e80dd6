"""Measuring a broker: one producer and its consumers, each a process of its own, with the client library users have.

`load.py` says what is measured, `clients.py` holds the hot loops, `run.py` starts everything and collects, `report.py`
turns what came back into one plain map and a table.
"""
