-- Which partitions hold the calls of [start, end)? In one plain table the question is idle, and this is nothing at all: the planner
-- inlines it. `hourhand partition` replaces it by the bounds of the partitions around (src/store/repartition.ts). Not by start and end
-- themselves: the planner would multiply that with what it knows of the hour already, and expect too few calls by orders of
-- magnitude. Why it must be there at all: docs/decisions/0009-partitions.md.
CREATE FUNCTION "inPartitionsOf"(called timestamptz, start timestamptz, "end" timestamptz) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT true';
