-- CreateTable
CREATE TABLE "StaleBatch" (
    "id" BIGSERIAL NOT NULL,
    "cleanup" TEXT NOT NULL,
    "requestedBy" TEXT,
    "at" TIMESTAMPTZ(6) NOT NULL,
    "calls" BIGINT NOT NULL,
    "models" JSONB NOT NULL,
    "hours" JSONB NOT NULL,

    CONSTRAINT "StaleBatch_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE INDEX "StaleBatch_at_idx" ON "StaleBatch"("at");

-- What Prisma's schema cannot say.

ALTER TABLE "StaleBatch"
    ADD CONSTRAINT "StaleBatch_calls_check" CHECK (calls > 0);

-- The calls under way, the oldest first: all that the clean-up reads. What it costs the gateway: docs/decisions/0005-unfinished-calls.md.
-- Writers wait while it is made. Where that would be long, make it before this migration, CONCURRENTLY and by this name.
CREATE INDEX IF NOT EXISTS "ModelCall_processing_idx" ON "ModelCall" ("callTime", id) WHERE status = 'processing';

-- Whatever the gateway says of a call after the clean-up failed it is accepted. Its user's hour is then to be rolled up
-- again, if it ever was, or is to be: known to the ledger, covered, or rolled up for this user alone. A running hour takes the
-- mark too, and keeps it until it has ended: the gateway's transaction may end after the hour. A sealed one takes none.
-- With its owner's rights, so that the gateway needs none on hourhand's tables; and whatever goes wrong here, the
-- gateway's UPDATE does not: it gets a warning, and `hourhand verify` finds the difference.
CREATE FUNCTION "markLateEnd"() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    called CONSTANT timestamptz := date_trunc('hour', NEW."callTime", 'UTC');
BEGIN
    INSERT INTO "StatMark" (hour, "userDid", reason)
    SELECT called, NEW."userDid", 'late'
     WHERE NOT EXISTS (SELECT FROM "StatHour" l WHERE l.hour = called AND l."sealedAt" IS NOT NULL)
       AND (EXISTS (SELECT FROM "StatHour" l WHERE l.hour = called)
            OR EXISTS (SELECT FROM "StatRange" r WHERE r.start <= called AND coalesce(r."end", 'infinity') > called)
            OR EXISTS (SELECT FROM "ModelCallStat" s
                        WHERE s."timeType" = 'hour' AND s."timestamp" = called AND s."userDid" = NEW."userDid"));
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'hourhand: no mark for a late end of call %: %', NEW.id, SQLERRM;
    RETURN NULL;
END $$;

-- Nothing that the gateway's role may put into its own schemas is met on the way.
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION "markLateEnd"() SET search_path = %I, pg_temp', current_schema());
END $$;
REVOKE ALL ON FUNCTION "markLateEnd"() FROM PUBLIC;

-- False, and so nearly free, for every call that was not failed by the clean-up. The words are those of src/store/stale.ts.
CREATE TRIGGER "ModelCall_late_end" AFTER UPDATE ON "ModelCall" FOR EACH ROW
    WHEN (OLD.status = 'failed' AND OLD."errorReason" LIKE 'Timeout: Processing exceeded %' AND NEW IS DISTINCT FROM OLD)
    EXECUTE FUNCTION "markLateEnd"();
