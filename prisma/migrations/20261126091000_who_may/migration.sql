-- CreateTable
CREATE TABLE "DashboardSession" (
    "sid" TEXT NOT NULL,
    "sess" JSONB NOT NULL,
    "expire" TIMESTAMPTZ(6) NOT NULL,

    CONSTRAINT "DashboardSession_pkey" PRIMARY KEY ("sid")
);

-- CreateTable
CREATE TABLE "OperatorAction" (
    "seq" BIGSERIAL NOT NULL,
    "at" TIMESTAMPTZ(6) NOT NULL,
    "who" TEXT NOT NULL,
    "role" TEXT,
    "what" TEXT NOT NULL,
    "subject" TEXT,
    "detail" JSONB,
    "from" TEXT NOT NULL,
    "outcome" TEXT,

    CONSTRAINT "OperatorAction_pkey" PRIMARY KEY ("seq")
);

-- CreateIndex
CREATE INDEX "DashboardSession_expire_idx" ON "DashboardSession"("expire");

-- CreateIndex
CREATE INDEX "OperatorAction_at_idx" ON "OperatorAction"("at");
