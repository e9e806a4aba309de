"""``onegate models``: which models can be called here, what they can do and what they cost.

Asks a running router, as the operator of this machine or with a key: then it shows what that key
may call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer
from rich.markup import escape

from cli.context import CliContext, fail
from cli.keys_view import console
from cli.models_view import print_model, print_models
from cli.usage_view import Output
from onegate.common.v1 import error_pb2
from onegate.router.v1 import model_service_pb2, model_service_pb2_grpc
from onegate.router.v1.model_service_pb2 import Model
from runtime.config import Settings
from runtime.errors import GatewayError
from runtime.patterns import matches
from runtime.rpc import OPERATOR_KEY, channel, unary
from runtime.secrets import SecretError, read_secret

TIMEOUT_S: Final = 10.0
"""How long a router may take for one answer, in seconds."""

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Show which models can be called.")

OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="A table for people; JSON or CSV for programs.")
]
KeyOption = Annotated[
    str,
    typer.Option(
        help="Show what this key may call; default: everything.", envvar="ONEGATE_API_KEY"
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """A router, and who asks it."""

    stub: model_service_pb2_grpc.ModelServiceStub
    metadata: tuple[tuple[str, str], ...]

    async def call(self, method: Any, request: Any) -> Any:
        """One answer. Raises ``GatewayError``."""
        return await unary(
            method,
            request,
            timeout_s=TIMEOUT_S,
            metadata=self.metadata,
            away=error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE,
        )


@app.command("list")
def list_command(
    context: typer.Context,
    pattern: Annotated[
        str, typer.Argument(help="A pattern of ids such as 'anthropic/*'; default: all.")
    ] = "*",
    unpriced: Annotated[
        bool, typer.Option("--unpriced", help="Only those that cannot be called yet.")
    ] = False,
    key: KeyOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List the models that can be called, by id."""
    known = _run(context, key, _listed)
    shown = [m for m in known if m.callable is not unpriced and matches(pattern, m.id)]
    print_models(shown, output)
    if output is not Output.TABLE:
        return
    providers = len({model.provider for model in shown if model.provider})
    console().print(f"models: {len(shown):,}; providers: {providers}", style="dim")
    waiting = sum(not model.callable for model in known)
    if waiting and not unpriced:
        console().print(
            f"{waiting:,} more have no known price: see --unpriced, then `onegate prices set`.",
            style="dim",
        )


@app.command("show")
def show_command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Its id, or a name that means one model.")],
    key: KeyOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show everything that is known of a model, and where it is from."""
    print_model(_run(context, key, lambda router: _shown(router, model)), output)


async def _listed(router: Router) -> Sequence[Model]:
    """All models, page by page."""
    request = model_service_pb2.ListModelsRequest()
    found: list[Model] = []
    while True:
        page: model_service_pb2.ListModelsResponse = await router.call(
            router.stub.ListModels, request
        )
        found += page.models
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found


async def _shown(router: Router, model: str) -> Model:
    request = model_service_pb2.GetModelRequest(id=model)
    answer: model_service_pb2.GetModelResponse = await router.call(router.stub.GetModel, request)
    return answer.model


def _run(context: typer.Context, key: str, work: Callable[[Router], Awaitable[T]]) -> T:
    """Does the work with a router; a failure ends the command with one line."""
    cli: CliContext = context.obj
    settings = cli.load()
    try:
        return asyncio.run(_with_router(settings, key, work))
    except SecretError as error:
        fail(escape(f"{error} The gateway makes it when it starts: run `onegate up` first."))
    except GatewayError as error:
        _refused(settings, error)


async def _with_router(settings: Settings, key: str, work: Callable[[Router], Awaitable[T]]) -> T:
    if key:
        caller = ("authorization", f"Bearer {key}")
    else:
        token = read_secret(Path(settings.rpc.operator_token_file))
        caller = (OPERATOR_KEY, token.reveal())
    async with channel(settings.edge.routers[0], settings.rpc) as line:
        stub = model_service_pb2_grpc.ModelServiceStub(line)
        return await work(Router(stub=stub, metadata=(caller,)))


def _refused(settings: Settings, error: GatewayError) -> NoReturn:
    address = settings.edge.routers[0]
    if error.reason == error_pb2.ERROR_REASON_ROUTER_UNAVAILABLE:
        fail(escape(f"no router answers at {address}: is `onegate up` running?"))
    if error.reason == error_pb2.ERROR_REASON_DEADLINE_EXCEEDED:
        fail(escape(f"the router at {address} took more than {TIMEOUT_S:.0f} s to answer"))
    fail(escape(error.message))
