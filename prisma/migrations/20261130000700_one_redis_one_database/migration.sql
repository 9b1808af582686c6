-- CreateTable
CREATE TABLE "StatIdentity" (
    "only" BOOLEAN NOT NULL DEFAULT true,
    "id" UUID NOT NULL,

    CONSTRAINT "StatIdentity_pkey" PRIMARY KEY ("only")
);

-- One row, and no other.
ALTER TABLE "StatIdentity" ADD CONSTRAINT "StatIdentity_only_check" CHECK ("only");

INSERT INTO "StatIdentity" ("id") VALUES (gen_random_uuid());

-- Without its row the database would be nobody's: no worker could start.
CREATE FUNCTION "keepIdentity"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'expected the one row of "StatIdentity" to stay: hourhand identity new changes it';
END $$;

CREATE TRIGGER "StatIdentity_stays" BEFORE DELETE OR TRUNCATE ON "StatIdentity"
  FOR EACH STATEMENT EXECUTE FUNCTION "keepIdentity"();
