-- Version 3 of the schema, from version 2: the hosts of a cluster, and which of them holds which shard.

-- The fields of cluster.model.Holding, in the row of the epoch, so that one lock guards both. No row is written anew.
ALTER TABLE lease
    ADD COLUMN host text NOT NULL DEFAULT '',
    ADD COLUMN turn bigint NOT NULL DEFAULT 0,
    ADD COLUMN wanted text NOT NULL DEFAULT '';

-- One row a host, in the columns of cluster.model.Host. Beats are written here, apart from the leases: no commit waits for one, or makes one wait.
CREATE TABLE host (
    address text PRIMARY KEY,
    boot text NOT NULL,
    beat bigint NOT NULL,
    version text NOT NULL,
    draining boolean NOT NULL
) WITH (
    fillfactor = 50 -- a beat finds room on its page
);
