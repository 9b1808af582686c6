-- What Prisma's schema cannot say: the ledger has a row for every hour there ever was, and a look asks for the few that are not
-- closed. Counting the closed ones tells that none is missing, without naming them all: src/store/ledger.ts.
CREATE INDEX "StatHour_closed_idx" ON "StatHour" (hour) WHERE state = 'closed';
CREATE INDEX "StatHour_wanted_idx" ON "StatHour" (hour) WHERE wanted > run;
