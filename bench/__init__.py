"""The benchmark: `python -m bench` measures everything in one run, side by side.

    round_trip      one request and its reply, against plain pyfuse3, mfusepy and C libfuse
    throughput      requests per second over several containers
    idle            memory and start time of a container that does nothing
    scale           what a request costs with many devices and many open handles
    channel         the direct channel, against other ways of one process to call another
    chain           what each further container in a chain costs

Each of these modules has a `measure(setup)` that returns a `report.Section`.  `consumer.py` is the program that sends
the requests to files, `caller.py` the one that calls servers, `servers.py` starts and ends what answers them.
"""
