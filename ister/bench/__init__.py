"""Measuring a broker: a producer and its consumers, each in a process of its own, with the client library.

`load.py` describes a measurement, `pacing.py` says when each message of a given rate is due, `clients.py` has the hot
loops, `run.py` starts everything and collects the results, `report.py` turns them into a plain map and a table. A file
of results (`results.py`, with machine and versions from `about.py`) is compared with another one by `compare.py`, and
drawn by `page.py` and `svg.py`, or by `plot.py` in a terminal.
"""
