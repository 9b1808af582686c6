-- AlterTable
ALTER TABLE "StatHour" ADD COLUMN     "partialSince" TIMESTAMPTZ(6);

-- AlterTable
ALTER TABLE "StatSchedule" ADD COLUMN     "firesSince" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
ADD COLUMN     "lastAt" TIMESTAMPTZ(6),
ADD COLUMN     "pausedAt" TIMESTAMPTZ(6),
ADD COLUMN     "pausedBy" TEXT,
ADD COLUMN     "resumedBy" TEXT;

-- CreateTable
CREATE TABLE "Alarm" (
    "seq" BIGSERIAL NOT NULL,
    "kind" TEXT NOT NULL,
    "subject" TEXT NOT NULL,
    "since" TIMESTAMPTZ(6) NOT NULL,
    "detail" TEXT NOT NULL,
    "raisedAt" TIMESTAMPTZ(6) NOT NULL,
    "endedAt" TIMESTAMPTZ(6),
    "toldAt" TIMESTAMPTZ(6),
    "endToldAt" TIMESTAMPTZ(6),
    "tellAfter" TIMESTAMPTZ(6) NOT NULL,

    CONSTRAINT "Alarm_pkey" PRIMARY KEY ("seq")
);

-- CreateIndex
CREATE INDEX "StatHour_closedAt_idx" ON "StatHour"("closedAt");

-- What Prisma's schema cannot say.

-- Of an alarm that is open there is one.
CREATE UNIQUE INDEX "Alarm_open_key" ON "Alarm" (kind, subject) WHERE "endedAt" IS NULL;

ALTER TABLE "Alarm"
    ADD CONSTRAINT "Alarm_kind_check" CHECK (kind IN ('no-hour-closed', 'tick-missed', 'hour-partial')),
    ADD CONSTRAINT "Alarm_told_check" CHECK ("endToldAt" IS NULL OR ("endedAt" IS NOT NULL AND "toldAt" IS NOT NULL));

ALTER TABLE "StatSchedule"
    ADD CONSTRAINT "StatSchedule_paused_check" CHECK (("pausedAt" IS NULL) = ("pausedBy" IS NULL));

-- A look asks for the few that are partial.
CREATE INDEX "StatHour_partial_idx" ON "StatHour" ("partialSince") WHERE "partialSince" IS NOT NULL;
UPDATE "StatHour" SET "partialSince" = coalesce("startedAt", now()) WHERE state = 'partial';
