-- Appends go in batches: what many callers want recorded, in one call and one commit.
-- Runs as counterfoil_owner inside the ledger's schema, which is first on the search path.

DROP FUNCTION append(text, text, text, bytea, text, text[], bigint[], integer[], text[], bytea[], bigint);

CREATE FUNCTION append(
    p_epoch integer,                       -- the caller's; another one means that what it remembers is void
    p_at_us bigint,                        -- the latest time that any of the commands was decided at
    p_stamped boolean,                     -- states get the recorded time in front; false: stored as they are
    -- the commands, in order:
    p_tenants text[], p_actors text[], p_keys text[], p_digests bytea[], p_commands text[],
    p_spends boolean[],                    -- false: only confirm what was read (a refusal rests on it)
    p_read_counts integer[], p_fact_counts integer[],
    p_facts_before integer[],              -- in this batch, in front of each command's own
    -- the streams they read or write, and the version each had before the first of them:
    p_streams text[], p_versions bigint[],
    -- what each command read, one command after another: which stream, at which version
    p_read_streams integer[], p_read_versions bigint[],
    -- the facts, one command after another: which stream (number and name), and the version it gets there
    p_fact_streams integer[], p_fact_names text[], p_fact_versions bigint[], p_topics text[], p_states bytea[]
) RETURNS TABLE (
    outcome text, last_position bigint, fact_count integer, recorded_us bigint, spent_digest bytea,
    newer newer_fact[]
) LANGUAGE plpgsql SECURITY DEFINER
  SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_hashjoin = off AS $body$
-- Either one row, 'all': every command is recorded, in order, up to `last_position`; or 'restored', with the
-- present epoch in `fact_count`; or a row for each command that says what became of it. Every word is decided
-- under the head row. The tenant is part of a stream's name: who may append at all may append for any tenant,
-- and the handler says whose actor asks. Row-level security is the wall for reading.
-- Plans are pinned to the indexes because they are cached while the table is still empty.
DECLARE
    base bigint;
    epoch_now integer;
    stamp bytea;                           -- what goes in front of every state
    recorded integer := 0;                 -- facts so far
    current bigint[];                      -- versions by stream
    undone boolean[];                      -- streams that a command before this one failed to write
    forsaken boolean;
    behind integer[];
    reads integer := 0;
    facts integer := 0;
    nth integer;
BEGIN
    IF true = ANY (p_spends) THEN
        SELECT h.position, greatest(h.at_us, p_at_us), h.epoch INTO base, recorded_us, epoch_now
          FROM head h FOR UPDATE;
    ELSE                                   -- nothing will be written
        SELECT h.position, greatest(h.at_us, p_at_us), h.epoch INTO base, recorded_us, epoch_now FROM head h;
    END IF;
    IF epoch_now <> p_epoch THEN
        outcome := 'restored';
        fact_count := epoch_now;
        RETURN NEXT;
        RETURN;
    END IF;

    stamp := CASE WHEN p_stamped THEN int8send(recorded_us) ELSE '' END;

    -- Everything that was read is pinned at its version (a correlated maximum is one index probe), and no key
    -- is spent: the rest is two inserts. A stream without facts may have been read at 0 or at -1: the
    -- eventsourcing library lets an application number its first event 1 or 0.
    IF NOT EXISTS (SELECT 1 FROM unnest(p_streams, p_versions) r(stream, version)
                    WHERE r.version IS DISTINCT FROM coalesce((SELECT max(e.originator_version)
                              FROM stored_events e WHERE e.originator_id = r.stream),
                              greatest(least(r.version, 0), -1)))
       AND NOT EXISTS (SELECT 1 FROM unnest(p_tenants, p_actors, p_keys) k(tenant, actor, key)
                        WHERE (SELECT c.facts FROM commands c
                                WHERE (c.tenant, c.actor, c.key) = (k.tenant, k.actor, k.key)) IS NOT NULL)
    THEN
        INSERT INTO commands
        SELECT c.tenant, c.actor, c.key, c.digest, c.command,
               base + 1 + c.facts_before, c.facts
          FROM unnest(p_tenants, p_actors, p_keys, p_digests, p_commands, p_facts_before, p_fact_counts, p_spends)
               c(tenant, actor, key, digest, command, facts_before, facts, spends)
         WHERE c.spends;
        recorded := cardinality(p_states);
        INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id)
        SELECT f.stream, f.version, f.topic, stamp || f.state, base + f.nth
          FROM unnest(p_fact_names, p_fact_versions, p_topics, p_states)
               WITH ORDINALITY f(stream, version, topic, state, nth);
        IF recorded > 0 THEN
            UPDATE head SET position = base + recorded, at_us = recorded_us;
        END IF;
        outcome := 'all';
        last_position := base + recorded;
        RETURN NEXT;
        RETURN;
    END IF;

    -- Somebody was here before: command by command.
    current := ARRAY(SELECT coalesce((SELECT max(e.originator_version) FROM stored_events e
                                       WHERE e.originator_id = r.stream),
                                     greatest(least(r.version, 0), -1))
                       FROM unnest(p_streams, p_versions) WITH ORDINALITY r(stream, version, nth)
                      ORDER BY r.nth);
    undone := array_fill(false, ARRAY[cardinality(p_streams)]);
    FOR nth IN 1 .. cardinality(p_keys) LOOP
        newer := NULL;
        SELECT c.digest, c.first_position + c.facts - 1, c.facts INTO spent_digest, last_position, fact_count
          FROM commands c WHERE (c.tenant, c.actor, c.key) = (p_tenants[nth], p_actors[nth], p_keys[nth]);
        IF FOUND THEN
            outcome := 'spent';
        ELSE
            forsaken := false;
            behind := '{}';
            FOR r IN reads + 1 .. reads + p_read_counts[nth] LOOP
                forsaken := forsaken OR undone[p_read_streams[r]];
                IF current[p_read_streams[r]] IS DISTINCT FROM p_read_versions[r] THEN
                    behind := behind || r;
                END IF;
            END LOOP;
            outcome := CASE WHEN forsaken THEN 'undone' WHEN behind <> '{}' THEN 'stale' ELSE 'appended' END;
        END IF;
        IF outcome = 'appended' THEN
            fact_count := p_fact_counts[nth];
            last_position := base + recorded + fact_count;
            IF p_spends[nth] THEN
                INSERT INTO commands VALUES (p_tenants[nth], p_actors[nth], p_keys[nth], p_digests[nth],
                                             p_commands[nth], base + recorded + 1, fact_count);
            END IF;
            INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id)
            SELECT p_fact_names[f], p_fact_versions[f], p_topics[f], stamp || p_states[f],
                   base + recorded + f - facts
              FROM generate_series(facts + 1, facts + fact_count) f;
            FOR f IN facts + 1 .. facts + fact_count LOOP
                current[p_fact_streams[f]] := p_fact_versions[f];
            END LOOP;
            recorded := recorded + fact_count;
        ELSE
            FOR f IN facts + 1 .. facts + p_fact_counts[nth] LOOP
                undone[p_fact_streams[f]] := true;
            END LOOP;
            IF outcome = 'stale' AND p_stamped THEN    -- who stores states as they are has no use for these
                newer := ARRAY(
                    SELECT ROW(substr(p_streams[s], length(p_tenants[nth]) + 2), e.originator_version,
                               e.notification_id, e.topic, e.state)::newer_fact
                      FROM unnest(behind) b(r),
                           LATERAL (SELECT p_read_streams[b.r] AS s, p_read_versions[b.r] AS version) v,
                           LATERAL (SELECT * FROM stored_events e
                                     WHERE e.originator_id = p_streams[s] AND e.originator_version > v.version
                                     ORDER BY e.originator_version OFFSET 0) e
                     ORDER BY 1);
            END IF;
        END IF;
        reads := reads + p_read_counts[nth];
        facts := facts + p_fact_counts[nth];
        RETURN NEXT;
    END LOOP;
    IF recorded > 0 THEN
        UPDATE head SET position = base + recorded, at_us = recorded_us;
    END IF;
END
$body$;

REVOKE ALL ON FUNCTION append FROM PUBLIC;
GRANT EXECUTE ON FUNCTION append TO counterfoil_app, counterfoil_worker;
