"""How several hosts share the shards of one store. sans-IO: no socket, clock or store is touched here."""
