-- What the operator's page reads of an hour without adding up its users' rows or its calls.
ALTER TABLE "StatHour" ADD COLUMN "successCalls" BIGINT,
ADD COLUMN "failedCalls" BIGINT,
ADD COLUMN "totalUsage" DECIMAL(40,0),
ADD COLUMN "totalCredits" DECIMAL(40,8),
ADD COLUMN "modelsAsOf" TIMESTAMPTZ(6);

CREATE TABLE "StatRun" (
    "hour" TIMESTAMPTZ(6) NOT NULL,
    "run" INTEGER NOT NULL,
    "reason" "HourReason" NOT NULL,
    "requestedBy" TEXT,
    "job" TEXT,
    "startedAt" TIMESTAMPTZ(6) NOT NULL,
    "endedAt" TIMESTAMPTZ(6),
    "outcome" "HourState",
    "error" TEXT,

    CONSTRAINT "StatRun_pkey" PRIMARY KEY ("hour","run")
);

CREATE TABLE "StatModel" (
    "hour" TIMESTAMPTZ(6) NOT NULL,
    "providerId" TEXT NOT NULL,
    "model" TEXT NOT NULL,
    "type" "ModelCallType" NOT NULL,
    "totalCalls" BIGINT NOT NULL,
    "successCalls" BIGINT NOT NULL,
    "failedCalls" BIGINT NOT NULL,
    "totalUsage" DECIMAL(40,0) NOT NULL,
    "totalCredits" DECIMAL(40,8) NOT NULL,

    CONSTRAINT "StatModel_pkey" PRIMARY KEY ("hour","providerId","model","type")
);

-- What Prisma's schema cannot say: the closed hours whose models, or totals, are still to be derived, src/store/hour-models.ts.
CREATE INDEX "StatHour_models_idx" ON "StatHour" (hour)
    WHERE state = 'closed' AND (("sealedAt" IS NULL AND "modelsAsOf" IS DISTINCT FROM "asOf") OR "totalUsage" IS NULL);

-- As it was, and a call's model counts too: StatModel has figures of it.
CREATE OR REPLACE FUNCTION "markLateCall"() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    running CONSTANT timestamptz := date_trunc('hour', clock_timestamp(), 'UTC');
    was timestamptz := CASE WHEN TG_OP <> 'INSERT' THEN date_trunc('hour', OLD."callTime", 'UTC') END;
    becomes timestamptz := CASE WHEN TG_OP <> 'DELETE' THEN date_trunc('hour', NEW."callTime", 'UTC') END;
BEGIN
    -- Not in WHEN, which the running hour's statements would copy and parse too.
    IF TG_OP = 'UPDATE' AND -- nothing that counts has changed
       (OLD."userDid", OLD."callTime", OLD."providerId", OLD.model, OLD.type, OLD.status, OLD."totalUsage", OLD."inputTokens",
        OLD."outputTokens", OLD."usageMetrics", OLD.credits, OLD.duration)
       IS NOT DISTINCT FROM
       (NEW."userDid", NEW."callTime", NEW."providerId", NEW.model, NEW.type, NEW.status, NEW."totalUsage", NEW."inputTokens",
        NEW."outputTokens", NEW."usageMetrics", NEW.credits, NEW.duration) THEN
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
DO $$ BEGIN -- replaced, it has lost it
    EXECUTE format('ALTER FUNCTION "markLateCall"() SET search_path = %I, pg_temp', current_schema());
END $$;
