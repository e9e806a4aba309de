"""How long reports take over many records: ``python -m tests.services.usage.scale``.

Fills a PostgreSQL of its own through the real schema, sums everything up with the real code, asks
the real service for the official reports of the last days, and says how long each took. Nothing
stays behind. Ten million records take about 12 GB while it runs.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Template
from typing import Final

import psycopg

from onegate.usage.v1 import report_service_pb2 as pb
from onegate.usage.v1 import report_service_pb2_grpc, usage_service_pb2
from runtime.clock import SystemClock
from runtime.config import RpcSettings, UsageSettings
from runtime.errors import GatewayError
from runtime.passes import REPORTS, Gate
from runtime.rpc import RpcServer, channel, unary
from runtime.sql import Database, open_database, open_patient, unix_micros
from services.usage.reports.report_service import ReportService
from services.usage.reports.report_store import ReportStore
from services.usage.reports.rollup_schema import CUBES
from services.usage.reports.rollup_store import Rollups
from services.usage.reports.spans import DAY_US, HOUR_US
from services.usage.retention.retention_store import Retention
from services.usage.store import RECORDS, SqlStore
from tests.postgres import PostgresServer
from tests.services.usage.records import OPERATOR, TOKEN

ORGANIZATION: Final = "org_0"
"""Half of all records are its."""

DAY, HOUR = 86_400, 3_600
_D = usage_service_pb2
TEXT: Final = int(pb.REPORT_KIND_COMPLETIONS)
COSTS: Final = int(pb.REPORT_KIND_COSTS)

CONTENT: Final[Mapping[str, str]] = {
    "attempt_id": (
        "substr(ms, 1, 8) || '-' || substr(ms, 9) || '-7' || lpad(to_hex(g & 4095), 3, '0')"
        " || '-8' || substr(md5(g::text), 1, 3) || '-' || lpad(to_hex(g), 12, '0')"
    ),
    "request_id": "'req_' || g",
    "attempt_number": "1",
    "organization_id": "'org_' || CASE WHEN project < 40 THEN 0 ELSE 1 + project % 7 END",
    "project_id": "'proj_' || project",
    "key_id": "'key_' || key",
    "model": "'vendor_' || model % 4 || '/model_' || model",
    "model_requested": "'model_' || model",
    "provider": "'vendor_' || model % 4",
    "endpoint": "CASE WHEN model = 11 THEN 'embeddings' ELSE 'chat.completions' END",
    "stream": "true",
    "duration_us": "h % 30000000",
    "outcome": "CASE WHEN h % 50 = 0 THEN 2 ELSE 1 END",
    "cost_nano_usd": "100000 + h % 100000000",
    "price_version": "'seed:model:1'",
    "end_user": "'user_' || h % 5000",
    "customer": "'customer_' || project || '_' || (h / 3600) % 10",
    "feature": "'feature_' || (project + (h / 1200) % 3) % 12",
    "run": "'run_' || g / 20",
    "input_tokens": "h % 8000",
    "cached_input_tokens": "h % 2000",
    "output_tokens": "h % 1500",
    "team": "'team_' || project % 16",
    "tags": "'{\"team\": \"team_' || project % 16 || '\"}'",
    "started_at_us": "at_us",
    "recorded_at_us": "at_us + 5000000",
    "record": "decode(repeat('0a', 350), 'hex')",
}
"""What a record says, from its number ``g``, what is drawn from it (``h``), and its time."""

_DRAWN: Final = """
FROM (
  SELECT g, at_us, h, project, key, (key * 7 + (h / 400) % 3) % 12 AS model,
         lpad(to_hex(at_us / 1000), 12, '0') AS ms
  FROM (
    SELECT g, at_us, h, h % 80 AS project, (h % 80) * 5 + (h / 80) % 5 AS key
    FROM (
      SELECT g, ${start} + (g - ${first}) * ${length} / ${count} AS at_us,
             (hashint8(g)::bigint & 2147483647) AS h
      FROM generate_series(${first}::bigint, ${first} + ${count} - 1) AS g
    ) AS one
  ) AS two
) AS three
"""


def _asked(
    name: str, *groups: int, bucket_s: int = DAY, kind: int = 0
) -> tuple[str, pb.ReportUsageRequest]:
    limit = 168 if bucket_s == HOUR else 31
    values = [_D.UsageDimension.ValueType(group) for group in groups]
    return name, pb.ReportUsageRequest(
        kind=pb.ReportKind.ValueType(kind),
        organization_id=ORGANIZATION,
        bucket_s=bucket_s,
        limit=limit,
        group_by=values,
    )


MODEL, KEY = int(_D.USAGE_DIMENSION_MODEL), int(_D.USAGE_DIMENSION_KEY)
PROJECT = int(_D.USAGE_DIMENSION_PROJECT)
PURPOSES: Final = (
    int(_D.USAGE_DIMENSION_TEAM),
    int(_D.USAGE_DIMENSION_FEATURE),
    int(_D.USAGE_DIMENSION_CUSTOMER),
)
REPORTS_ASKED: Final = dict(
    (
        _asked("costs"),
        _asked("costs by project", PROJECT),
        _asked("costs by line item", MODEL),
        _asked("costs by project and line item", PROJECT, MODEL),
        _asked("completions", kind=TEXT),
        _asked("completions by key", KEY, kind=TEXT),
        _asked("completions by project, key and model", PROJECT, KEY, MODEL, kind=TEXT),
        _asked("completions by hour, 7 days, by model", MODEL, bucket_s=HOUR, kind=TEXT),
        _asked("costs by provider", int(_D.USAGE_DIMENSION_PROVIDER)),
        _asked("costs by team", PURPOSES[0]),
        _asked("costs by feature", PURPOSES[1]),
        _asked("costs by customer", PURPOSES[2]),
        _asked("costs by team, feature and customer", *PURPOSES),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one size came to; times in seconds."""

    rows: int
    table_bytes: int
    cube_rows: int
    cube_bytes: int
    fill_s: float
    seal_s: float
    seal_longest_s: float
    reports: Mapping[str, list[float]]
    groups: Mapping[str, int]


async def measure(dsn: str, rows: int, days: int, repeats: int) -> Found:
    """Fills an empty database and asks it."""
    database = open_database(dsn)
    patient = open_patient(UsageSettings(dsn=dsn), database)
    now = datetime.now(UTC)
    now_us = unix_micros(now)
    try:
        await SqlStore(database).migrate(now=now)
        await Retention(database, 0).prepare(now_us)
        began = time.monotonic()
        await asyncio.to_thread(_fill, dsn, rows, now_us, days)
        fill_s = time.monotonic() - began
        steps = await _seal(patient, now_us)
        table_bytes, cube_rows, cube_bytes = await asyncio.to_thread(_sizes, dsn)
        taken, groups = await _ask(database, now, days, repeats)
        return Found(
            rows=rows,
            table_bytes=table_bytes,
            cube_rows=cube_rows,
            cube_bytes=cube_bytes,
            fill_s=fill_s,
            seal_s=sum(steps),
            seal_longest_s=max(steps),
            reports=taken,
            groups=groups,
        )
    finally:
        await patient.close()
        await database.close()


def _fill(dsn: str, rows: int, now_us: int, days: int) -> None:
    names = [column.name for column in RECORDS.c]
    absent = {c.name: "''" if c.type.python_type is str else "0" for c in RECORDS.c}
    values = ", ".join(CONTENT.get(name, absent[name]) for name in names)
    statement = f"INSERT INTO usage_records ({', '.join(names)}) SELECT {values} {_DRAWN}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        for day in range(days):
            first, after = rows * day // days, rows * (day + 1) // days
            if first < after:
                place = {
                    "start": now_us - (days - day) * DAY_US,
                    "length": DAY_US,
                    "first": first,
                    "count": after - first,
                }
                connection.execute(Template(statement).substitute(place).encode())
        connection.execute("VACUUM (ANALYZE) usage_records")


async def _seal(database: Database, now_us: int) -> list[float]:
    """Sums everything up; how long each transaction took."""
    rollups, steps = Rollups(database), []
    going = True
    while going:
        began = time.monotonic()
        going = await rollups.advance(now_us)
        steps.append(time.monotonic() - began)
    return steps


def _sizes(dsn: str) -> tuple[int, int, int]:
    cubes = [table.name for cube in CUBES for table in (cube.hours, cube.days)]
    with psycopg.connect(dsn, autocommit=True) as connection:

        def number(query: str) -> int:
            row = connection.execute(query.encode()).fetchone()
            return int(row[0]) if row else 0

        for name in cubes:
            connection.execute(f"VACUUM (ANALYZE) {name}".encode())
        size = "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('usage_records')"
        return (
            number(size),
            sum(number(f"SELECT count(*) FROM {name}") for name in cubes),
            sum(number(f"SELECT pg_total_relation_size('{name}')") for name in cubes),
        )


@asynccontextmanager
async def _served(
    database: Database,
) -> AsyncIterator[report_service_pb2_grpc.ReportServiceStub]:
    clock, settings = SystemClock(), RpcSettings()
    server = RpcServer(settings, "usage")
    service = ReportService(ReportStore(database), Gate(TOKEN, REPORTS, clock), clock)
    server.add(report_service_pb2_grpc.add_ReportServiceServicer_to_server, service)
    with tempfile.TemporaryDirectory() as directory:
        place = f"unix:{Path(directory) / 'usage.sock'}"
        await server.start(place)
        line = channel(place, settings)
        try:
            yield report_service_pb2_grpc.ReportServiceStub(line)
        finally:
            await line.close()
            await server.stop(1)


async def _ask(
    database: Database, now: datetime, days: int, repeats: int
) -> tuple[Mapping[str, list[float]], Mapping[str, int]]:
    """How long each report took, in seconds, and how many rows it had."""
    taken: dict[str, list[float]] = {name: [] for name in REPORTS_ASKED}
    groups = dict.fromkeys(REPORTS_ASKED, 0)
    async with _served(database) as stub:
        for _ in range(repeats):
            for name, asked in REPORTS_ASKED.items():
                request = pb.ReportUsageRequest()
                request.CopyFrom(asked)
                span = 7 if request.bucket_s == HOUR else days
                # On a whole hour, as a report of so many days begins.
                start_us = unix_micros(now - timedelta(days=span)) // HOUR_US * HOUR_US + HOUR_US
                request.started_from.FromMicroseconds(start_us)
                began = time.monotonic()
                try:
                    answer = await unary(
                        stub.ReportUsage, request, timeout_s=60.0, metadata=OPERATOR
                    )
                    groups[name] = sum(len(bucket.rows) for bucket in answer.buckets)
                except GatewayError as error:
                    # The five seconds that a report may take were over: it took those.
                    print(f"{name}: {error.message}", flush=True)
                taken[name].append(time.monotonic() - began)
    return taken, groups


def table(found: list[Found]) -> str:
    """The figures, as Markdown."""
    heads = [f"{one.rows:,}" for one in found]
    lines = [
        ["records", *heads],
        ["---", *("---:" for _ in heads)],
        ["records on disk, GB", *(f"{one.table_bytes / 1e9:.2f}" for one in found)],
        ["rows of the cubes", *(f"{one.cube_rows:,}" for one in found)],
        ["cubes on disk, GB", *(f"{one.cube_bytes / 1e9:.2f}" for one in found)],
        ["filling, s", *(f"{one.fill_s:.0f}" for one in found)],
        ["summing up, s", *(f"{one.seal_s:.1f}" for one in found)],
        ["longest step of it, s", *(f"{one.seal_longest_s:.2f}" for one in found)],
    ]
    for name in REPORTS_ASKED:
        cells = []
        for one in found:
            taken = sorted(one.reports[name])
            p99 = taken[min(len(taken) - 1, int(len(taken) * 0.99))]
            cells.append(f"{statistics.median(taken) * 1000:.0f} / {p99 * 1000:.0f}")
        lines.append([f"{name} ({found[-1].groups[name]:,} rows), p50 / p99 ms", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Prints the table, one size more each time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, action="append", help="a size; several are compared")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    found: list[Found] = []
    for rows in arguments.rows or [1_000_000, 3_000_000, 10_000_000]:
        server = PostgresServer()
        try:
            server.start(shared_buffers="512MB", autovacuum="on", max_wal_size="4GB", jit="on")
            dsn = server.dsn(server.make_database())
            found.append(asyncio.run(measure(dsn, rows, arguments.days, arguments.repeats)))
        finally:
            server.close()
        print(table(found), flush=True)


if __name__ == "__main__":
    main()
