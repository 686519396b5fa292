-- Snapshots: states that were dear to fold, kept beside the log and never believed without a look at it.
-- Runs as counterfoil_owner inside the ledger's schema, which is first on the search path.

CREATE TABLE snapshots (
    stream text COLLATE "C" NOT NULL CHECK (strpos(stream, '/') > 1),   -- tenant/stream
    name text COLLATE "C" NOT NULL,                 -- of the state it is folded into
    shape bytea NOT NULL,                           -- of that state in the program that wrote it
    epoch integer NOT NULL,
    version bigint NOT NULL,                        -- of the last fact in it, and
    position bigint NOT NULL,                       -- where that is
    at_us bigint NOT NULL,                          -- when that was recorded, microseconds UTC
    digest bytea NOT NULL,                          -- of all of this and the state: infra/snapshots.py
    state bytea NOT NULL,                           -- as JSON
    PRIMARY KEY (stream, name)
);

CREATE FUNCTION keep_snapshot(
    p_stream text, p_name text, p_shape bytea, p_epoch integer, p_version bigint, p_position bigint,
    p_at_us bigint, p_digest bytea, p_state bytea
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $body$
-- One row for a stream and a state: the newest, or whatever takes the place of one that is of no use. Takes no
-- lock of the head, and no flush is waited for: a snapshot that is lost was none.
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO snapshots AS kept
    SELECT p_stream, p_name, p_shape, p_epoch, p_version, p_position, p_at_us, p_digest, p_state
      FROM head h WHERE h.epoch = p_epoch
    ON CONFLICT (stream, name) DO UPDATE
       SET shape = p_shape, epoch = p_epoch, version = p_version, position = p_position, at_us = p_at_us,
           digest = p_digest, state = p_state
     WHERE (kept.epoch, kept.shape) IS DISTINCT FROM (p_epoch, p_shape) OR kept.version <= p_version;
END
$body$;

CREATE FUNCTION read_states(
    p_tenant text, p_streams text[], p_after bigint[],
    p_names text[], p_shapes bytea[]                -- of the state that is wanted; null: only facts will do
) RETURNS TABLE (stream text, version bigint, pos bigint, topic text, state bytea)
LANGUAGE plpgsql
  SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_hashjoin = off AS $body$
-- First a row for the epoch, as version; then, for each stream, its snapshot if there is one to believe (a row
-- without a name), and the facts after it. One statement: snapshot, epoch and facts are of the same instant.
-- The caller's own rights and row-level security apply; the tenant is set for this transaction only.
BEGIN
    PERFORM set_config('counterfoil.tenant', p_tenant, true);
    RETURN QUERY
        WITH asked AS MATERIALIZED (
            SELECT r.s, p_tenant || '/' || r.s AS full_name, greatest(r.v, coalesce(k.version, r.v)) AS after,
                   k.version, k.position, k.digest || int8send(k.at_us) || k.state AS body
              FROM unnest(p_streams, p_after, p_names, p_shapes) r(s, v, name, shape)
              LEFT JOIN LATERAL (
                  SELECT * FROM snapshots k
                   WHERE k.stream = p_tenant || '/' || r.s AND k.name = r.name AND k.shape = r.shape
                     AND k.epoch = (SELECT h.epoch FROM head h) AND k.version > r.v
                     AND EXISTS (SELECT FROM stored_events e
                                  WHERE e.originator_id = k.stream AND e.originator_version = k.version
                                    AND e.notification_id = k.position)
                  OFFSET 0) k ON true
        )
        SELECT '', h.epoch::bigint, 0::bigint, '', ''::bytea FROM head h
         UNION ALL
        SELECT a.s, a.version, a.position, '', a.body FROM asked a WHERE a.version IS NOT NULL
         UNION ALL
        SELECT a.s, e.originator_version, e.notification_id, e.topic, e.state
          FROM asked a,
               LATERAL (SELECT * FROM stored_events e
                         WHERE e.originator_id = a.full_name AND e.originator_version > a.after
                         ORDER BY e.originator_version OFFSET 0) e
         ORDER BY 1, 2;
END
$body$;

ALTER TABLE snapshots ENABLE ROW LEVEL SECURITY;
ALTER TABLE snapshots FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON snapshots TO counterfoil_owner USING (true) WITH CHECK (true);
CREATE POLICY worker_reads ON snapshots FOR SELECT TO counterfoil_worker USING (true);
CREATE POLICY app_own_tenant ON snapshots FOR SELECT TO counterfoil_app
    USING (split_part(stream, '/', 1) = current_setting('counterfoil.tenant', true));

REVOKE ALL ON FUNCTION keep_snapshot FROM PUBLIC;
GRANT EXECUTE ON FUNCTION keep_snapshot TO counterfoil_app, counterfoil_worker;
GRANT EXECUTE ON FUNCTION read_states TO counterfoil_app, counterfoil_worker;
GRANT SELECT ON snapshots TO counterfoil_app, counterfoil_worker;
