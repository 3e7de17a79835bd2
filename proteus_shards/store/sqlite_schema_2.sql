-- Version 2 of one shard's file, from version 1: what a job has beside its plain fields, and what a shard has beside its jobs.

-- The last field of core.model.Row. The rows of version 1 read as NULL, and are not written anew.
ALTER TABLE job ADD COLUMN extras BLOB;

-- One row a record. The values, which may be large, stay out of the tree that finds them: SQLite reads a whole entry to compare it.
CREATE TABLE record (
    number INTEGER PRIMARY KEY,
    slot INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    UNIQUE (slot, kind, name)
) STRICT;
