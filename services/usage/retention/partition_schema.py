"""The records' table in parts by month, on PostgreSQL
(https://www.postgresql.org/docs/current/ddl-partitioning.html).

What was there before becomes the first part as it is, in its place: no row is copied. Whatever
indexes the table has, its parts have.
"""

from typing import Final

from runtime.sql import Only

_SPLIT: Final = """
DO $split$
DECLARE
  old_indexes text[];
  old_name text;
  month timestamp;
  bound text;
  kept text;
BEGIN
  LOCK TABLE usage_records IN ACCESS EXCLUSIVE MODE;
  month := date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC');
  IF EXISTS (SELECT FROM usage_records) THEN
    month := month + interval '1 month';
  END IF;
  kept := 'usage_records_until_' || to_char(month, 'YYYYMM');
  bound := lpad(to_hex((extract(epoch FROM month) * 1000)::bigint), 12, '0');
  bound := substr(bound, 1, 8) || '-' || substr(bound, 9) || '-0000-0000-000000000000';
  SELECT array_agg(indexdef ORDER BY indexname) INTO old_indexes FROM pg_indexes
    WHERE schemaname = current_schema() AND tablename = 'usage_records'
      AND right(indexname, 5) <> '_pkey';
  EXECUTE 'ALTER TABLE usage_records RENAME TO ' || quote_ident(kept);
  FOR old_name IN SELECT indexname FROM pg_indexes
    WHERE schemaname = current_schema() AND tablename = kept
  LOOP
    EXECUTE 'ALTER INDEX ' || quote_ident(old_name) || ' RENAME TO '
      || quote_ident(replace(old_name, 'usage_records', kept));
  END LOOP;
  EXECUTE 'CREATE TABLE usage_records (LIKE ' || quote_ident(kept)
    || ' INCLUDING DEFAULTS) PARTITION BY RANGE (attempt_id)';
  ALTER TABLE usage_records ADD PRIMARY KEY (attempt_id);
  FOR i IN 1 .. coalesce(array_length(old_indexes, 1), 0) LOOP
    EXECUTE old_indexes[i];
  END LOOP;
  CREATE TABLE usage_records_rest PARTITION OF usage_records DEFAULT;
  EXECUTE 'WITH moved AS (DELETE FROM ' || quote_ident(kept) || ' WHERE attempt_id >= '
    || quote_literal(bound) || ' RETURNING *) INSERT INTO usage_records_rest SELECT * FROM moved';
  EXECUTE 'ALTER TABLE usage_records ATTACH PARTITION ' || quote_ident(kept)
    || ' FOR VALUES FROM (MINVALUE) TO (' || quote_literal(bound) || ')';
END
$split$
"""

STATEMENTS: Final = (
    Only(dialect="postgresql", sql=_SPLIT),
    "INSERT INTO usage_rollup_marks (name, before_us) VALUES ('kept', 0)",
)
