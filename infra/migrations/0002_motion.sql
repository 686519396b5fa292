-- The log in motion: how far the relay is, how far each projection is, what is parked, what is due.

CREATE TABLE relay (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    through bigint NOT NULL,                        -- every fact up to here is published and in relay_head
    broker text NOT NULL,                           -- identity of the broker that holds it
    fence bigint NOT NULL,                          -- raised by each relay that takes over
    lease_until timestamptz NOT NULL
) WITH (fillfactor = 10);
INSERT INTO relay VALUES (true, 0, '', 0, '-infinity');

CREATE TABLE relay_head (
    topic text NOT NULL,
    partition integer NOT NULL,
    last_position bigint NOT NULL,
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 50);

CREATE TABLE projections (                          -- which version of a read model is shown
    engine text NOT NULL CHECK (engine IN ('postgres', 'clickhouse', 'reaction')),
    name text NOT NULL,
    version integer NOT NULL,
    PRIMARY KEY (engine, name)
);

CREATE TABLE checkpoints (
    engine text NOT NULL,
    name text NOT NULL,
    version integer NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (engine, name, version, topic, partition)
) WITH (fillfactor = 50);

CREATE TABLE parked (                               -- facts a projection could not take, and those behind them
    engine text NOT NULL,
    name text NOT NULL,
    stream text NOT NULL,                           -- tenant/stream
    position bigint NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    reason text NOT NULL,
    parked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (engine, name, stream, position)
);

CREATE TABLE due (                                  -- deadlines: commands to issue at an instant
    key text NOT NULL,
    tenant text NOT NULL,
    at timestamptz NOT NULL,
    command text NOT NULL,
    body jsonb NOT NULL,
    causation uuid NOT NULL,
    correlation uuid NOT NULL,
    PRIMARY KEY (tenant, key)
);
CREATE INDEX due_at ON due (at);

-- A parked fact is its tenant's business; how many there are is everybody's who shows what is complete.
ALTER TABLE parked ENABLE ROW LEVEL SECURITY;
ALTER TABLE parked FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON parked TO counterfoil_owner USING (true) WITH CHECK (true);
CREATE POLICY worker_all ON parked TO counterfoil_worker USING (true) WITH CHECK (true);
CREATE POLICY app_own_tenant ON parked FOR SELECT TO counterfoil_app
    USING (split_part(stream, '/', 1) = current_setting('counterfoil.tenant', true));
CREATE VIEW parked_counts AS                        -- with its owner's rights, on purpose
SELECT engine, name, split_part(stream, '/', 1) AS tenant, count(*) AS facts FROM parked GROUP BY 1, 2, 3;
GRANT SELECT ON parked_counts TO counterfoil_app, counterfoil_worker;

GRANT SELECT ON relay, relay_head, projections, checkpoints, parked TO counterfoil_app;
GRANT SELECT, INSERT, UPDATE, DELETE
    ON relay, relay_head, projections, checkpoints, parked, due TO counterfoil_worker;
