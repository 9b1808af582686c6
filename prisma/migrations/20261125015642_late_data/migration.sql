-- AlterTable
ALTER TABLE "ModelCallStat" ADD COLUMN     "revision" INTEGER NOT NULL DEFAULT 1;

-- AlterTable
ALTER TABLE "StatHour" ADD COLUMN     "asOf" TIMESTAMPTZ(6),
ADD COLUMN     "auditFound" TEXT,
ADD COLUMN     "auditedAt" TIMESTAMPTZ(6),
ADD COLUMN     "fence" BIGINT,
ADD COLUMN     "revision" INTEGER NOT NULL DEFAULT 0;

-- CreateTable
CREATE TABLE "StatChange" (
    "seq" BIGSERIAL NOT NULL,
    "at" TIMESTAMPTZ(6) NOT NULL,
    "hour" TIMESTAMPTZ(6) NOT NULL,
    "userDid" TEXT NOT NULL,
    "revision" INTEGER NOT NULL,
    "reason" "HourReason" NOT NULL,
    "before" JSONB,
    "after" JSONB,

    CONSTRAINT "StatChange_pkey" PRIMARY KEY ("seq")
);

-- CreateIndex
CREATE INDEX "StatChange_hour_revision_idx" ON "StatChange"("hour", "revision");

-- CreateIndex
CREATE INDEX "StatChange_at_idx" ON "StatChange"("at");

-- What Prisma's schema cannot say.

-- Hours that closed before this migration count as settled: `hourhand verify`, and the audit, find what came late for them.
UPDATE "StatHour" SET revision = 1, "asOf" = coalesce("startedAt", "closedAt"), fence = 0 WHERE "closedAt" IS NOT NULL;

ALTER TABLE "StatHour"
    ADD CONSTRAINT "StatHour_revision_check" CHECK (revision >= 0 AND fence >= 0);

CREATE INDEX "StatHour_unsettled_idx" ON "StatHour" (hour) WHERE fence IS DISTINCT FROM 0;
CREATE INDEX "StatHour_auditFound_idx" ON "StatHour" (hour) WHERE "auditFound" IS NOT NULL;

-- A call that is written, changed or deleted after its hour has ended leaves a mark, in the writer's own transaction, by whatever
-- tool: its user is to be rolled up again in that hour. A call that moves marks both places. Nothing is marked for the hour that
-- still runs, nor for sealed ones. Why rows and not statements, and what this costs the gateway: docs/decisions/0007-late-data.md.
--
-- With its owner's rights, so that the gateway needs none on hourhand's tables; and whatever goes wrong here, the gateway's
-- statement does not: it gets a warning, and the audit finds the difference.
DROP TRIGGER "ModelCall_late_end" ON "ModelCall";
DROP FUNCTION "markLateEnd"();

CREATE FUNCTION "markLateCall"() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    running CONSTANT timestamptz := date_trunc('hour', clock_timestamp(), 'UTC');
    was timestamptz := CASE WHEN TG_OP <> 'INSERT' THEN date_trunc('hour', OLD."callTime", 'UTC') END;
    becomes timestamptz := CASE WHEN TG_OP <> 'DELETE' THEN date_trunc('hour', NEW."callTime", 'UTC') END;
BEGIN
    -- Not in WHEN, which the running hour's statements would copy and parse too.
    IF TG_OP = 'UPDATE' AND -- nothing that counts has changed
       (OLD."userDid", OLD."callTime", OLD.type, OLD.status, OLD."totalUsage", OLD."inputTokens", OLD."outputTokens",
        OLD."usageMetrics", OLD.credits, OLD.duration)
       IS NOT DISTINCT FROM
       (NEW."userDid", NEW."callTime", NEW.type, NEW.status, NEW."totalUsage", NEW."inputTokens", NEW."outputTokens",
        NEW."usageMetrics", NEW.credits, NEW.duration) THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' AND was = becomes AND OLD."userDid" = NEW."userDid" THEN
        was := NULL;
    END IF;
    INSERT INTO "StatMark" (hour, "userDid", reason)
    SELECT place.hour, place.who, 'late'
      FROM (VALUES (was, OLD."userDid"), (becomes, NEW."userDid")) AS place (hour, who)
     WHERE place.hour < running
       AND NOT EXISTS (SELECT FROM "StatHour" l WHERE l.hour = place.hour AND l."sealedAt" IS NOT NULL);
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'hourhand: no mark for a late change of call %: %', coalesce(NEW.id, OLD.id), SQLERRM;
    RETURN NULL;
END $$;

-- Nothing that the gateway's role may put into its own schemas is met on the way.
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION "markLateCall"() SET search_path = %I, pg_temp', current_schema());
END $$;
REVOKE ALL ON FUNCTION "markLateCall"() FROM PUBLIC;

-- By the clock at the row, not at the transaction's start: one that began in the hour may write after it. False, and so nearly free,
-- for every call of the hour that runs; short, because each statement copies and parses it; and by date_bin, which looks up no time
-- zone (date_trunc takes 0.7 µs a row). A load that marks by itself, hour by hour and user by user, says so: src/store/import.ts.
CREATE TRIGGER "ModelCall_late_insert" AFTER INSERT ON "ModelCall" FOR EACH ROW
    WHEN (NEW."callTime" < date_bin('1 hour', clock_timestamp(), '2000-01-01Z')
          AND current_setting('hourhand.marks_itself', true) IS DISTINCT FROM 'yes')
    EXECUTE FUNCTION "markLateCall"();
CREATE TRIGGER "ModelCall_late_update" AFTER UPDATE ON "ModelCall" FOR EACH ROW
    WHEN (least(OLD."callTime", NEW."callTime") < date_bin('1 hour', clock_timestamp(), '2000-01-01Z'))
    EXECUTE FUNCTION "markLateCall"();
CREATE TRIGGER "ModelCall_late_delete" AFTER DELETE ON "ModelCall" FOR EACH ROW
    WHEN (OLD."callTime" < date_bin('1 hour', clock_timestamp(), '2000-01-01Z'))
    EXECUTE FUNCTION "markLateCall"();
