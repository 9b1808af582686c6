-- Each roll-up leaves word for the ledger and the models. Only the ledger is read.

-- CreateTable
CREATE TABLE "StatUntold" (
    "seq" BIGSERIAL NOT NULL,
    "hour" TIMESTAMPTZ(6) NOT NULL,
    "changed" BOOLEAN NOT NULL DEFAULT false,
    "models" BOOLEAN NOT NULL DEFAULT false,

    CONSTRAINT "StatUntold_pkey" PRIMARY KEY ("seq")
);

-- CreateIndex
CREATE INDEX "StatUntold_hour_idx" ON "StatUntold"("hour");

-- What Prisma's schema cannot say.

-- Hours whose last roll-up of marks was not told to the ledger, by the former way of knowing it.
INSERT INTO "StatUntold" (hour, changed)
SELECT hour, false FROM "StatHour" l
 WHERE state = 'closed' AND "sealedAt" IS NULL
   AND EXISTS (SELECT FROM "StatChange" c WHERE c.hour = l.hour AND c.revision = l.revision + 1 OFFSET 0);
