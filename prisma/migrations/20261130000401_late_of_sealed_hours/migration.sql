-- Late calls of sealed hours are counted. Nothing that the gateway writes is locked: "ModelCall" is not touched, and
-- replacing a function takes no lock on it.

-- CreateTable
CREATE TABLE "StatLate" (
    "hour" TIMESTAMPTZ(6) NOT NULL,
    "userDid" TEXT NOT NULL,
    "writes" BIGINT NOT NULL,
    "firstAt" TIMESTAMPTZ(6) NOT NULL,
    "lastAt" TIMESTAMPTZ(6) NOT NULL,
    "accepted" BIGINT NOT NULL DEFAULT 0,
    "acceptedAt" TIMESTAMPTZ(6),
    "acceptedBy" TEXT,

    CONSTRAINT "StatLate_pkey" PRIMARY KEY ("hour","userDid")
);

-- What Prisma's schema cannot say.

ALTER TABLE "StatLate"
    ADD CONSTRAINT "StatLate_hour_check" CHECK (isfinite(hour) AND date_trunc('hour', hour, 'UTC') = hour),
    ADD CONSTRAINT "StatLate_accepted_check" CHECK (writes > 0 AND accepted BETWEEN 0 AND writes);

CREATE INDEX "StatLate_open_idx" ON "StatLate" (hour) WHERE writes > accepted;

-- As it was, except for three things.
--
-- 1. A sealed hour is marked like any other: by inserts, by counted updates, and by calls that move into it or out of
--    it. The look counts these marks as late (src/store/marks.ts). Only a DELETE in a sealed hour leaves no mark, so
--    that calls can be archived.
-- 2. In partitions a call that moves to another partition is a DELETE here and an INSERT there. If it leaves a sealed
--    hour, it must be told from a call that is archived. If the other hour has ended, this function runs for the
--    INSERT as well, and the DELETE leaves word for it in a setting of the transaction. If the other hour still runs,
--    or is to come, no function runs for the INSERT: then the DELETE finds the call there, by its id.
-- 3. A user whose name does not fit into the index of marks has the whole hour marked: by an empty name, which no
--    call can have.
CREATE OR REPLACE FUNCTION "markLateCall"() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    running CONSTANT timestamptz := date_trunc('hour', clock_timestamp(), 'UTC');
    was timestamptz := CASE WHEN TG_OP <> 'INSERT' THEN date_trunc('hour', OLD."callTime", 'UTC') END;
    becomes timestamptz := CASE WHEN TG_OP <> 'DELETE' THEN date_trunc('hour', NEW."callTime", 'UTC') END;
    leaver text := CASE WHEN TG_OP <> 'INSERT' THEN OLD."userDid" END;
    word jsonb;
BEGIN
    -- Not in WHEN, which the running hour's statements would copy and parse too.
    IF TG_OP = 'UPDATE' AND -- nothing that counts has changed
       (OLD."userDid", OLD."callTime", OLD."providerId", OLD.model, OLD.type, OLD.status, OLD."totalUsage",
        OLD."inputTokens", OLD."outputTokens", OLD."usageMetrics", OLD.credits, OLD.duration)
       IS NOT DISTINCT FROM
       (NEW."userDid", NEW."callTime", NEW."providerId", NEW.model, NEW.type, NEW.status, NEW."totalUsage",
        NEW."inputTokens", NEW."outputTokens", NEW."usageMetrics", NEW.credits, NEW.duration) THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' AND was = becomes AND OLD."userDid" = NEW."userDid" THEN
        was := NULL;
    END IF;
    IF TG_OP = 'DELETE' AND EXISTS (SELECT FROM "StatHour" l WHERE l.hour = was AND l."sealedAt" IS NOT NULL) THEN
        IF TG_TABLE_NAME = 'ModelCall' -- one table: a call that moves is an UPDATE
           OR current_setting('hourhand.archives', true) = 'yes' THEN -- somebody says that nothing moves
            RETURN NULL;
        END IF;
        IF NOT EXISTS (SELECT FROM "ModelCall" c WHERE c.id = OLD.id AND c."callTime" >= running) THEN
            PERFORM set_config('hourhand.left_sealed',
                               jsonb_build_object('id', OLD.id, 'hour', was, 'user', OLD."userDid")::text, true);
            RETURN NULL;
        END IF;
    ELSIF TG_OP = 'INSERT' AND current_setting('hourhand.left_sealed', true) <> '' THEN
        word := current_setting('hourhand.left_sealed', true)::jsonb;
        IF word ->> 'id' = NEW.id THEN
            was := (word ->> 'hour')::timestamptz;
            leaver := word ->> 'user';
        END IF;
        PERFORM set_config('hourhand.left_sealed', '', true);
    END IF;
    INSERT INTO "StatMark" (hour, "userDid", reason)
    SELECT place.hour, CASE WHEN octet_length(place.who) > 2600 THEN '' ELSE place.who END, 'late'
      FROM (VALUES (was, leaver), (becomes, CASE WHEN TG_OP <> 'DELETE' THEN NEW."userDid" END)) AS place (hour, who)
     WHERE place.hour < running;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'hourhand: no mark for a late change of call %: %',
        CASE WHEN TG_OP = 'DELETE' THEN OLD.id ELSE NEW.id END, SQLERRM;
    RETURN NULL;
END $$;
DO $$ BEGIN -- replaced, it has lost it
    EXECUTE format('ALTER FUNCTION "markLateCall"() SET search_path = %I, pg_temp', current_schema());
END $$;
