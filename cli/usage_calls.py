"""``onegate usage``: what was called and what it costs, as charts, tables and files."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from cli.export_files import Format
from cli.keys_view import console
from cli.usage import OutputOption, Usage, moment, records, run_with_usage, summaries
from cli.usage_dashboard import TOPS, Facts, dashboard, today
from cli.usage_export import Wish, export
from cli.usage_groups import WORDS, groups_of
from cli.usage_view import Output, print_records, print_summaries
from onegate.usage.v1.usage_service_pb2 import UsageFilter, UsageSummary
from runtime.clock import SystemClock

DAYS: Final = 30
"""How many days the charts show where nobody says since when."""
CALLS: Final = 50
CALLS_BELOW: Final = 10
"""How many calls stand below the charts, where there is room for them."""
CALLS_WIDTH: Final = 120
"""From how many letters on there is."""

_BY_HELP: Final = f"Sums, grouped by this: {', '.join(WORDS)} or tag:NAME. Repeatable."

app = typer.Typer(help="Show what was called and what it costs.", invoke_without_command=True)

ByOption = Annotated[list[str] | None, typer.Option(help=_BY_HELP)]
SinceOption = Annotated[
    str,
    typer.Option(
        "--since",
        "--from",
        help="Only from then on: 24h, 7d, 2026-11-01 or 2026-11-01T12:30 (UTC).",
    ),
]
UntilOption = Annotated[
    str, typer.Option("--until", "--to", help="Only before then; written as --since.")
]
KeyOption = Annotated[str, typer.Option(help="Only of this key (its id).")]
ProjectOption = Annotated[str, typer.Option(help="Only of this project (its id).")]
ModelOption = Annotated[str, typer.Option(help="Only of this model (provider/model).")]
RequestOption = Annotated[str, typer.Option(help="Only of this request (x-request-id).")]
ProviderOption = Annotated[str, typer.Option(help="Only of this configured provider.")]
CustomerOption = Annotated[str, typer.Option(help="Only of this customer.")]
FeatureOption = Annotated[str, typer.Option(help="Only of this feature.")]
TeamOption = Annotated[str, typer.Option(help="Only of this team (the tag team).")]
RunOption = Annotated[str, typer.Option(help="Only of this agent run.")]
EndUserOption = Annotated[str, typer.Option(help="Only of this end user.")]
OrganizationOption = Annotated[str, typer.Option(help="Only of this organisation (its id).")]


@app.callback(invoke_without_command=True)
def usage_command(
    context: typer.Context,
    by: ByOption = None,
    since: SinceOption = "",
    until: UntilOption = "",
    key: KeyOption = "",
    project: ProjectOption = "",
    model: ModelOption = "",
    request: RequestOption = "",
    provider: ProviderOption = "",
    customer: CustomerOption = "",
    feature: FeatureOption = "",
    team: TeamOption = "",
    run: RunOption = "",
    end_user: EndUserOption = "",
    organization: OrganizationOption = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Show so many calls, and no charts.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show spend as charts with the latest calls, sums with --by, or calls with --limit."""
    if context.invoked_subcommand is not None:
        return
    wanted = UsageFilter(
        key_id=key,
        project_id=project,
        model=model,
        request_id=request,
        provider=provider,
        customer=customer,
        feature=feature,
        team=team,
        run=run,
        end_user=end_user,
        organization_id=organization,
    )
    now = SystemClock().now()
    _set_span(wanted, since, until, now)
    if by:
        groups = groups_of(by)
        rows = run_with_usage(context, lambda usage: summaries(usage, wanted, groups))
        print_summaries(rows, groups.names, output)
        return
    charts = output is Output.TABLE and limit is None and not request
    if charts:
        facts = run_with_usage(context, lambda usage: _facts(usage, wanted, now))
        out = console()
        if facts.total.attempts or facts.total.cost_nano_usd:
            out.print(dashboard(facts, out))
        if out.width < CALLS_WIDTH:
            out.print("The latest calls are shown with --limit.", style="dim")
            return
    count = limit or (CALLS_BELOW if charts else CALLS)
    found = run_with_usage(context, lambda usage: records(usage, wanted, count))
    print_records(found, output)
    if output is Output.TABLE and len(found) == count:
        console().print(f"These are the latest {count}; --limit shows more.", style="dim")


@app.command("export")
def export_command(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; default: standard output.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="What it is.")] = Format.CSV,
    by: ByOption = None,
    since: SinceOption = "",
    until: UntilOption = "",
    key: KeyOption = "",
    project: ProjectOption = "",
    model: ModelOption = "",
    request: RequestOption = "",
    provider: ProviderOption = "",
    customer: CustomerOption = "",
    feature: FeatureOption = "",
    team: TeamOption = "",
    run: RunOption = "",
    end_user: EndUserOption = "",
    organization: OrganizationOption = "",
) -> None:
    """Write every call, newest first, or sums of them with --by, as CSV, JSON or Parquet."""
    wanted = UsageFilter(
        key_id=key,
        project_id=project,
        model=model,
        request_id=request,
        provider=provider,
        customer=customer,
        feature=feature,
        team=team,
        run=run,
        end_user=end_user,
        organization_id=organization,
    )
    now = SystemClock().now()
    _set_span(wanted, since, until, now)
    groups = groups_of(by) if by else None
    export(context, Wish(wanted=wanted, groups=groups, format=form, out=out))


def _set_span(wanted: UsageFilter, since: str, until: str, now: datetime) -> None:
    if since:
        wanted.started_from.FromDatetime(moment(since, now, "--since"))
    if until:
        wanted.started_before.FromDatetime(moment(until, now, "--until"))


async def _facts(usage: Usage, wanted: UsageFilter, now: datetime) -> Facts:
    """What the charts show: of the last days unless the filter says from when."""
    chosen = UsageFilter()
    chosen.CopyFrom(wanted)
    last = now
    if chosen.HasField("started_before"):
        # The end is exclusive: midnight belongs to the day before.
        last = min(now, chosen.started_before.ToDatetime(UTC) - timedelta(microseconds=1))
    if not chosen.HasField("started_from"):
        first = today(last) - timedelta(days=DAYS - 1)
        chosen.started_from.FromDatetime(datetime.combine(first, datetime.min.time(), UTC))
    began = chosen.started_from.ToDatetime(UTC)
    (total,) = await summaries(usage, chosen, groups_of([])) or [UsageSummary()]
    days = await summaries(usage, chosen, groups_of(["day"]))
    tops = {name: await summaries(usage, chosen, groups_of([name])) for name, _ in TOPS}
    first_day = today(began)
    if days:
        # Nothing is shown of the time before the first call.
        first_day = max(first_day, min(date.fromisoformat(row.group[0]) for row in days))
    return Facts(
        first=min(first_day, today(last)),
        last=today(last),
        total=total,
        before=await _before(usage, chosen, began, last),
        days={date.fromisoformat(row.group[0]): row.cost_nano_usd for row in days},
        tops=tops,
    )


async def _before(
    usage: Usage, chosen: UsageFilter, began: datetime, last: datetime
) -> UsageSummary | None:
    """The same time again, before it began."""
    if began.timestamp() - (last - began).total_seconds() <= 0:
        return None
    earlier = UsageFilter()
    earlier.CopyFrom(chosen)
    earlier.started_from.FromDatetime(began - (last - began))
    earlier.started_before.FromDatetime(began)
    (total,) = await summaries(usage, earlier, groups_of([])) or [UsageSummary()]
    return total
