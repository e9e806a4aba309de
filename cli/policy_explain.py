"""``onegate policy explain``: who would serve a call, and what every rule says of everybody."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from google.protobuf.json_format import MessageToDict
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cli.context import CliContext, fail
from cli.keys import Output, OutputOption
from cli.keys_view import console, print_json
from cli.policy_view import rules_table
from onegate.common.v1 import content_pb2, error_pb2
from onegate.router.v1 import chat_pb2, explain_service_pb2, explain_service_pb2_grpc, plan_pb2
from runtime.config import Settings
from runtime.errors import GatewayError, reason_name
from runtime.money import usd
from runtime.rpc import OPERATOR_KEY, channel, unary
from runtime.secrets import SecretError, read_secret

TIMEOUT_S: Final = 15.0
_KEY_ID: Final = "key_"
_STDIN: Final = "-"


app = typer.Typer()


@app.command("explain")
def explain_command(
    context: typer.Context,
    key: Annotated[
        str,
        typer.Option("--key", help="A key's id (key_…), or - to read a key from standard input."),
    ],
    model: Annotated[
        list[str], typer.Option("--model", help="The model; repeat for fallbacks, in order.")
    ],
    data_class: Annotated[str, typer.Option(help="The class of the call's data.")] = "",
    zdr: Annotated[bool, typer.Option("--zdr", help="As provider.zdr of a request.")] = False,
    no_training: Annotated[
        bool, typer.Option("--no-training", help="As provider.data_collection = deny.")
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(help="As max_completion_tokens, for the bound on cost.")
    ] = None,
    address: Annotated[str, typer.Option(help="The caller's network address.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show who would serve a call, who would not, and what every rule says. Calls nobody."""
    text = content_pb2.Part(text=content_pb2.TextPart(text="Hello"))
    routing = chat_pb2.RoutingPreferences(
        fallback_models=model[1:], zero_retention=zdr, no_training=no_training
    )
    request = chat_pb2.ChatRequest(
        model=model[0],
        messages=[content_pb2.Message(role=content_pb2.ROLE_USER, parts=[text])],
        output_tokens_max=max_tokens,
        routing=routing if routing.ByteSize() else None,
        context=chat_pb2.CallContext(data_class=data_class, client_address=address),
    )
    secret = sys.stdin.readline().strip() if key == _STDIN else key
    cli: CliContext = context.obj
    try:
        plan = asyncio.run(_ask(cli.load(), secret, request))
    except SecretError as error:
        fail(escape(f"{error} The gateway makes it when it starts: run `onegate up` first."))
    except GatewayError as error:
        if error.reason == error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE:
            fail("the router does not answer: is `onegate up` running?")
        fail(escape(error.message))
    if output is Output.JSON:
        print_json(_fields(plan))
    else:
        _print(plan)


async def _ask(settings: Settings, key: str, request: chat_pb2.ChatRequest) -> plan_pb2.Plan:
    """The plan, for a key by its id as the operator, for a key itself as its holder."""
    asked = explain_service_pb2.ExplainChatRequest(request=request)
    if key.startswith(_KEY_ID):
        asked.key_id = key
        token = read_secret(Path(settings.rpc.operator_token_file)).reveal()
        metadata = [(OPERATOR_KEY, token)]
    else:
        metadata = [("authorization", f"Bearer {key}")]
    async with channel(settings.edge.routers[0], settings.rpc) as line:
        stub = explain_service_pb2_grpc.ExplainServiceStub(line)
        answer = await unary(stub.ExplainChat, asked, timeout_s=TIMEOUT_S, metadata=metadata)
    return answer.plan


def _fields(plan: plan_pb2.Plan) -> dict[str, Any]:
    fields: dict[str, Any] = MessageToDict(
        plan, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return {"order": [one.model for one in plan.considered if one.place], **fields}


def _print(plan: plan_pb2.Plan) -> None:
    out = console()
    order = [one.model for one in plan.considered if one.place]
    if order:
        out.print(f"It would be tried at: {escape(', then '.join(order))}")
    else:
        out.print(f"[bold]Refused[/]: {escape(plan.refusal.message)}")
    if plan.HasField("hedge_after_ms"):
        out.print(f"The second would be asked, too, after {plan.hedge_after_ms:,} ms of silence.")
    if plan.HasField("mirror"):
        out.print(f"It would be copied to {escape(plan.mirror.model)}, for nobody to hear.")
    if plan.data_class:
        out.print(f"Its data is {plan.data_class}; policy {plan.data_policy_version or 'none'}.")
    if plan.data_rules:
        out.print(rules_table(plan.data_rules))
    for rate in plan.rate_limits:
        out.print(
            f"It counts towards {rate.amount:,} in {rate.window_s} s"
            f"{escape(f' of {rate.model}') if rate.model else ''}."
        )
    for one in plan.considered:
        out.print()
        out.print(_chain(one))


def _chain(one: plan_pb2.ConsideredDeployment) -> Table:
    bound = one.HasField("cost_bound_nano_usd")
    cost = f", at most {usd(one.cost_bound_nano_usd)} USD" if bound else ""
    place = f"place {one.place}" if one.place else "not tried"
    table = Table(
        title=Text(f"{one.model} ({place}{cost})"), box=None, pad_edge=False, title_justify="left"
    )
    for column in ("rule", "says", "why"):
        table.add_column(column)
    for verdict in one.verdicts:
        says = "withheld" if verdict.withheld else "pass"
        if verdict.reason:
            says = f"refuse: {reason_name(verdict.reason)}"
        # Details name models, which are other people's text, not markup.
        table.add_row(verdict.rule, Text(says), Text(verdict.detail))
    return table
