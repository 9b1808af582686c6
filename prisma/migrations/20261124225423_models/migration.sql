-- CreateEnum
CREATE TYPE "ModelHealth" AS ENUM ('up', 'degraded', 'down', 'unknown');

-- CreateEnum
CREATE TYPE "EvidenceSource" AS ENUM ('calls', 'probe');

-- CreateTable
CREATE TABLE "ModelProvider" (
    "id" TEXT NOT NULL,
    "baseUrl" TEXT NOT NULL,
    "apiKeyEnv" TEXT NOT NULL,
    "concurrency" INTEGER NOT NULL,

    CONSTRAINT "ModelProvider_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "ModelStatus" (
    "providerId" TEXT NOT NULL,
    "model" TEXT NOT NULL,
    "type" "ModelCallType" NOT NULL,
    "probeCredits" DECIMAL(20,8),
    "discovered" BOOLEAN NOT NULL DEFAULT false,
    "status" "ModelHealth" NOT NULL DEFAULT 'unknown',
    "reason" TEXT,
    "detail" TEXT,
    "source" "EvidenceSource",
    "latencyMs" INTEGER,
    "failures" INTEGER NOT NULL DEFAULT 0,
    "since" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "checkedAt" TIMESTAMPTZ(6),
    "retryAt" TIMESTAMPTZ(6),

    CONSTRAINT "ModelStatus_pkey" PRIMARY KEY ("providerId","model","type")
);

-- CreateTable
CREATE TABLE "ModelTransition" (
    "seq" BIGSERIAL NOT NULL,
    "providerId" TEXT NOT NULL,
    "model" TEXT NOT NULL,
    "type" "ModelCallType" NOT NULL,
    "from" "ModelHealth" NOT NULL,
    "to" "ModelHealth" NOT NULL,
    "reason" TEXT,
    "detail" TEXT,
    "source" "EvidenceSource",
    "at" TIMESTAMPTZ(6) NOT NULL,
    "announcedAt" TIMESTAMPTZ(6),

    CONSTRAINT "ModelTransition_pkey" PRIMARY KEY ("seq")
);

-- CreateTable
CREATE TABLE "ModelCheck" (
    "id" BIGSERIAL NOT NULL,
    "requestedBy" TEXT,
    "models" TEXT[],
    "probe" BOOLEAN NOT NULL,
    "startedAt" TIMESTAMPTZ(6) NOT NULL,
    "interval" INTEGER NOT NULL,
    "finishedAt" TIMESTAMPTZ(6),
    "outcome" JSONB,

    CONSTRAINT "ModelCheck_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "ModelProbe" (
    "id" BIGSERIAL NOT NULL,
    "checkId" BIGINT NOT NULL,
    "providerId" TEXT NOT NULL,
    "model" TEXT NOT NULL,
    "type" "ModelCallType" NOT NULL,
    "credits" DECIMAL(20,8) NOT NULL,
    "startedAt" TIMESTAMPTZ(6),
    "finishedAt" TIMESTAMPTZ(6),
    "ok" BOOLEAN,
    "reason" TEXT,
    "detail" TEXT,
    "latencyMs" INTEGER,
    "retryAt" TIMESTAMPTZ(6),

    CONSTRAINT "ModelProbe_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE INDEX "ModelTransition_providerId_model_type_at_idx" ON "ModelTransition"("providerId", "model", "type", "at");

-- CreateIndex
CREATE INDEX "ModelTransition_at_idx" ON "ModelTransition"("at");

-- CreateIndex
CREATE INDEX "ModelProbe_startedAt_idx" ON "ModelProbe"("startedAt");

-- CreateIndex
CREATE UNIQUE INDEX "ModelProbe_checkId_providerId_model_type_key" ON "ModelProbe"("checkId", "providerId", "model", "type");

-- AddForeignKey
ALTER TABLE "ModelStatus" ADD CONSTRAINT "ModelStatus_providerId_fkey" FOREIGN KEY ("providerId") REFERENCES "ModelProvider"("id") ON DELETE CASCADE ON UPDATE CASCADE;

-- What Prisma's schema cannot say.

ALTER TABLE "ModelProvider"
    ADD CONSTRAINT "ModelProvider_check" CHECK (id <> '' AND "apiKeyEnv" <> '' AND concurrency BETWEEN 1 AND 1000);

ALTER TABLE "ModelStatus"
    ADD CONSTRAINT "ModelStatus_probeCredits_check" CHECK ("probeCredits" >= 0 AND "probeCredits" <> 'NaN'),
    ADD CONSTRAINT "ModelStatus_failures_check" CHECK (failures >= 0);

ALTER TABLE "ModelTransition"
    ADD CONSTRAINT "ModelTransition_check" CHECK ("from" <> "to");

ALTER TABLE "ModelProbe"
    ADD CONSTRAINT "ModelProbe_credits_check" CHECK (credits >= 0 AND credits <> 'NaN'),
    ADD CONSTRAINT "ModelProbe_finished_check" CHECK ("finishedAt" IS NULL OR ("startedAt" IS NOT NULL AND ok IS NOT NULL));
