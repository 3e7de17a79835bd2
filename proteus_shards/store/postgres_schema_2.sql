-- Version 2 of the schema, from version 1: what a job has beside its plain fields, and what a shard has beside its jobs.

-- The last field of core.model.Row. No row is written anew: those of version 1 read as NULL.
ALTER TABLE job ADD COLUMN extras bytea;

-- One row a record; slot 1024 is for trials. A name may be longer than an index entry can be, and so its SHA-256 is the key.
CREATE TABLE record (
    slot smallint NOT NULL CHECK (slot BETWEEN 0 AND 1024),
    kind integer NOT NULL,
    digest bytea NOT NULL,
    name text NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (slot, kind, digest)
) WITH (
    fillfactor = 85, -- some are written anew all day, and others come and go with the jobs
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);
