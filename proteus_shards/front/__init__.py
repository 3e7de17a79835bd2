"""One process of HTTP: requests in, commands to the shards that own their queues, answers out.

Read it from the inside out. `operations` decides what a request means and what an outcome looks like; it is sync, does no I/O
and imports no framework, so that every way into the front calls the same functions. `link` carries commands to one shard and
`router` finds the shard of a queue. `app`, `native` and `server` are the way in through Quart-Trio and Hypercorn.
"""
