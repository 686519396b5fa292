-- The log of one ledger: facts, the head row, spent keys, and the one way to append.
-- Runs as counterfoil_owner inside the ledger's schema, which is first on the search path.

CREATE TABLE stored_events (           -- names of the columns are the eventsourcing library's
    originator_id text COLLATE "C" NOT NULL,        -- tenant/stream
    originator_version bigint NOT NULL,
    topic text COLLATE "C" NOT NULL,                -- the fact's stored name
    state bytea NOT NULL,                           -- header, envelope, data: see infra/mapper.py
    notification_id bigint NOT NULL,                -- position: gap-free, in commit order
    PRIMARY KEY (originator_id, originator_version)
) WITH (
    autovacuum_vacuum_threshold = 100000000,        -- nothing is ever updated or deleted
    autovacuum_analyze_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.01
);
CREATE UNIQUE INDEX stored_events_notification_id_idx ON stored_events (notification_id);

CREATE TABLE head (                    -- locking this row is the order of the ledger
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    position bigint NOT NULL,
    at_us bigint NOT NULL,                          -- recorded time of the last fact, microseconds UTC
    epoch integer NOT NULL                          -- raised by a restore
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
INSERT INTO head VALUES (true, 0, 0, 1);

CREATE TABLE commands (                -- spent idempotency keys: they never expire
    tenant text COLLATE "C" NOT NULL CHECK (tenant <> '' AND strpos(tenant, '/') = 0),
    actor text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,
    command text NOT NULL,
    first_position bigint NOT NULL,
    facts integer NOT NULL,
    PRIMARY KEY (tenant, actor, key)
);

CREATE TYPE newer_fact AS (stream text, version bigint, pos bigint, topic text, state bytea);

CREATE FUNCTION append(
    p_tenant text, p_actor text, p_key text, p_digest bytea, p_command text,
    p_read_streams text[], p_read_versions bigint[],
    p_streams integer[], p_topics text[], p_states bytea[], p_at_us bigint,
    OUT outcome text, OUT last_position bigint, OUT fact_count integer, OUT recorded_us bigint,
    OUT spent_digest bytea, OUT newer newer_fact[]
) LANGUAGE plpgsql SECURITY DEFINER
  SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_hashjoin = off AS $body$
-- One command: appended, or told why not. Every word of the answer is decided under the head row.
-- The tenant is an argument: who may append at all may append for any tenant, and the handler says whose
-- actor asks. Row-level security is the wall for reading.
-- `p_streams` numbers each fact's stream among those read (from 1), so a fact always follows what
-- was read of its stream, without a gap. Plans are pinned to the indexes because they are cached
-- while the table is still empty.
DECLARE
    base bigint;
    stale text[];
BEGIN
    SELECT h.position, greatest(h.at_us, p_at_us) INTO base, recorded_us FROM head h FOR UPDATE;

    SELECT c.digest, c.first_position + c.facts - 1, c.facts INTO spent_digest, last_position, fact_count
      FROM commands c WHERE (c.tenant, c.actor, c.key) = (p_tenant, p_actor, p_key);
    IF FOUND THEN
        outcome := 'spent';
        RETURN;
    END IF;

    -- everything that was read is pinned at its version (a correlated maximum is one index probe)
    stale := ARRAY(
        SELECT r.stream FROM unnest(p_read_streams, p_read_versions) r(stream, version)
         WHERE r.version IS DISTINCT FROM coalesce((SELECT max(e.originator_version) FROM stored_events e
                                           WHERE e.originator_id = p_tenant || '/' || r.stream), 0));
    IF cardinality(stale) > 0 THEN
        outcome := 'stale';
        newer := ARRAY(
            SELECT ROW(r.stream, e.originator_version, e.notification_id, e.topic, e.state)::newer_fact
              FROM unnest(p_read_streams, p_read_versions) r(stream, version),
                   LATERAL (SELECT * FROM stored_events e
                             WHERE e.originator_id = p_tenant || '/' || r.stream
                               AND e.originator_version > r.version
                             ORDER BY e.originator_version OFFSET 0) e
             WHERE r.stream = ANY (stale)
             ORDER BY r.stream, e.originator_version);
        RETURN;
    END IF;

    fact_count := cardinality(p_streams);
    last_position := base + fact_count;
    INSERT INTO commands VALUES (p_tenant, p_actor, p_key, p_digest, p_command, base + 1, fact_count);
    IF fact_count > 0 THEN
        INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id)
        SELECT p_tenant || '/' || p_read_streams[f.stream],
               p_read_versions[f.stream] + row_number() OVER (PARTITION BY f.stream ORDER BY f.nth),
               f.topic, int8send(recorded_us) || f.state, base + f.nth
          FROM unnest(p_streams, p_topics, p_states) WITH ORDINALITY f(stream, topic, state, nth);
        UPDATE head SET position = last_position, at_us = recorded_us;
    END IF;
    outcome := 'appended';
END
$body$;

CREATE FUNCTION read_streams(p_tenant text, p_streams text[], p_after bigint[])
RETURNS TABLE (stream text, version bigint, pos bigint, topic text, state bytea)
LANGUAGE plpgsql
  SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_hashjoin = off AS $body$
-- The caller's own rights and row-level security apply; the tenant is set for this transaction only.
BEGIN
    PERFORM set_config('counterfoil.tenant', p_tenant, true);
    RETURN QUERY
        SELECT r.s, e.originator_version, e.notification_id, e.topic, e.state
          FROM unnest(p_streams, p_after) r(s, v),
               LATERAL (SELECT * FROM stored_events e
                         WHERE e.originator_id = p_tenant || '/' || r.s AND e.originator_version > r.v
                         ORDER BY e.originator_version OFFSET 0) e
         ORDER BY r.s, e.originator_version;
END
$body$;

CREATE FUNCTION read_recorded(p_tenant text, p_first bigint, p_count integer)
RETURNS TABLE (stream text, version bigint, pos bigint, topic text, state bytea)
LANGUAGE plpgsql
  SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_hashjoin = off AS $body$
BEGIN
    PERFORM set_config('counterfoil.tenant', p_tenant, true);
    RETURN QUERY
        SELECT substr(e.originator_id, length(p_tenant) + 2), e.originator_version, e.notification_id,
               e.topic, e.state
          FROM stored_events e
         WHERE e.notification_id BETWEEN p_first AND p_first + p_count - 1
         ORDER BY e.notification_id;
END
$body$;

CREATE FUNCTION spent_key(p_tenant text, p_actor text, p_key text,
                          OUT spent_digest bytea, OUT last_position bigint, OUT fact_count integer)
LANGUAGE plpgsql AS $body$
BEGIN
    PERFORM set_config('counterfoil.tenant', p_tenant, true);
    SELECT c.digest, c.first_position + c.facts - 1, c.facts INTO spent_digest, last_position, fact_count
      FROM commands c WHERE (c.tenant, c.actor, c.key) = (p_tenant, p_actor, p_key);
END
$body$;

-- Facts as people read them.
CREATE VIEW facts WITH (security_invoker = true) AS
SELECT e.notification_id AS position,
       split_part(e.originator_id, '/', 1) AS tenant,
       substr(e.originator_id, strpos(e.originator_id, '/') + 1) AS stream,
       e.originator_version AS version,
       e.topic AS name,
       'epoch'::timestamptz + ('x' || encode(substr(e.state, 1, 8), 'hex'))::bit(64)::bigint
           * interval '1 microsecond' AS at,
       convert_from(substr(e.state, 15, b.length), 'UTF8')::json AS envelope,
       convert_from(substr(e.state, 15 + b.length), 'UTF8')::json AS data
  FROM stored_events e,
       LATERAL (SELECT get_byte(e.state, 12) * 256 + get_byte(e.state, 13) AS length) b;

-- The second wall: a row of another tenant does not exist, and without a tenant nothing does.
ALTER TABLE stored_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE stored_events FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON stored_events TO counterfoil_owner USING (true) WITH CHECK (true);
CREATE POLICY worker_reads ON stored_events FOR SELECT TO counterfoil_worker USING (true);
CREATE POLICY app_own_tenant ON stored_events FOR SELECT TO counterfoil_app
    USING (split_part(originator_id, '/', 1) = current_setting('counterfoil.tenant', true));
ALTER TABLE commands ENABLE ROW LEVEL SECURITY;
ALTER TABLE commands FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON commands TO counterfoil_owner USING (true) WITH CHECK (true);
CREATE POLICY worker_reads ON commands FOR SELECT TO counterfoil_worker USING (true);
CREATE POLICY app_own_tenant ON commands FOR SELECT TO counterfoil_app
    USING (tenant = current_setting('counterfoil.tenant', true));

REVOKE ALL ON FUNCTION append FROM PUBLIC;
GRANT EXECUTE ON FUNCTION append TO counterfoil_app, counterfoil_worker;
GRANT EXECUTE ON FUNCTION read_streams, read_recorded, spent_key TO counterfoil_app, counterfoil_worker;
GRANT SELECT ON stored_events, commands, head, facts TO counterfoil_app, counterfoil_worker;
