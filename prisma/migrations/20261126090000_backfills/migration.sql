-- CreateEnum
CREATE TYPE "BackfillState" AS ENUM ('running', 'paused', 'cancelled', 'finished');

-- CreateEnum
CREATE TYPE "BackfillOnly" AS ENUM ('missing', 'partial', 'all');

-- AlterTable
ALTER TABLE "StatHour" ADD COLUMN     "backfillId" BIGINT;

-- AlterTable
ALTER TABLE "StatMark" ADD COLUMN     "backfillId" BIGINT;

-- CreateTable
CREATE TABLE "Backfill" (
    "id" BIGSERIAL NOT NULL,
    "requestedBy" TEXT NOT NULL,
    "requestedFrom" TEXT NOT NULL,
    "requestedAt" TIMESTAMPTZ(6) NOT NULL,
    "start" TIMESTAMPTZ(6) NOT NULL,
    "end" TIMESTAMPTZ(6) NOT NULL,
    "userDid" TEXT,
    "only" "BackfillOnly" NOT NULL,
    "state" "BackfillState" NOT NULL DEFAULT 'running',
    "hours" INTEGER NOT NULL,
    "givenBack" INTEGER NOT NULL DEFAULT 0,
    "pausedAt" TIMESTAMPTZ(6),
    "finishedAt" TIMESTAMPTZ(6),
    "settledBy" TEXT,

    CONSTRAINT "Backfill_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "BackfillHour" (
    "backfillId" BIGINT NOT NULL,
    "hour" TIMESTAMPTZ(6) NOT NULL,
    "wanted" INTEGER NOT NULL,
    "covered" BOOLEAN NOT NULL,
    "state" "HourState",
    "priorRun" INTEGER NOT NULL,
    "priorWanted" INTEGER NOT NULL,
    "reason" "HourReason" NOT NULL,
    "requestedBy" TEXT,
    "attempts" INTEGER NOT NULL,
    "nextAttemptAt" TIMESTAMPTZ(6),
    "error" TEXT,
    "priorBackfillId" BIGINT,

    CONSTRAINT "BackfillHour_pkey" PRIMARY KEY ("backfillId","hour")
);

-- CreateIndex
CREATE INDEX "BackfillHour_hour_idx" ON "BackfillHour"("hour");

-- What Prisma's schema cannot say.

ALTER TABLE "Backfill"
    ADD CONSTRAINT "Backfill_range_check" CHECK (isfinite(start) AND isfinite("end") AND start < "end" AND "givenBack" BETWEEN 0 AND hours),
    ADD CONSTRAINT "Backfill_state_check" CHECK ((state = 'paused') = ("pausedAt" IS NOT NULL)
        AND (state IN ('cancelled', 'finished')) = ("finishedAt" IS NOT NULL));

ALTER TABLE "BackfillHour"
    ADD CONSTRAINT "BackfillHour_wanted_check" CHECK ("priorRun" >= 0 AND "priorWanted" >= 0 AND wanted = "priorRun" + 1);

-- Asked by every look: nearly all of the backfills there ever were are over.
CREATE INDEX "Backfill_standing_idx" ON "Backfill" (state) WHERE state IN ('running', 'paused');
-- Few hours failed, of all that there are: what is said of a backfill that is over.
CREATE INDEX "StatHour_error_idx" ON "StatHour" (hour) WHERE error IS NOT NULL;
-- Of the many marks only those of backfills: all others come from the gateway's own statements, which should not write an index more.
CREATE INDEX "StatMark_backfillId_idx" ON "StatMark" ("backfillId") WHERE "backfillId" IS NOT NULL;
