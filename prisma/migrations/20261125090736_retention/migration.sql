-- AlterTable
ALTER TABLE "StatHour" ADD COLUMN     "bucketsGone" SMALLINT NOT NULL DEFAULT 0;

-- What Prisma's schema cannot say.

ALTER TABLE "StatHour"
    ADD CONSTRAINT "StatHour_bucketsGone_check" CHECK ("bucketsGone" BETWEEN 0 AND 64 AND ("bucketsGone" = 0 OR "sealedAt" IS NOT NULL));
