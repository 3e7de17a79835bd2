-- What a server of schema version 1 had in its schema, which had the statements of postgres_schema_1.sql: one shard, the same jobs as in
-- sqlite_version_1.tar.gz, and a trial that was killed.
INSERT INTO layout (one, version, shards) VALUES (true, 1, 1);
INSERT INTO lease (name, epoch, owner, taken_at) VALUES
    ('shard-0', 7, '9a3b6a3e-5a52-4f0e-9d0f-2f1d6ef3b8f1', '2026-01-01T00:00:00Z'),
    ('trial-4611686018427387904', 1, '53f9ff0c-1f0a-4a3c-8f2e-0d1f6c1b6f0a', '2026-01-01T00:00:00Z');
INSERT INTO job (
    slot, seq, queue, id, status, ready_at, run_at, timeout, max_retries, attempt, run_id, reason, created_at, updated_at, payload, state
) VALUES
    (913, 1, 'q', 'job-1', 2, 1800000000000001, NULL, 60, 3, 0, NULL, NULL, 1800000000000001, 1800000000000001, '{"n": 1}', '{"s": 1}'),
    (239, 2, 'ü📬', 'a b', 2, 1800000000000002, 1800000000000005, 60, 3, 0, NULL, NULL, 1800000000000002, 1800000000000002, '{"n": 2}', NULL),
    (913, 3, 'q', 'job-3', 3, 1800000000000003, NULL, 60, 3, 1, '\x000102030405060708090a0b0c0d0e0f', NULL, 1800000000000003, 1800000000000003, '{"n": 3}', NULL),
    (913, 4, 'q', 'job-4', 4, 1800000000000004, NULL, 60, 3, 4, NULL, 'timeout', 1800000000000004, 1800000000000004, '{"n": 4}', NULL),
    (913, 5, 'q', 'job-5', 2, 1800000000000005, NULL, 60, 3, 0, NULL, NULL, 1800000000000005, 1800000000000005, convert_to('"' || repeat('x', 3000) || '"', 'UTF8'), NULL),
    (18, 6, 'other', 'job-6', 3, 1800000000000006, NULL, 60, 3, 1, '\x00000000000000000000000000000006', NULL, 1800000000000006, 1800000000000007, '{"n": 6}', 'llllllllllllllllllll'),
    (1024, 4611686018427387905, 'trial', 'trial-1', 2, 1800000000000001, NULL, 60, 3, 0, NULL, NULL, 1800000000000001, 1800000000000001, '1', NULL);
