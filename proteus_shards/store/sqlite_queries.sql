-- Every statement that the SQLite store runs. A line "-- name --" begins one; what stands between /*[*/ and /*]*/ is
-- repeated, with commas between, once for each row of a batch.

-- configure --
-- What a connection is told before anything else. The exclusive lock is taken by the first read and kept until the
-- connection closes; a write-ahead log then needs no shared memory. Checkpoints are the store's own business
-- (see sqlite.py). FAST overwrites deleted content where that costs no extra write. fullfsync matters on macOS alone.
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA trusted_schema = OFF;
PRAGMA cell_size_check = ON;
PRAGMA synchronous = FULL;
PRAGMA fullfsync = ON;
PRAGMA checkpoint_fullfsync = ON;
PRAGMA wal_autocheckpoint = 0;
PRAGMA journal_size_limit = 16777216;
PRAGMA secure_delete = FAST;
PRAGMA temp_store = MEMORY;

-- configure_new --
-- What only an empty file can be told: free pages can be given back to the file system, a few at a time.
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA application_id = 1886611556;

-- read_application --
PRAGMA application_id;

-- read_version --
PRAGMA user_version;

-- use_write_ahead_log --
PRAGMA journal_mode = WAL;

-- sync_each_commit --
PRAGMA synchronous = FULL;

-- sync_at_checkpoints --
PRAGMA synchronous = NORMAL;

-- sync_never --
PRAGMA synchronous = OFF;

-- checkpoint_by_itself --
PRAGMA wal_autocheckpoint = 1000;

-- quick_check --
PRAGMA quick_check(1);

-- page_size --
PRAGMA page_size;

-- count_pages --
PRAGMA page_count;

-- count_free_pages --
PRAGMA freelist_count;

-- checkpoint --
PRAGMA wal_checkpoint(PASSIVE);

-- free_pages --
PRAGMA incremental_vacuum(128);

-- begin --
BEGIN IMMEDIATE;

-- commit --
COMMIT;

-- rollback --
ROLLBACK;

-- write_meta --
INSERT INTO meta (one, epoch, shard, shards, generation) VALUES (1, ?, ?, ?, ?);

-- read_meta --
SELECT epoch, shard, shards, generation FROM meta;

-- read_epoch --
SELECT epoch FROM meta;

-- take_epoch --
UPDATE meta SET epoch = epoch + 1 RETURNING epoch;

-- insert_jobs --
INSERT INTO job (
    slot, seq, queue, id, status, ready_at, run_at, timeout, max_retries, attempt, run_id, reason, created_at, updated_at, payload, state
) VALUES /*[*/(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)/*]*/;

-- insert_jobs_and_extras --
INSERT INTO job (
    slot, seq, queue, id, status, ready_at, run_at, timeout, max_retries, attempt, run_id, reason, created_at, updated_at, payload, state,
    extras
) VALUES /*[*/(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)/*]*/;

-- insert_large_payload --
INSERT INTO large_payload (seq, payload) VALUES (?, ?);

-- delete_jobs --
DELETE FROM job WHERE seq IN (/*[*/?/*]*/);

-- delete_large_payloads --
DELETE FROM large_payload WHERE seq IN (/*[*/?/*]*/);

-- mark_jobs --
-- seq, status, attempt, run_id, reason, updated_at, whether there is a new state, the new state
UPDATE job SET
    status = mark.column2,
    attempt = mark.column3,
    run_id = mark.column4,
    reason = mark.column5,
    updated_at = mark.column6,
    state = iif(mark.column7, mark.column8, job.state)
FROM (VALUES /*[*/(?, ?, ?, ?, ?, ?, ?, ?)/*]*/) AS mark
WHERE job.seq = mark.column1;

-- mark_jobs_and_extras --
-- The same, then whether there are new extras, the new extras. Most marks have none, and this takes longer.
UPDATE job SET
    status = mark.column2,
    attempt = mark.column3,
    run_id = mark.column4,
    reason = mark.column5,
    updated_at = mark.column6,
    state = iif(mark.column7, mark.column8, job.state),
    extras = iif(mark.column9, mark.column10, job.extras)
FROM (VALUES /*[*/(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)/*]*/) AS mark
WHERE job.seq = mark.column1;

-- read_jobs --
SELECT
    slot, seq, queue, id, status, ready_at, run_at, timeout, max_retries, attempt, run_id, reason, created_at, updated_at,
    coalesce(payload, (SELECT large_payload.payload FROM large_payload WHERE large_payload.seq = job.seq)), state, extras
FROM job WHERE seq IN (/*[*/?/*]*/);

-- load_jobs --
-- In the order (ready_at, seq), those of a range of slots, without the first so many. Only the keys are sorted, so that a
-- sort of a million rows takes megabytes; LIMIT keeps the inner query whole, CROSS JOIN keeps it outermost.
SELECT
    slot, job.seq, queue, id, status, ready_at, run_at, timeout, max_retries, attempt, run_id, reason, created_at, updated_at,
    coalesce(payload, (SELECT large_payload.payload FROM large_payload WHERE large_payload.seq = job.seq)), state, extras
FROM (SELECT seq FROM job WHERE slot BETWEEN ? AND ? ORDER BY ready_at, seq LIMIT -1 OFFSET ?) AS sorted
CROSS JOIN job ON job.seq = sorted.seq;

-- count_jobs --
-- By status, with the size of all that may vary: what must be the same before and after rows are moved.
SELECT
    status, count(*),
    sum(length(queue) + length(id) + coalesce(length(run_id), 0) + coalesce(length(reason), 0) + coalesce(length(state), 0)
        + coalesce(length(extras), 0)
        + length(coalesce(payload, (SELECT large_payload.payload FROM large_payload WHERE large_payload.seq = job.seq))))
FROM job GROUP BY status ORDER BY status;

-- write_records --
INSERT INTO record (slot, kind, name, value) VALUES /*[*/(?, ?, ?, ?)/*]*/
ON CONFLICT (slot, kind, name) DO UPDATE SET value = excluded.value;

-- remove_records --
-- Found by the join: with a list of keys SQLite would go through all records.
DELETE FROM record WHERE number IN (
    SELECT number
    FROM (VALUES /*[*/(?, ?, ?)/*]*/) AS gone
    CROSS JOIN record ON slot = gone.column1 AND kind = gone.column2 AND name = gone.column3
);

-- read_records --
SELECT slot, kind, name, value
FROM (VALUES /*[*/(?, ?, ?)/*]*/) AS wanted
CROSS JOIN record ON slot = wanted.column1 AND kind = wanted.column2 AND name = wanted.column3;

-- load_records --
-- Those of a range of slots, without the first so many. From the table itself, not by its index (the plus sees to that): what the index had lost
-- would be missing unseen.
SELECT slot, kind, name, value, number FROM record WHERE +slot BETWEEN ? AND ? ORDER BY number LIMIT -1 OFFSET ?;

-- count_records --
-- By kind, as above.
SELECT kind, count(*), sum(length(name) + length(value)) FROM record GROUP BY kind ORDER BY kind;
