-- Version 1 of the schema. A later version is a file of its own that leads there from the one before.

-- One row: what the schema was last made ready for.
CREATE TABLE layout (
    one boolean PRIMARY KEY CHECK (one),
    version integer NOT NULL,
    shards integer NOT NULL
);

-- One row a shard, by name, and one a trial: who may write. An epoch never goes down and no row of a shard is ever deleted. The session
-- that took the epoch is named so that the next owner can end it.
CREATE TABLE lease (
    name text PRIMARY KEY,
    epoch bigint NOT NULL,
    owner uuid NOT NULL,
    session integer,
    session_start timestamptz,
    taken_at timestamptz NOT NULL
);

-- One row a job, in the columns and the order of core.model.Row; slot 1024 is for trials. There is no index but the key: the order (ready_at,
-- seq) is only asked for at start, where a sort costs less than an index does at every insert, and without an index on what changes
-- an update need not touch one. Payloads too large for a page lie beside the table, and a change of anything else leaves them there.
CREATE TABLE job (
    slot smallint NOT NULL CHECK (slot BETWEEN 0 AND 1024),
    seq bigint NOT NULL,
    queue text NOT NULL,
    id text NOT NULL,
    status smallint NOT NULL,
    ready_at bigint NOT NULL,
    run_at bigint,
    timeout integer NOT NULL,
    max_retries integer NOT NULL,
    attempt bigint NOT NULL,
    run_id bytea,
    reason text,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    payload bytea NOT NULL,
    state bytea,
    PRIMARY KEY (slot, seq)
) WITH (
    fillfactor = 85, -- room on each page for the deliveries of its jobs
    autovacuum_vacuum_scale_factor = 0.05, -- a queue is a table that empties all day
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);
