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

-- What Prisma's schema cannot say: the closed hours whose models are still to be derived, src/store/hour-models.ts.
CREATE INDEX "StatHour_models_idx" ON "StatHour" (hour)
    WHERE state = 'closed' AND (("sealedAt" IS NULL AND "modelsAsOf" IS DISTINCT FROM "asOf") OR "totalUsage" IS NULL);
