"""One chat call, from its first payload to its last: authorised, planned, admitted, attempted.

Attempts follow one another until one has shown the caller something, or nothing more may be tried.
"""

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import Final

from google.protobuf.message import DecodeError

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from onegate.usage.v1 import price_pb2
from runtime.calls import ServerCall
from runtime.clock import uuid7
from runtime.errors import GatewayError
from runtime.route_settings import RouteSettings
from services.router.credentials.access import Chooser, Way, best_seat, open_to
from services.router.exchange import Line, Prepared, ProviderCall
from services.router.hedging import Race
from services.router.idempotency.answer_log import METADATA_KEY
from services.router.idempotency.repeats import Asked
from services.router.limits import bounds
from services.router.limits.admission import CallFacts, no_credential, refusal
from services.router.limits.waiting import Waiting
from services.router.limits.windows import Ticket
from services.router.mirroring import copy_of, is_mirrored
from services.router.models.catalog import Deployment
from services.router.money.purse import Purse
from services.router.money.settlement import Attempt, Caller, Terms
from services.router.parts import Mirrors, Parts, Provider
from services.router.providers.base import Exchange
from services.router.retries import Step, pause_s, step_after
from services.router.routing.call_plan import asked_of, hedge_after_s, look_of, plan_call
from services.router.routing.data_rules import CallData, call_data
from services.router.routing.explaining import Situation, explained
from services.router.routing.illness import ill
from services.router.routing.planning import Excluded, Plan

_REFUSALS: Final = 300
_UNAUTHORIZED: Final = 401
_PRICES_RETRY_MS: Final = 1000
_OF_CREDENTIAL: Final = frozenset(
    {error_pb2.ERROR_REASON_UPSTREAM_AUTH, error_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED}
)
"""Failures that another credential of the same provider may not meet."""
_BEARER: Final = "bearer "
_LOG = logging.getLogger(__name__)


def bearer_of(metadata: Mapping[str, str]) -> str:
    """The caller's key. Raises INVALID_API_KEY when there is none."""
    authorization = metadata.get("authorization", "")
    if authorization[: len(_BEARER)].lower() != _BEARER:
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_API_KEY,
            "No API key came with the call: send it as `Authorization: Bearer sk-og-…`.",
        )
    return authorization[len(_BEARER) :].strip()


class ChatCall:
    """One call being served."""

    _grant: grant_pb2.Grant
    _caller: Caller
    _data: CallData
    _line: Line
    _purse: Purse | None = None
    _request_id: str

    def __init__(self, parts: Parts, call: ServerCall, *, tells_all: bool = False) -> None:
        """``tells_all``: a dry run also tells what the key may not know, to an operator."""
        self._parts = parts
        self._tells_all = tells_all
        self._call = call
        self._request = _decoded(call.request)
        self._typed: chat_pb2.ChatRequest | None = None
        self._terms: dict[str, Terms] = {}
        self._chooser = Chooser(parts.health, parts.observed, parts.entropy)
        self._excluded: list[Excluded] = []

    async def run(self) -> None:
        """Serves the call. Raises how it failed, with every attempt and exclusion."""
        parts, request = self._parts, self._request
        if not parts.prices.ready:
            raise GatewayError(
                error_pb2.ERROR_REASON_STORE_UNAVAILABLE,
                "The router has not heard any prices yet; try again in a moment.",
                retry_after_ms=_PRICES_RETRY_MS,
            )
        key = bearer_of(self._call.metadata)
        grant = parts.grants.lookup(key) or await parts.grants.get(key)
        now_unix_s, now_s = parts.clock.now().timestamp(), parts.clock.monotonic()
        request_id = request.context.request_id or uuid7(int(now_unix_s * 1000), parts.entropy)
        self._grant = grant
        self._caller = Caller(grant, request, request_id)
        self._request_id = request_id
        if request.context.dry_run:
            await self._explain(await self._asked(now_unix_s, now_s), now_unix_s, now_s)
            return
        if parts.repeats is not None and (
            request.context.idempotency_key or METADATA_KEY in self._call.metadata
        ):
            asked = Asked(self._call, request, grant, request_id, partial(_run, parts))
            await parts.repeats.serve(key, asked)
            return
        if parts.purses is not None:
            self._purse = parts.purses.of(grant, request)
        plan = await self._settled(now_unix_s, now_s)
        if grant.rate_limits and parts.waiting is not None:
            ticket = await self._admitted_in_turn(parts.waiting, plan)
        else:
            ticket = await self._admitted(plan, now_s)
        parts.retries.earn(now_s)
        limit_s = parts.settings.call_timeout_s
        deadline_s = now_s + min(self._call.timeout_s or limit_s, limit_s)
        with parts.watchdog.watch(deadline_s) as watch:
            self._line = Line(self._call, watch, now_unix_s, now_s, deadline_s, ticket)
            if plan.said:
                self._line.follow(plan)
            try:
                await self._attempt_all(plan)
            finally:
                ticket.close(self._line.tokens_used, parts.clock.monotonic())
        if plan.route is not None and parts.mirrors is not None:
            self._mirror(plan.route, parts.mirrors)

    async def _admitted(self, plan: Plan, now_s: float) -> Ticket:
        """A place under every rate limit. Raises RATE_LIMIT_EXCEEDED, STORE_UNAVAILABLE."""
        parts, grant, model = self._parts, self._grant, plan.candidates[0].id
        tokens = partial(bounds.tokens_guess, self._request)
        if grant.rate_limits and parts.shared_limits is not None:
            return await parts.shared_limits.admit(grant, model, tokens, now_s)
        return parts.limits.admit(grant, model, tokens, now_s)

    async def _admitted_in_turn(self, waiting: Waiting, plan: Plan) -> Ticket:
        """The same, after a wait where it takes one."""
        grant, context, clock = self._grant, self._request.context, self._parts.clock
        limit_s = self._parts.settings.call_timeout_s
        left_s = min(self._call.timeout_s or limit_s, limit_s)
        if context.HasField("wait_max_ms"):
            left_s = min(left_s, context.wait_max_ms / 1000)
        return await waiting.admitted(
            lambda: self._admitted(plan, clock.monotonic()),
            (grant.project_id, plan.candidates[0].id),
            grant.key_id,
            context.priority,
            left_s,
        )

    async def _settled(self, now_unix_s: float, now_s: float) -> Plan:
        """Whom to try, and on which terms. Raises why nobody can serve."""
        parts, request, grant = self._parts, self._request, self._grant
        standing = parts.standings.find(grant, request, now_unix_s)
        if standing is not None:
            self._terms[standing.terms.deployment.id] = standing.terms
            return standing.plan
        plan = await self._asked(now_unix_s, now_s)
        if not plan.candidates:
            raise plan.refusal()
        self._excluded.extend(plan.excluded)
        parts.standings.keep(grant, request, plan, self._terms[plan.candidates[0].id])
        return plan

    async def _asked(self, now_unix_s: float, now_s: float) -> Plan:
        """What catalogue, prices, policies and health say of every model that was named."""
        request = self._request
        routing = request.routing if request.HasField("routing") else None
        self._data = call_data(self._grant, request.context.data_class, routing)
        await self._learn_prices()
        return self._plan(now_unix_s, now_s)

    async def _learn_prices(self) -> None:
        """Asks usage for prices that were never needed before: of dated names, and of new ones."""
        routes = self._parts.routes
        for asked in (self._request.model, *self._request.routing.fallback_models):
            for model in routes.reachable(asked):
                await self._learn_price(model)

    async def _learn_price(self, model: str) -> None:
        prices = self._parts.prices
        for name in self._parts.catalog.price_names(model):
            if prices.find(name) is None:
                await prices.get(name)

    def _plan(self, now_unix_s: float, now_s: float) -> Plan:
        parts, grant = self._parts, self._grant

        def judge(deployment: Deployment) -> GatewayError | None:
            facts = self._facts(deployment)
            return refusal(grant, facts, now_unix_s) or self._ill(deployment, now_s)

        known = (parts.catalog, parts.prices, parts.observed, now_s, self._seats)
        look = partial(look_of, *known)
        asked = asked_of(grant, self._request, self._request_id)
        return plan_call(asked, parts.routes, look, parts.catalog.resolve, judge)

    def _facts(self, deployment: Deployment) -> CallFacts:
        """What the policies look at."""
        context, sheet = self._request.context, self._pin(deployment)
        cost_max = context.cost_max_nano_usd if context.HasField("cost_max_nano_usd") else None
        credentials = self._parts.providers[deployment.provider].credentials
        return CallFacts(
            model=deployment.id,
            priced=deployment.free or sheet is not None,
            client_address=context.client_address,
            cost_max_nano_usd=cost_max,
            cost_bound=partial(self._cost_bound, deployment),
            data=self._data,
            handling=deployment.data,
            reachable=not credentials or bool(open_to(credentials, self._grant)),
            over_price=bounds.over_price(sheet, self._request.routing),
        )

    def _pin(self, deployment: Deployment) -> price_pb2.PriceSheet | None:
        """The price of this call, whatever changes from here on."""
        sheet = None if deployment.free else self._parts.prices.find(deployment.price_name)
        self._terms[deployment.id] = Terms(
            self._grant, self._request.model, deployment, sheet, self._data
        )
        return sheet

    def _cost_bound(self, deployment: Deployment) -> int | None:
        sheet = self._terms[deployment.id].sheet
        return bounds.cost_bound(
            self._request, sheet, deployment.output_tokens_max, deployment.context_tokens_max
        )

    def _ill(self, deployment: Deployment, now_s: float) -> GatewayError | None:
        """Why the deployment cannot be asked at this moment."""
        return ill(self._parts.health, self._seat(deployment, now_s), now_s)

    def _seat(self, deployment: Deployment, now_s: float) -> Deployment:
        """The deployment with the credential that it can be asked with soonest."""
        credentials = self._parts.providers[deployment.provider].credentials
        if not credentials:
            return deployment
        mine = open_to(credentials, self._grant)
        return best_seat(mine, deployment, self._parts.health, now_s)

    def _seats(self, deployment: Deployment) -> list[str]:
        """The deployment with every credential that the call may go out with, by name."""
        credentials = self._parts.providers[deployment.provider].credentials
        return [one.seat(deployment).id for one in open_to(credentials, self._grant)]

    def _way(self, provider: Provider, deployment: Deployment) -> Way:
        """With which credential the deployment is asked now. Raises why with none."""
        if provider.retired:
            raise no_credential(provider.name)
        if not provider.credentials:
            self._check(deployment)
            return Way(provider.target, deployment)
        mine = open_to(provider.credentials, self._grant)
        return self._chooser.way(mine, deployment, self._parts.clock.monotonic())

    def _check(self, seat: Deployment) -> None:
        """Raises why the seat must be left alone, of which others may have told since the plan was
        made: the call may have waited for room, for money or for its own typed form.
        """
        parts = self._parts
        if not parts.health.unsuspected(seat.provider, seat.id):
            why = ill(parts.health, seat, parts.clock.monotonic())
            if why is not None:
                raise why

    async def _explain(self, plan: Plan, now_unix_s: float, now_s: float) -> None:
        """Says who would be tried, in which order, and why nobody else: nothing is called, held
        or recorded.
        """
        parts = self._parts
        deadline_s = now_s + parts.settings.first_byte_timeout_s
        with parts.watchdog.watch(deadline_s) as watch:
            self._line = Line(self._call, watch, now_unix_s, now_s, deadline_s, Ticket())
            unspeakable = {
                deployment.id: why
                for deployment in plan.candidates
                if isinstance(why := await self._prepare(deployment), GatewayError)
            }
            mirror = "" if plan.route is None else self._mirror_of(plan.route)
            if mirror:
                await self._learn_price(mirror)
            situation = Situation(
                grant=self._grant,
                request=self._request,
                data=self._data,
                plan=plan,
                resolve=parts.catalog.resolve,
                facts=self._facts,
                health=parts.health,
                seat=partial(self._seat, now_s=now_s),
                unspeakable=unspeakable,
                now_unix_s=now_unix_s,
                now_s=now_s,
                tells_all=self._tells_all,
                hedge_after_s=self._hedge_s(plan),
                mirror=mirror,
            )
            told = explained(situation)
            told.attempts_max = parts.settings.attempts_max
            line = self._line
            line.allow(parts.settings.stall_timeout_s, parts.clock.monotonic())
            await line.send([chat_pb2.ChatEvent(plan=told)])

    async def _attempt_all(self, plan: Plan) -> None:
        """Tries the candidates in turn, then again those that may be asked again."""
        waiting, again = list(plan.candidates), list[Deployment]()
        rescue = dict(plan.rescue)
        failure: GatewayError | None = None
        retry = 0
        while waiting or again:
            if not waiting:
                retry += 1
                if not await self._pause(retry):
                    break
                waiting.append(again.pop(0))
            deployment = waiting.pop(0)
            if failure is not None and self._is_out(deployment):
                continue
            prepared = await self._prepare(deployment)
            if isinstance(prepared, GatewayError):
                failure = failure or prepared
                continue
            try:
                if plan.route is not None and plan.route.hedge and waiting:
                    await self._hedged(plan.route, prepared, waiting)
                else:
                    await ProviderCall(self._parts, self._line, prepared).run()
                return
            except GatewayError as error:
                failure = error
            step = await self._learn(prepared, failure)
            if failure.reason in rescue and not self._is_done():
                waiting, again = list(rescue.pop(failure.reason)), []
            elif step is not Step.STOP and self._has_another(deployment, failure):
                waiting.insert(0, deployment)
            elif step is Step.AGAIN:
                again.append(deployment)
            elif step is Step.STOP:
                break
        raise self._told(failure or plan.refusal())

    def _mirror(self, route: RouteSettings, mirrors: Mirrors) -> None:
        """Has a copy of the call made, if it is one of those that are copied."""
        model = self._mirror_of(route)
        if model:
            copy = copy_of(self._typed or self._request, model, self._request_id)
            mirrors.make(_run, self._parts, copy, self._grant)

    def _mirror_of(self, route: RouteSettings) -> str:
        """The model that the call is copied to; empty for none."""
        if not is_mirrored(route, self._request_id):
            return ""
        try:
            target = self._parts.catalog.resolve(route.mirror_to)
        except GatewayError:
            return ""
        return target.id if self._is_plain(target) else ""

    def _hedge_s(self, plan: Plan) -> float:
        """After what silence of the first another deployment would be asked, too; 0 for never."""
        route, others = plan.route, plan.candidates[1:]
        if route is None or not any(self._is_plain(one) for one in others):
            return 0.0
        first, observed = plan.candidates[0].id, self._parts.observed
        return hedge_after_s(route, observed, first, stream=self._request.stream)

    async def _hedged(
        self, route: RouteSettings, first: Prepared, waiting: list[Deployment]
    ) -> None:
        """Makes the attempt, and another one beside it when it is slow. Raises how it failed."""
        parts, line = self._parts, self._line
        delay_s = hedge_after_s(
            route,
            parts.observed,
            first.attempt.deployment.id,
            stream=self._request.stream,
        )
        if not delay_s or len(line.attempts) + 2 > parts.settings.attempts_max:
            await ProviderCall(parts, line, first).run()
            return
        second = partial(self._second, first.attempt.deployment, waiting)
        await Race(parts, line, self._learn).run(first, delay_s, second)

    async def _second(self, first: Deployment, waiting: list[Deployment]) -> Prepared | None:
        """An attempt of the next deployment that can be made beside the first one; ``None`` when
        there is none, or no retry to be spent on it.
        """
        parts = self._parts
        now_s = parts.clock.monotonic()
        for deployment in waiting:
            if (
                not self._is_plain(deployment)
                or self._ill(deployment, now_s) is not None
                or not self._are_cheap(first, deployment)
            ):
                continue
            if not parts.retries.spend(now_s):
                return None
            waiting.remove(deployment)
            prepared = await self._prepare(deployment)
            return None if isinstance(prepared, GatewayError) else prepared
        return None

    def _is_plain(self, deployment: Deployment) -> bool:
        """Whether it can be asked without asking the caller for another form of the request."""
        wire, request = self._parts.providers[deployment.provider].wire, self._request
        if not request.HasField("native") or self._typed is not None:
            return True
        return wire.native and wire.dialect == request.native.dialect

    def _are_cheap(self, first: Deployment, second: Deployment) -> bool:
        """Whether both together cannot cost more than the caller allows."""
        context = self._request.context
        if not context.HasField("cost_max_nano_usd"):
            return True
        bounds_nano_usd = [self._cost_bound(one) for one in (first, second)]
        known = [bound for bound in bounds_nano_usd if bound is not None]
        spent = self._line.cost_nano_usd
        return len(known) == 2 and sum(known) + spent <= context.cost_max_nano_usd

    def _has_another(self, deployment: Deployment, failure: GatewayError) -> bool:
        """Whether what failed was the credential, and the provider has another one for this."""
        credentials = self._parts.providers[deployment.provider].credentials
        if len(credentials) < 2 or failure.reason not in _OF_CREDENTIAL:
            return False
        mine, now_s = open_to(credentials, self._grant), self._parts.clock.monotonic()
        return self._chooser.has_another(mine, deployment, now_s)

    async def _pause(self, retry: int) -> bool:
        """Waits before a retry; false when none may be made."""
        parts, line = self._parts, self._line
        delay_s = pause_s(retry, parts.entropy)
        now_s = parts.clock.monotonic()
        if now_s + delay_s >= line.deadline_s or not parts.retries.spend(now_s):
            return False
        line.watch.deadline_s = line.deadline_s
        await parts.clock.sleep(delay_s)
        return True

    def _is_out(self, deployment: Deployment) -> bool:
        """Whether what happened since the plan was made excludes the deployment."""
        why = self._ill(deployment, self._parts.clock.monotonic()) or self._too_dear(deployment)
        if why is not None:
            self._excluded.append(Excluded(model=deployment.id, why=why))
        return why is not None

    def _too_dear(self, deployment: Deployment) -> GatewayError | None:
        """Whether another attempt could cost more than earlier ones have left of the bound."""
        context, spent = self._request.context, self._line.cost_nano_usd
        if not context.HasField("cost_max_nano_usd") or not spent:
            return None
        bound = self._cost_bound(deployment)
        if bound is not None and bound + spent <= context.cost_max_nano_usd:
            return None
        return GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST,
            "Another attempt could cost more than x-onegate-max-cost leaves.",
            param="x-onegate-max-cost",
        )

    async def _prepare(self, deployment: Deployment) -> Prepared | GatewayError:
        """The attempt, ready to be sent; or why the wire cannot say what the request asks."""
        provider = self._parts.providers[deployment.provider]
        attempt = Attempt(self._caller, self._terms[deployment.id])
        request, wire = self._request, provider.wire
        native = request.HasField("native")
        try:
            if native and not (wire.native and wire.dialect == request.native.dialect):
                request, native = await self._typed_form(), False
            exchange = Exchange(
                request=request, model=deployment.model, cost=attempt.cost, native=native
            )
            way = self._way(provider, deployment)
            attempt.credential = way.credential
            prepared = Prepared(attempt, provider, way, exchange, wire.request(exchange))
            return prepared if self._purse is None else await self._paid(self._purse, prepared)
        except GatewayError as why:
            self._excluded.append(Excluded(model=deployment.id, why=why))
            return why

    async def _paid(self, purse: Purse, prepared: Prepared) -> Prepared:
        """The attempt with money set aside for it, capped where that demands it. Raises why there
        is none.
        """
        attempt, provider, way, exchange, outgoing, _ = prepared
        left_s = self._line.deadline_s - self._parts.clock.monotonic()
        hold = await purse.reserve(exchange.request, self._request_id, attempt.terms, left_s)
        try:
            self._check(way.seat)
        except GatewayError:
            if hold is not None:
                hold.release()
            raise
        if hold is None:
            return prepared
        if hold.output_tokens_cap:
            exchange = _capped(exchange, hold.output_tokens_cap)
            try:
                outgoing = provider.wire.request(exchange)
            except GatewayError:
                # The model takes no such cap beside what else is asked: nothing is sent.
                hold.release()
                raise
        return Prepared(attempt, provider, way, exchange, outgoing, hold)

    async def _typed_form(self) -> chat_pb2.ChatRequest:
        """The request in no dialect; asked for once."""
        if self._typed is not None:
            return self._typed
        parts, line = self._parts, self._line
        line.allow(parts.settings.first_byte_timeout_s, parts.clock.monotonic())
        try:
            await line.send([chat_pb2.ChatEvent(typed_required=chat_pb2.TypedRequired())])
            typed = _decoded(await self._call.receive())
        except asyncio.CancelledError:
            if not line.watch.caught():
                raise
            raise GatewayError(
                error_pb2.ERROR_REASON_REQUEST_TIMEOUT, "The typed form of the request never came."
            ) from None
        if typed.HasField("native"):
            raise GatewayError(
                error_pb2.ERROR_REASON_INVALID_REQUEST,
                "The call was asked for its typed form and came in its own again.",
            )
        self._typed = typed
        return typed

    async def _learn(self, prepared: Prepared, failure: GatewayError) -> Step:
        """What a failure says of its deployment, and what may follow."""
        parts, line, seat = self._parts, self._line, prepared.way.seat
        now_s = parts.clock.monotonic()
        if failure.reason == error_pb2.ERROR_REASON_UPSTREAM_AUTH:
            self._quarantine(seat, failure.upstream_status, now_s)
        if failure.retry_after_ms and failure.upstream_status >= _REFUSALS:
            wait_s = failure.retry_after_ms / 1000
            parts.health.cool_down(seat.id, wait_s, now_s)
            if parts.cooldowns is not None:
                line.watch.deadline_s = line.deadline_s
                await parts.cooldowns.tell(seat.id, wait_s)
        if self._is_done():
            return Step.STOP
        step = step_after(failure, broke_off=prepared.attempt.broke_off)
        unreachable = failure.reason == error_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE
        quickly_ms = parts.settings.connect_timeout_s * 1000 / 4
        if unreachable and line.attempts[-1].duration_ms > quickly_ms:
            return Step.ELSEWHERE  # who lets the connection hang once will not answer in time
        return step

    def _is_done(self) -> bool:
        """Whether no other attempt may follow, whatever happened."""
        line = self._line
        return line.shown or len(line.attempts) >= self._parts.settings.attempts_max

    def _quarantine(self, seat: Deployment, status: int, now_s: float) -> None:
        """401 speaks of the credential; anything else of what it may do with this model."""
        name = seat.provider if status == _UNAUTHORIZED else seat.id
        if self._parts.health.quarantine(name, now_s):
            self._parts.meters.credential_refused(seat.provider)
            _LOG.error(
                "%s refused the gateway's credential (status %d): it rests until it works again;"
                " check the provider's key",
                name,
                status,
            )

    def _told(self, failure: GatewayError) -> GatewayError:
        failure.attempts = self._line.attempts
        failure.excluded = [out.to_proto() for out in self._excluded]
        return failure


async def _run(parts: Parts, call: ServerCall) -> None:
    await ChatCall(parts, call).run()


def _capped(exchange: Exchange, output_tokens_max: int) -> Exchange:
    """The call with a cap of output."""
    request = chat_pb2.ChatRequest()
    request.CopyFrom(exchange.request)
    request.output_tokens_max = output_tokens_max
    return exchange._replace(request=request, output_tokens_cap=output_tokens_max)


def _decoded(payload: bytes) -> chat_pb2.ChatRequest:
    try:
        return chat_pb2.ChatRequest.FromString(payload)
    except DecodeError:
        raise GatewayError(
            error_pb2.ERROR_REASON_INVALID_REQUEST, "The payload is not a ChatRequest."
        ) from None
