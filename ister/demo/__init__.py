"""The demonstration: amid real input a broker loses a worker and a consumer, and no acknowledged message.

`source.py` is the input, `clients.py` the producers and consumers, `spool.py` what consumers write down, `verify.py`
the pure comparison of the two, `run.py` the play itself, `report.py` what is printed.
"""
