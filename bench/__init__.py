"""The benchmark: `python -m bench` measures the server, and peers beside it, in one run on one machine.

How to think about it: a **subject** is something that can be started and loaded (this server with a store, a number of shards and a way to
serve HTTP, or a peer). A **scenario** is a function that loads a running subject and returns a sample. The **plan** is the list of
(scenario, subject) cells; the run goes over it round by round, so that a drift of the machine meets all cells alike, with a fresh server
for every sample. Then come medians, ratios, the model and the bars.

    plan.py        what is measured: tables of stores, peers, scenarios
    scenarios.py   the scenarios of a rate      waits.py   those of a latency      weights.py   those of many waiting jobs
    targets.py     starts and stops what is measured          cpu.py    who spent how much CPU, and what more cores would give
    wrk.py         load from wrk                jobs.py    what the jobs look like
    load.py        the own generator, seen from here; worker.py is its process, engine.py its sockets, works*.py what it does
    bars.py  report.py  plots.py  machine.py    what is made of it
"""
