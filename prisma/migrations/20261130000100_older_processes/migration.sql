-- Refuses processes of 0.6 and older. They know nothing of what counts since then, and set no hourhand.protocol. They
-- may read, and write nothing that a figure depends on. What they try fails with class 55, which they take for a fault
-- of the server, and try again. The gateway writes into none of these tables except StatMark, and there it only
-- inserts.
CREATE FUNCTION "refuseOlderProcess"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'expected hourhand 0.7 or newer, found an older process (pid %, %): replace it',
                    pg_backend_pid(), coalesce(nullif(current_setting('application_name'), ''), 'without a name')
        USING ERRCODE = '55000', HINT = 'By hand, say SET hourhand.protocol = ''2'' first.';
END $$;

CREATE TRIGGER "refuse older processes" BEFORE INSERT OR UPDATE OR DELETE ON "StatHour"
    FOR EACH STATEMENT WHEN (current_setting('hourhand.protocol', true) IS DISTINCT FROM '2')
    EXECUTE FUNCTION "refuseOlderProcess"();

CREATE TRIGGER "refuse older processes" BEFORE INSERT OR UPDATE OR DELETE ON "ModelCallStat"
    FOR EACH STATEMENT WHEN (current_setting('hourhand.protocol', true) IS DISTINCT FROM '2')
    EXECUTE FUNCTION "refuseOlderProcess"();

-- Its sweep forgets marks of which newer ones write down what they were.
CREATE TRIGGER "refuse older processes" BEFORE DELETE ON "StatMark"
    FOR EACH STATEMENT WHEN (current_setting('hourhand.protocol', true) IS DISTINCT FROM '2')
    EXECUTE FUNCTION "refuseOlderProcess"();

-- Each command and each button that changes something writes this line first: import and partition among them.
CREATE TRIGGER "refuse older processes" BEFORE INSERT ON "OperatorAction"
    FOR EACH STATEMENT WHEN (current_setting('hourhand.protocol', true) IS DISTINCT FROM '2')
    EXECUTE FUNCTION "refuseOlderProcess"();

-- To an older worker the partitions are somebody else's from now on: it would make them under too weak a lock.
DO $$
DECLARE
    plan CONSTANT text := obj_description('"ModelCall"'::regclass, 'pg_class');
BEGIN
    IF plan LIKE 'hourhand partition: by %' THEN
        EXECUTE format('COMMENT ON TABLE "ModelCall" IS %L',
                       replace(plan, 'hourhand partition: ', 'hourhand partitions: '));
    END IF;
END $$;
