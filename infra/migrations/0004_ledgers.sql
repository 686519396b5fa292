-- Several ledgers: which tenants live where, and how a ledger is closed that moves to another database.

CREATE TABLE homes (                                -- as `counterfoil migrate` was told last; the same in every ledger
    tenant text COLLATE "C" PRIMARY KEY,
    ledger text NOT NULL                            -- tenants of the default ledger are not named
);
ALTER TABLE homes ENABLE ROW LEVEL SECURITY;
ALTER TABLE homes FORCE ROW LEVEL SECURITY;
CREATE POLICY owner_all ON homes TO counterfoil_owner USING (true) WITH CHECK (true);
CREATE POLICY worker_reads ON homes FOR SELECT TO counterfoil_worker USING (true);
CREATE POLICY app_own_tenant ON homes FOR SELECT TO counterfoil_app
    USING (tenant = current_setting('counterfoil.tenant', true));
GRANT SELECT ON homes TO counterfoil_app, counterfoil_worker;

CREATE TABLE ledgers (                              -- the installation's, as that `migrate` found them
    ledger text PRIMARY KEY,
    identity uuid NOT NULL
);
GRANT SELECT ON ledgers TO counterfoil_worker;

ALTER TABLE head
    ADD COLUMN identity uuid NOT NULL DEFAULT gen_random_uuid(),    -- which ledger it is, wherever it moves
    ADD COLUMN closed text CHECK (closed IN ('moving', 'moved')),
    ADD COLUMN move uuid;                           -- which move closed this ledger, or brought it here

-- Off while a ledger is open. `append` needs no word of it, as long as it locks the head row before it inserts.
CREATE FUNCTION refuse_closed() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    RAISE EXCEPTION 'this ledger is closed' USING ERRCODE = 'CF001';
END
$body$;
CREATE TRIGGER closed BEFORE INSERT ON commands FOR EACH STATEMENT EXECUTE FUNCTION refuse_closed();
CREATE TRIGGER closed BEFORE INSERT ON stored_events FOR EACH STATEMENT EXECUTE FUNCTION refuse_closed();
ALTER TABLE commands DISABLE TRIGGER closed;
ALTER TABLE stored_events DISABLE TRIGGER closed;
