-- CreateTable
CREATE TABLE "StatClock" (
    "one" BOOLEAN NOT NULL DEFAULT true,
    "lookedAt" TIMESTAMPTZ(6) NOT NULL,
    "steppedAt" TIMESTAMPTZ(6),
    "step" DOUBLE PRECISION,

    CONSTRAINT "StatClock_pkey" PRIMARY KEY ("one")
);

-- What follows the schema cannot say.

ALTER TABLE "StatClock"
    ADD CONSTRAINT "StatClock_check" CHECK (one AND (step IS NULL OR "steppedAt" IS NOT NULL));

-- Each look of a worker asks for what lies in the future: nothing, nearly always.
CREATE INDEX "StatHour_asOf_idx" ON "StatHour" ("asOf") WHERE state = 'closed' AND "sealedAt" IS NULL;
CREATE INDEX "StatHour_sealedAt_idx" ON "StatHour" ("sealedAt") WHERE "sealedAt" IS NOT NULL AND "bucketsGone" = 0;
