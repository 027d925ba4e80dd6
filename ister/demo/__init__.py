"""The demonstration: under real input a broker loses a worker and a consumer, but no acknowledged message.

`source.py` is the input, `clients.py` the producers and consumers, `spool.py` the files that consumers write,
`verify.py` the pure comparison of the two, `run.py` the sequence of events, `report.py` the output.
"""
