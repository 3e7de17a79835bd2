-- Every statement that the Postgres store runs on an open session. A line "-- name --" begins one. Tables are named without their schema: the
-- session's search_path has it.

-- configure --
-- For the life of the session. The plans must not depend on statistics: a statement that was planned while the table was empty
-- must not read all of it once it is full. See the note on plans in postgres.py.
SELECT
    set_config('search_path', $1, false),
    set_config('synchronous_commit', $2, false),
    set_config('statement_timeout', $3, false),
    set_config('lock_timeout', $4, false),
    set_config('idle_in_transaction_session_timeout', $5, false),
    set_config('tcp_user_timeout', $6, false),
    set_config('tcp_keepalives_idle', '60', false),
    set_config('tcp_keepalives_interval', '10', false),
    set_config('default_transaction_isolation', 'read committed', false),
    set_config('default_transaction_read_only', 'off', false),
    set_config('plan_cache_mode', 'force_generic_plan', false),
    set_config('enable_seqscan', 'off', false),
    set_config('enable_bitmapscan', 'off', false),
    set_config('enable_hashjoin', 'off', false),
    set_config('enable_mergejoin', 'off', false),
    set_config('jit', 'off', false),
    set_config('client_min_messages', 'warning', false),
    set_config('timezone', 'UTC', false);

-- facts --
-- What the session stands on. The first eight digits of the name of a WAL file are the timeline, which each promotion of a standby changes.
SELECT
    current_setting('server_version') AS version,
    current_setting('server_version_num')::integer AS version_number,
    current_setting('server_encoding') AS encoding,
    current_setting('fsync') AS fsync,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('data_sync_retry') AS data_sync_retry,
    current_setting('synchronous_standby_names') AS standbys,
    pg_is_in_recovery() AS standby,
    CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS timeline;

-- layout --
SELECT version, shards FROM layout;

-- has_layout --
SELECT to_regclass('layout') IS NOT NULL;

-- take --
-- As a new owner, whoever it was before. Under a claim only while the holding is what it says: a row that was waited for is looked at again.
UPDATE lease SET
    epoch = epoch + 1,
    owner = $2,
    session = pg_backend_pid(),
    session_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()),
    taken_at = clock_timestamp()
WHERE name = $1 AND ($3::text IS NULL OR (host = $3 AND turn = $4::bigint))
RETURNING epoch;

-- retake --
-- As the same owner, with a new epoch, unless there was another owner in between, or the lease has lost what this one knows of.
UPDATE lease SET
    epoch = epoch + 1,
    session = pg_backend_pid(),
    session_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()),
    taken_at = clock_timestamp()
WHERE name = $1 AND owner = $2 AND epoch >= $5 AND ($3::text IS NULL OR (host = $3 AND turn = $4::bigint))
RETURNING epoch;

-- has_lease --
SELECT EXISTS (SELECT FROM lease WHERE name = $1);

-- end_holder --
-- End the session that the lease names, if it is still that session and not one that came to its number later.
SELECT pg_terminate_backend(pid)
FROM lease
JOIN pg_stat_activity ON pid = session AND backend_start = session_start
WHERE name = $1 AND pid <> pg_backend_pid();

-- commit --
-- One statement is one transaction and one round trip. The lease is locked until it ends, so that no other can take the epoch meanwhile; after waiting
-- for one that does, the row is looked at again, and is not found. Without it nothing below happens. Where a row to delete or to change is not
-- there, the division by zero undoes it all. Rows are found by key first and then written where they lie: no plan can do it any other way.
WITH fence AS MATERIALIZED (
    SELECT 1 FROM lease WHERE name = $1 AND epoch = $2 AND owner = $3 FOR SHARE
), deleted AS (
    DELETE FROM job USING (
        SELECT found.place
        FROM fence, unnest($4::smallint[], $5::bigint[]) AS key (slot, seq)
        CROSS JOIN LATERAL (SELECT job.ctid AS place FROM job WHERE job.slot = key.slot AND job.seq = key.seq OFFSET 0) AS found
        OFFSET 0
    ) AS hit
    WHERE job.ctid = hit.place
    RETURNING 1
), changed AS (
    UPDATE job SET
        status = hit.status,
        attempt = hit.attempt,
        run_id = hit.run_id,
        reason = hit.reason,
        updated_at = hit.updated_at,
        state = CASE WHEN hit.state_set THEN hit.state ELSE job.state END
    FROM (
        SELECT mark.*, found.place
        FROM fence, unnest(
            $6::smallint[], $7::bigint[], $8::smallint[], $9::bigint[], $10::bytea[], $11::text[], $12::bigint[], $13::boolean[], $14::bytea[]
        ) AS mark (slot, seq, status, attempt, run_id, reason, updated_at, state_set, state)
        CROSS JOIN LATERAL (SELECT job.ctid AS place FROM job WHERE job.slot = mark.slot AND job.seq = mark.seq OFFSET 0) AS found
        OFFSET 0
    ) AS hit
    WHERE job.ctid = hit.place
    RETURNING 1
), inserted AS (
    INSERT INTO job (
        slot, seq, queue, id, status, ready_at, run_at, timeout, max_retries, attempt, run_id, reason, created_at, updated_at, payload, state
    )
    SELECT job.*
    FROM fence, unnest(
        $15::smallint[], $16::bigint[], $17::text[], $18::text[], $19::smallint[], $20::bigint[], $21::bigint[], $22::integer[], $23::integer[],
        $24::bigint[], $25::bytea[], $26::text[], $27::bigint[], $28::bigint[], $29::bytea[], $30::bytea[]
    ) AS job
)
SELECT CASE
    WHEN NOT EXISTS (SELECT FROM fence) THEN false
    ELSE 1 / (
        (SELECT count(*) FROM deleted) = cardinality($4::smallint[]) AND (SELECT count(*) FROM changed) = cardinality($6::smallint[])
    )::integer = 1
END;

-- commit_all --
-- The same for a batch that has extras or records, as few have. A record to remove need not be there.
WITH fence AS MATERIALIZED (
    SELECT 1 FROM lease WHERE name = $1 AND epoch = $2 AND owner = $3 FOR SHARE
), deleted AS (
    DELETE FROM job USING (
        SELECT found.place
        FROM fence, unnest($4::smallint[], $5::bigint[]) AS key (slot, seq)
        CROSS JOIN LATERAL (SELECT job.ctid AS place FROM job WHERE job.slot = key.slot AND job.seq = key.seq OFFSET 0) AS found
        OFFSET 0
    ) AS hit
    WHERE job.ctid = hit.place
    RETURNING 1
), changed AS (
    UPDATE job SET
        status = hit.status,
        attempt = hit.attempt,
        run_id = hit.run_id,
        reason = hit.reason,
        updated_at = hit.updated_at,
        state = CASE WHEN hit.state_set THEN hit.state ELSE job.state END,
        extras = CASE WHEN hit.extras_set THEN hit.extras ELSE job.extras END
    FROM (
        SELECT mark.*, found.place
        FROM fence, unnest(
            $6::smallint[], $7::bigint[], $8::smallint[], $9::bigint[], $10::bytea[], $11::text[], $12::bigint[], $13::boolean[], $14::bytea[],
            $15::boolean[], $16::bytea[]
        ) AS mark (slot, seq, status, attempt, run_id, reason, updated_at, state_set, state, extras_set, extras)
        CROSS JOIN LATERAL (SELECT job.ctid AS place FROM job WHERE job.slot = mark.slot AND job.seq = mark.seq OFFSET 0) AS found
        OFFSET 0
    ) AS hit
    WHERE job.ctid = hit.place
    RETURNING 1
), inserted AS (
    INSERT INTO job (
        slot, seq, queue, id, status, ready_at, run_at, timeout, max_retries, attempt, run_id, reason, created_at, updated_at, payload, state,
        extras
    )
    SELECT job.*
    FROM fence, unnest(
        $17::smallint[], $18::bigint[], $19::text[], $20::text[], $21::smallint[], $22::bigint[], $23::bigint[], $24::integer[], $25::integer[],
        $26::bigint[], $27::bytea[], $28::text[], $29::bigint[], $30::bigint[], $31::bytea[], $32::bytea[], $33::bytea[]
    ) AS job
), removed AS (
    DELETE FROM record USING (
        SELECT found.place
        FROM fence, unnest($34::smallint[], $35::integer[], $36::bytea[]) AS key (slot, kind, digest)
        CROSS JOIN LATERAL (
            SELECT record.ctid AS place FROM record
            WHERE record.slot = key.slot AND record.kind = key.kind AND record.digest = key.digest OFFSET 0
        ) AS found
        OFFSET 0
    ) AS hit
    WHERE record.ctid = hit.place
), written AS (
    INSERT INTO record (slot, kind, digest, name, value)
    SELECT record.*
    FROM fence, unnest($37::smallint[], $38::integer[], $39::bytea[], $40::text[], $41::bytea[]) AS record
    ON CONFLICT (slot, kind, digest) DO UPDATE SET value = excluded.value
)
SELECT CASE
    WHEN NOT EXISTS (SELECT FROM fence) THEN false
    ELSE 1 / (
        (SELECT count(*) FROM deleted) = cardinality($4::smallint[]) AND (SELECT count(*) FROM changed) = cardinality($6::smallint[])
    )::integer = 1
END;

-- commit_inserts --
-- The same for a batch that only inserts, as most do where many jobs come in: an eighth less work for both sides.
WITH fence AS MATERIALIZED (
    SELECT 1 FROM lease WHERE name = $1 AND epoch = $2 AND owner = $3 FOR SHARE
), inserted AS (
    INSERT INTO job (
        slot, seq, queue, id, status, ready_at, run_at, timeout, max_retries, attempt, run_id, reason, created_at, updated_at, payload, state
    )
    SELECT job.*
    FROM fence, unnest(
        $4::smallint[], $5::bigint[], $6::text[], $7::text[], $8::smallint[], $9::bigint[], $10::bigint[], $11::integer[], $12::integer[],
        $13::bigint[], $14::bytea[], $15::text[], $16::bigint[], $17::bigint[], $18::bytea[], $19::bytea[]
    ) AS job
)
SELECT EXISTS (SELECT FROM fence);

-- read --
SELECT job.*
FROM unnest($1::smallint[], $2::bigint[]) AS key (slot, seq)
CROSS JOIN LATERAL (
    SELECT
        slot, seq, queue, id, status, ready_at, run_at, timeout, max_retries, attempt, run_id, reason, created_at, updated_at, payload, state,
        extras
    FROM job WHERE job.slot = key.slot AND job.seq = key.seq OFFSET 0
) AS job;

-- plan_load --
-- How many rows, in the order of load, have so many bytes together: a count for each part that may be held in memory at once.
SELECT count(*)
FROM (
    SELECT (
        sum(octet_length(payload)::bigint + coalesce(octet_length(state), 0) + coalesce(octet_length(extras), 0))
        OVER (ORDER BY ready_at, seq, slot ROWS UNBOUNDED PRECEDING)
    )::bigint / $3::bigint AS part
    FROM job WHERE slot BETWEEN $1 AND $2
) AS sized
GROUP BY part ORDER BY part;

-- load --
SELECT
    slot, seq, queue, id, status, ready_at, run_at, timeout, max_retries, attempt, run_id, reason, created_at, updated_at, payload, state,
    extras
FROM job WHERE slot BETWEEN $1 AND $2
ORDER BY ready_at, seq, slot;

-- load_keys --
SELECT slot, seq FROM job WHERE slot BETWEEN $1 AND $2 ORDER BY ready_at, seq, slot OFFSET $3;

-- read_records --
SELECT record.*
FROM unnest($1::smallint[], $2::integer[], $3::bytea[]) AS key (slot, kind, digest)
CROSS JOIN LATERAL (
    SELECT slot, kind, digest, name, value FROM record
    WHERE record.slot = key.slot AND record.kind = key.kind AND record.digest = key.digest OFFSET 0
) AS record;

-- plan_load_records --
SELECT count(*)
FROM (
    SELECT (
        sum(octet_length(name)::bigint + octet_length(value)) OVER (ORDER BY slot, kind, digest ROWS UNBOUNDED PRECEDING)
    )::bigint / $3::bigint AS part
    FROM record WHERE slot BETWEEN $1 AND $2
) AS sized
GROUP BY part ORDER BY part;

-- load_records --
SELECT slot, kind, digest, name, value FROM record WHERE slot BETWEEN $1 AND $2 ORDER BY slot, kind, digest;

-- load_record_keys --
SELECT slot, kind, digest FROM record WHERE slot BETWEEN $1 AND $2 ORDER BY slot, kind, digest OFFSET $3;

-- look --
-- All hosts, and the holding of each shard that the schema was made ready for, as of one moment.
SELECT NULL::integer AS shard, address, boot, version, beat AS number, 0::bigint AS epoch, draining, NULL AS wanted FROM host
UNION ALL
SELECT shard, lease.host, NULL, NULL, lease.turn, lease.epoch, false, lease.wanted
FROM layout CROSS JOIN LATERAL generate_series(0, layout.shards - 1) AS shard LEFT JOIN lease ON lease.name = 'shard-' || shard;

-- join --
INSERT INTO host (address, boot, beat, version, draining) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (address) DO UPDATE SET boot = excluded.boot, beat = excluded.beat, version = excluded.version, draining = excluded.draining
RETURNING address;

-- beat --
UPDATE host SET beat = $3, version = $4 WHERE address = $1 AND boot = $2 RETURNING address;

-- drain --
UPDATE host SET draining = $2 WHERE address = $1 RETURNING address;

-- leave --
DELETE FROM host WHERE address = $1 AND ($2::text IS NULL OR boot = $2) RETURNING address;

-- hand --
-- A compare-and-set on the turn: of two that wait for the row, the later one finds another. A wish that is fulfilled stays, as a pin.
UPDATE lease SET host = $3, turn = turn + 1, wanted = CASE WHEN wanted = $3 THEN wanted ELSE '' END
WHERE name = $1 AND turn = $2 AND $4::integer < (SELECT shards FROM layout)
RETURNING epoch;

-- want --
UPDATE lease SET wanted = $2 WHERE name = $1 AND $3::integer < (SELECT shards FROM layout) RETURNING epoch;

-- hosts --
SELECT address FROM host;

-- begin_load --
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;

-- configure_load --
-- Each step of a load may take longer, and reads the table as is best.
SELECT
    set_config('statement_timeout', $1, true),
    set_config('idle_in_transaction_session_timeout', $1, true),
    set_config('plan_cache_mode', 'force_custom_plan', true),
    set_config('enable_seqscan', 'on', true),
    set_config('enable_bitmapscan', 'on', true),
    set_config('work_mem', '64MB', true);

-- end_load --
ROLLBACK;

-- begin_trial --
INSERT INTO lease (name, epoch, owner, taken_at) VALUES ($1, 0, $2, clock_timestamp()) ON CONFLICT DO NOTHING;

-- remove_old_trials --
-- What a trial left that could not end: its rows begin at the number that its name has, its records with the name itself.
WITH old AS (
    DELETE FROM lease WHERE name LIKE 'trial-%' AND taken_at < clock_timestamp() - interval '1 hour'
    RETURNING name, split_part(name, '-', 2)::bigint AS base
), records AS (
    DELETE FROM record USING old WHERE slot = 1024 AND starts_with(record.name, old.name || ' ')
)
DELETE FROM job USING old WHERE slot = 1024 AND seq BETWEEN old.base AND old.base + $1;

-- remove_trial --
WITH own AS (
    DELETE FROM lease WHERE name = $1
), records AS (
    DELETE FROM record WHERE slot = 1024 AND starts_with(name, $1 || ' ')
)
DELETE FROM job WHERE slot = 1024 AND seq BETWEEN $2 AND $3;

-- patience --
-- Another host may be at it: as long as the statement may take at all.
SET LOCAL lock_timeout = 0;

-- impatience --
SET LOCAL lock_timeout = '2s';

-- lock_schema --
SELECT pg_advisory_xact_lock(hashtextextended('proteus_shards ' || $1, 0));

-- has_schema --
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1);

-- write_layout --
INSERT INTO layout (one, version, shards) VALUES (true, $1, $2);

-- change_version --
UPDATE layout SET version = $1;

-- change_shards --
UPDATE layout SET shards = $1;

-- end_leases --
UPDATE lease SET
    epoch = (SELECT max(epoch) FROM lease) + 1, owner = $1, taken_at = clock_timestamp(), host = '', turn = turn + 1, wanted = '';

-- count_leases --
SELECT count(*) FROM lease WHERE name = ANY($1::text[]);

-- make_leases --
INSERT INTO lease (name, epoch, owner, taken_at)
SELECT name, (SELECT coalesce(max(epoch), 0) FROM lease), $2, clock_timestamp() FROM unnest($1::text[]) AS name
ON CONFLICT DO NOTHING;

-- end_holders --
SELECT pg_terminate_backend(pid)
FROM lease
JOIN pg_stat_activity ON pid = session AND backend_start = session_start
WHERE pid <> pg_backend_pid();

-- examine_session --
SELECT
    current_user AS username,
    current_database() AS database,
    coalesce((SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl), '') AS tls,
    current_setting('autovacuum')::boolean AS autovacuum,
    EXISTS (SELECT FROM pg_namespace WHERE nspname = $1) AS has_schema,
    has_database_privilege(current_database(), 'CREATE') AS may_create_schema,
    coalesce((SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = $1), false) AS may_use_schema,
    coalesce((SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $1), false) AS may_create_tables,
    (SELECT count(*) FROM pg_stat_activity WHERE xact_start < now() - interval '10 minutes' AND datname = current_database()) AS old_transactions;

-- examine_privileges --
-- Those that are missing, a line a table that there is. FOR SHARE needs UPDATE.
SELECT needed.name, string_agg(privilege, ', ') AS missing
FROM (
    VALUES
        ('job', '{SELECT,INSERT,UPDATE,DELETE}'::text[]),
        ('record', '{SELECT,INSERT,UPDATE,DELETE}'),
        ('lease', '{SELECT,INSERT,UPDATE,DELETE}'),
        ('layout', '{SELECT,UPDATE}'),
        ('host', '{SELECT,INSERT,UPDATE,DELETE}')
) AS needed (name, privileges)
CROSS JOIN unnest(privileges) AS privilege
WHERE CASE WHEN to_regclass(needed.name) IS NULL THEN false ELSE NOT has_table_privilege(needed.name, privilege) END
GROUP BY needed.name ORDER BY needed.name;

-- examine_connections --
SELECT least(
    current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
        - coalesce(current_setting('reserved_connections', true)::integer, 0)
        - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()),
    (SELECT CASE WHEN rolconnlimit < 0 THEN 1000000 ELSE rolconnlimit END FROM pg_roles WHERE rolname = current_user)
        - (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user AND pid <> pg_backend_pid()),
    (SELECT CASE WHEN datconnlimit < 0 THEN 1000000 ELSE datconnlimit END FROM pg_database WHERE datname = current_database())
        - (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid())
) AS room;

-- examine_leases --
-- How many sessions of shards there are just now, and whether this user may end one that is stuck.
SELECT
    count(*) AS live,
    count(*) FILTER (WHERE NOT (pg_has_role(current_user, usesysid, 'MEMBER') OR pg_has_role(current_user, 'pg_signal_backend', 'MEMBER'))) AS foreign_owners
FROM lease
JOIN pg_stat_activity ON pid = session AND backend_start = session_start
WHERE name LIKE 'shard-%';

-- clock --
SELECT clock_timestamp();

-- patience_of_upkeep --
SELECT set_config('statement_timeout', '0', false);

-- sweep --
-- Leaves the end of the tables as long as it is: to shorten it takes a lock that commits would wait for.
VACUUM (SKIP_LOCKED, TRUNCATE FALSE) job, record;
