-- The formula by which an hour's rows were computed: src/store/figures.ts. The hours that are there were computed by
-- the former one, 1, and so is a run that an older process begins. The table is locked for a moment and not
-- rewritten; "ModelCall" is not locked.
ALTER TABLE "StatHour" ADD COLUMN     "formula" SMALLINT NOT NULL DEFAULT 1;
