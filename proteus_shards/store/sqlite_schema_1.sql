-- Version 1 of one shard's file. A later version is a file of its own that leads there from the one before.

-- One row: whose file this is, and the epoch that may write to it.
CREATE TABLE meta (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL,
    shard INTEGER NOT NULL,
    shards INTEGER NOT NULL,
    generation INTEGER NOT NULL
) STRICT;

-- One row a job, in the columns and the order of core.model.Row. The key is seq, so that jobs are appended where the
-- table ends. There is no second index: the order (ready_at, seq) is only asked for at start, where a sort costs less
-- than an index does at every insert.
CREATE TABLE job (
    slot INTEGER NOT NULL,
    seq INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    id TEXT NOT NULL,
    status INTEGER NOT NULL,
    ready_at INTEGER NOT NULL,
    run_at INTEGER,
    timeout INTEGER NOT NULL,
    max_retries INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    run_id BLOB,
    reason TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    payload BLOB, -- NULL: it is in large_payload
    state BLOB
) STRICT;

-- The payloads that would not fit beside others on a page. A delivery or a heartbeat rewrites its row in job, and
-- would write such a payload anew each time.
CREATE TABLE large_payload (
    seq INTEGER PRIMARY KEY,
    payload BLOB NOT NULL
) STRICT;
