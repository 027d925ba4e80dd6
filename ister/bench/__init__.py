"""Measuring a broker: a producer and its consumers, each in a process of its own, with the client library.

`load.py` describes a measurement, `clients.py` has the hot loops, `run.py` starts everything and collects the results,
`report.py` turns them into a plain map and a table.
"""
