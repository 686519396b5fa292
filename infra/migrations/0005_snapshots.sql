-- Snapshots: states that were dear to fold, kept beside the log and never believed without a look at it.
-- Runs as counterfoil_owner inside the ledger's schema, which is first on the search path.

CREATE TABLE state_snapshots (  -- the eventsourcing library may have a table by the shorter name
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
    INSERT INTO state_snapshots AS kept
    SELECT p_stream, p_name, p_shape, p_epoch, p_version, p_position, p_at_us, p_digest, p_state
      FROM head h WHERE h.epoch = p_epoch
    ON CONFLICT (stream, name) DO UPDATE
       SET shape = p_shape, epoch = p_epoch, version = p_version, position = p_position, at_us = p_at_us,
           digest = p_digest, state = p_state
     WHERE kept.version <= p_version OR (kept.epoch, kept.shape) IS DISTINCT FROM (p_epoch, p_shape)
        OR NOT EXISTS (SELECT FROM stored_events e
                        WHERE e.originator_id = kept.stream AND e.originator_version = kept.version
                          AND e.notification_id = kept.position);
END
$body$;

CREATE FUNCTION read_states(
    p_tenant text, p_streams text[], p_after bigint[],
    p_names text[], p_shapes bytea[]                -- of the state that is wanted; null: only facts will do
) RETURNS TABLE (stream text, version bigint, pos bigint, topic text, state bytea)
LANGUAGE plpgsql STABLE                             -- so that epoch, snapshots and facts are of one instant
  SET plan_cache_mode = force_generic_plan          -- to plan anew each time took longer than to read
  SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_hashjoin = off AS $body$
-- First a row for the epoch, as version; then the snapshots there are to believe, rows without a name; then the
-- facts: of a stream with a snapshot those after it, else those after what was asked for.
-- The caller's own rights and row-level security apply; the tenant is set for this transaction only.
DECLARE
    nth bigint;
    epoch_now integer;
BEGIN
    PERFORM set_config('counterfoil.tenant', p_tenant, true);
    SELECT h.epoch INTO epoch_now FROM head h;
    stream := '';
    version := epoch_now;
    pos := 0;
    topic := '';
    state := '';
    RETURN NEXT;
    FOR nth, stream, version, pos, state IN
        SELECT r.nth, r.s, k.version, k.position, k.digest || int8send(k.at_us) || k.state
          FROM unnest(p_streams, p_names, p_shapes) WITH ORDINALITY r(s, name, shape, nth),
               LATERAL (SELECT * FROM state_snapshots k
                         WHERE k.stream = p_tenant || '/' || r.s AND k.name = r.name OFFSET 0) k
         WHERE k.shape = r.shape AND k.epoch = epoch_now
           AND EXISTS (SELECT FROM stored_events e
                        WHERE e.originator_id = k.stream AND e.originator_version = k.version
                          AND e.notification_id = k.position)
    LOOP
        CONTINUE WHEN version <= p_after[nth];
        p_after[nth] := version;
        RETURN NEXT;
    END LOOP;
    RETURN QUERY
        SELECT r.s, e.originator_version, e.notification_id, e.topic, e.state
          FROM unnest(p_streams, p_after) r(s, v),
               LATERAL (SELECT * FROM stored_events e
                         WHERE e.originator_id = p_tenant || '/' || r.s AND e.originator_version > r.v
                         ORDER BY e.originator_version OFFSET 0) e
         ORDER BY r.s, e.originator_version;
END
$body$;

ALTER TABLE state_snapshots ENABLE ROW LEVEL SECURITY;
ALTER TABLE state_snapshots FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON state_snapshots TO counterfoil_owner USING (true) WITH CHECK (true);
CREATE POLICY worker_reads ON state_snapshots FOR SELECT TO counterfoil_worker USING (true);
CREATE POLICY app_own_tenant ON state_snapshots FOR SELECT TO counterfoil_app
    USING (split_part(stream, '/', 1) = current_setting('counterfoil.tenant', true));

REVOKE ALL ON FUNCTION keep_snapshot FROM PUBLIC;
GRANT EXECUTE ON FUNCTION keep_snapshot TO counterfoil_app, counterfoil_worker;
GRANT EXECUTE ON FUNCTION read_states TO counterfoil_app, counterfoil_worker;
GRANT SELECT ON state_snapshots TO counterfoil_app, counterfoil_worker;
