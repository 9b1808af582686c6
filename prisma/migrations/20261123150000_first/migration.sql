-- CreateEnum
CREATE TYPE "ModelCallType" AS ENUM ('chatCompletion', 'embedding', 'imageGeneration', 'audioGeneration', 'video', 'custom');

-- CreateEnum
CREATE TYPE "ModelCallStatus" AS ENUM ('processing', 'success', 'failed');

-- CreateEnum
CREATE TYPE "TimeType" AS ENUM ('hour', 'day', 'month');

-- CreateEnum
CREATE TYPE "HourState" AS ENUM ('open', 'running', 'partial', 'closed');

-- CreateEnum
CREATE TYPE "HourReason" AS ENUM ('tick', 'backfill', 'late', 'repair');

-- CreateEnum
CREATE TYPE "ShardState" AS ENUM ('open', 'done', 'failed');

-- CreateTable
CREATE TABLE "ModelCall" (
    "id" TEXT NOT NULL,
    "userDid" TEXT NOT NULL,
    "appDid" TEXT,
    "providerId" TEXT NOT NULL,
    "model" TEXT NOT NULL,
    "credentialId" TEXT,
    "type" "ModelCallType" NOT NULL,
    "totalUsage" BIGINT NOT NULL DEFAULT 0,
    "inputTokens" BIGINT,
    "outputTokens" BIGINT,
    "usageMetrics" JSONB,
    "credits" DECIMAL(20,8) NOT NULL DEFAULT 0,
    "status" "ModelCallStatus" NOT NULL DEFAULT 'processing',
    "duration" DECIMAL(20,6),
    "ttfb" DECIMAL(20,6),
    "errorReason" TEXT,
    "requestId" TEXT,
    "traceId" TEXT,
    "metadata" JSONB,
    "callTime" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "createdAt" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "ModelCall_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "ModelCallStat" (
    "timeType" "TimeType" NOT NULL,
    "timestamp" TIMESTAMPTZ(6) NOT NULL,
    "userDid" TEXT NOT NULL,
    "totalUsage" BIGINT NOT NULL,
    "inputTokens" BIGINT NOT NULL,
    "outputTokens" BIGINT NOT NULL,
    "imageGenerations" BIGINT NOT NULL,
    "totalCredits" DECIMAL(20,8) NOT NULL,
    "totalCalls" BIGINT NOT NULL,
    "successCalls" BIGINT NOT NULL,
    "failedCalls" BIGINT NOT NULL,
    "processingCalls" BIGINT NOT NULL,
    "totalDuration" DECIMAL(20,6) NOT NULL,
    "byType" JSONB NOT NULL,
    "run" INTEGER NOT NULL,
    "computedAt" TIMESTAMPTZ(6) NOT NULL,

    CONSTRAINT "ModelCallStat_pkey" PRIMARY KEY ("timeType","timestamp","userDid")
);

-- CreateTable
CREATE TABLE "StatHour" (
    "hour" TIMESTAMPTZ(6) NOT NULL,
    "state" "HourState" NOT NULL,
    "run" INTEGER NOT NULL DEFAULT 0,
    "wanted" INTEGER NOT NULL DEFAULT 0,
    "reason" "HourReason" NOT NULL,
    "requestedBy" TEXT,
    "users" INTEGER,
    "calls" BIGINT,
    "attempts" INTEGER NOT NULL DEFAULT 0,
    "nextAttemptAt" TIMESTAMPTZ(6),
    "startedAt" TIMESTAMPTZ(6),
    "closedAt" TIMESTAMPTZ(6),
    "sealedAt" TIMESTAMPTZ(6),
    "error" TEXT,

    CONSTRAINT "StatHour_pkey" PRIMARY KEY ("hour")
);

-- CreateTable
CREATE TABLE "StatRange" (
    "start" TIMESTAMPTZ(6) NOT NULL,
    "end" TIMESTAMPTZ(6),

    CONSTRAINT "StatRange_pkey" PRIMARY KEY ("start")
);

-- CreateTable
CREATE TABLE "StatShard" (
    "hour" TIMESTAMPTZ(6) NOT NULL,
    "run" INTEGER NOT NULL,
    "shard" INTEGER NOT NULL,
    "lo" SMALLINT NOT NULL,
    "hi" SMALLINT NOT NULL,
    "userDid" TEXT,
    "state" "ShardState" NOT NULL DEFAULT 'open',
    "error" TEXT,

    CONSTRAINT "StatShard_pkey" PRIMARY KEY ("hour","run","shard")
);

-- CreateTable
CREATE TABLE "StatMark" (
    "seq" BIGSERIAL NOT NULL,
    "hour" TIMESTAMPTZ(6) NOT NULL,
    "userDid" TEXT NOT NULL,
    "reason" "HourReason" NOT NULL,

    CONSTRAINT "StatMark_pkey" PRIMARY KEY ("seq")
);

-- CreateTable
CREATE TABLE "StatSchedule" (
    "id" TEXT NOT NULL,
    "pattern" TEXT NOT NULL,
    "version" TEXT NOT NULL,
    "startedAt" TIMESTAMPTZ(6) NOT NULL,

    CONSTRAINT "StatSchedule_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE INDEX "ModelCallStat_userDid_timeType_timestamp_idx" ON "ModelCallStat"("userDid", "timeType", "timestamp");

-- CreateIndex
CREATE INDEX "StatMark_hour_userDid_idx" ON "StatMark"("hour", "userDid");
-- What Prisma's schema cannot say. (Checks and indexes on expressions are no drift to it.)

-- The hour, then the bucket: one hour's shards are each a short range of this index. Nothing that a
-- call's end changes is in it, so that UPDATE stays heap-only. It makes the plan of the roll-up: test/plans.test.ts
CREATE INDEX "ModelCall_hour_bucket_idx" ON "ModelCall"
    (date_trunc('hour', "callTime" AT TIME ZONE 'UTC'), (hashtext("userDid") & 63));

-- numeric(20,8) would take NaN, and timestamptz infinity.
ALTER TABLE "ModelCall"
    ADD CONSTRAINT "ModelCall_userDid_check" CHECK ("userDid" <> ''),
    ADD CONSTRAINT "ModelCall_credits_check" CHECK (credits >= 0 AND credits <> 'NaN'),
    ADD CONSTRAINT "ModelCall_tokens_check" CHECK ("totalUsage" >= 0 AND "inputTokens" >= 0 AND "outputTokens" >= 0),
    ADD CONSTRAINT "ModelCall_duration_check" CHECK (duration >= 0 AND duration <> 'NaN' AND ttfb >= 0 AND ttfb <> 'NaN'),
    ADD CONSTRAINT "ModelCall_callTime_check" CHECK ("callTime" >= '1970-01-01Z' AND "callTime" < '10000-01-01Z');

ALTER TABLE "ModelCallStat"
    ADD CONSTRAINT "ModelCallStat_timestamp_check" CHECK (isfinite("timestamp")
        AND date_trunc('hour', "timestamp" AT TIME ZONE 'UTC') = "timestamp" AT TIME ZONE 'UTC'),
    ADD CONSTRAINT "ModelCallStat_figures_check" CHECK ("totalCalls" >= 0 AND "totalUsage" >= 0 AND "totalCredits" <> 'NaN');

ALTER TABLE "StatHour"
    ADD CONSTRAINT "StatHour_hour_check" CHECK (isfinite(hour) AND date_trunc('hour', hour AT TIME ZONE 'UTC') = hour AT TIME ZONE 'UTC'),
    ADD CONSTRAINT "StatHour_run_check" CHECK (run >= 0 AND wanted BETWEEN 0 AND run + 1 AND attempts >= 0),
    ADD CONSTRAINT "StatHour_closed_check" CHECK (state <> 'closed' OR ("closedAt" IS NOT NULL AND wanted <= run)),
    ADD CONSTRAINT "StatHour_sealed_check" CHECK ("sealedAt" IS NULL OR state = 'closed');

ALTER TABLE "StatRange"
    ADD CONSTRAINT "StatRange_check" CHECK (isfinite(start) AND isfinite("end") AND start < "end"
        AND date_trunc('hour', start AT TIME ZONE 'UTC') = start AT TIME ZONE 'UTC'
        AND date_trunc('hour', "end" AT TIME ZONE 'UTC') = "end" AT TIME ZONE 'UTC');

ALTER TABLE "StatShard"
    ADD CONSTRAINT "StatShard_check" CHECK (0 <= lo AND lo <= hi AND hi < 64 AND run > 0 AND shard >= 0);

ALTER TABLE "StatMark"
    ADD CONSTRAINT "StatMark_hour_check" CHECK (isfinite(hour) AND date_trunc('hour', hour AT TIME ZONE 'UTC') = hour AT TIME ZONE 'UTC');
