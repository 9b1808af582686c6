-- CreateTable
CREATE TABLE "StatGap" (
    "hour" TIMESTAMPTZ(6) NOT NULL,

    CONSTRAINT "StatGap_pkey" PRIMARY KEY ("hour")
);

-- CreateTable
CREATE TABLE "StatLook" (
    "id" INTEGER NOT NULL DEFAULT 1,
    "walkBefore" TIMESTAMPTZ(6),
    "walkEndedAt" TIMESTAMPTZ(6),
    "stateKey" TEXT,

    CONSTRAINT "StatLook_pkey" PRIMARY KEY ("id")
);

-- What Prisma's schema cannot say: there is one row. No walk has ended yet, so the first look begins one.
ALTER TABLE "StatLook" ADD CONSTRAINT "StatLook_id_check" CHECK (id = 1);
INSERT INTO "StatLook" DEFAULT VALUES;
