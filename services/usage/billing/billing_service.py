"""Agreements, credits and prices worked out anew, over gRPC."""

# ruff: noqa: N802 - methods are named as the contract names them

import logging
from typing import Any, Final, TypeAlias

import grpc

from onegate.usage.v1 import billing_service_pb2 as pb
from onegate.usage.v1 import billing_service_pb2_grpc
from runtime.rpc import require_operator
from runtime.secrets import Secret
from services.usage.billing.agreement_store import AgreementStore
from services.usage.billing.agreements import NAME_CHARS_MAX, invalid
from services.usage.billing.credit_store import CreditStore
from services.usage.billing.rerate_store import Place, RerateStore
from services.usage.billing.rerating import Sheets, rerated
from services.usage.reports import queries

_LOG = logging.getLogger(__name__)
_SECONDS: Final = range(1, 253_402_300_800)

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class BillingService(billing_service_pb2_grpc.BillingServiceServicer):
    """Lets operators say what payers are charged."""

    def __init__(
        self,
        stores: tuple[AgreementStore, CreditStore, RerateStore],
        sheets: Sheets,
        operator_token: Secret,
    ) -> None:
        self._agreements, self._credits, self._rerates = stores
        self._sheets = sheets
        self._operator_token = operator_token

    async def SetAgreement(
        self, request: pb.SetAgreementRequest, context: Context
    ) -> pb.SetAgreementResponse:
        """Keeps an agreement."""
        require_operator(context, self._operator_token.reveal())
        kept, is_new = await self._agreements.set(request.agreement)
        _LOG.info("%s is in force for %s", kept.id, kept.payer.organization_id)
        return pb.SetAgreementResponse(agreement=kept, is_new=is_new)

    async def ListAgreements(
        self, request: pb.ListAgreementsRequest, context: Context
    ) -> pb.ListAgreementsResponse:
        """A page of agreements, newest first."""
        require_operator(context, self._operator_token.reveal())
        count, question = queries.page_size_of(request.page_size), request.organization_id
        place = queries.place_of(request.page_token, question)
        before = None if place is None else int(place)
        found = await self._agreements.list(question, before, count + 1)
        token = queries.token_of(str(found[count - 1][0]), question) if len(found) > count else ""
        return pb.ListAgreementsResponse(
            agreements=[one for _, one in found[:count]], next_page_token=token
        )

    async def GrantCredit(
        self, request: pb.GrantCreditRequest, context: Context
    ) -> pb.GrantCreditResponse:
        """Keeps a credit."""
        require_operator(context, self._operator_token.reveal())
        made = await self._credits.grant(request.credit, request.request_id)
        return pb.GrantCreditResponse(credit=made)

    async def ListCredits(
        self, request: pb.ListCreditsRequest, context: Context
    ) -> pb.ListCreditsResponse:
        """A page of credits, newest first."""
        require_operator(context, self._operator_token.reveal())
        count, question = queries.page_size_of(request.page_size), request.organization_id
        place = queries.place_of(request.page_token, question)
        before = None if place is None else int(place)
        found = await self._credits.list(question, before, count + 1)
        token = queries.token_of(str(found[count - 1][0]), question) if len(found) > count else ""
        return pb.ListCreditsResponse(
            credits=[one for _, one in found[:count]], next_page_token=token
        )

    async def RevokeCredit(
        self, request: pb.RevokeCreditRequest, context: Context
    ) -> pb.RevokeCreditResponse:
        """Ends a credit."""
        require_operator(context, self._operator_token.reveal())
        return pb.RevokeCreditResponse(credit=await self._credits.revoke(request.credit_id))

    async def RerateUsage(
        self, request: pb.RerateUsageRequest, context: Context
    ) -> pb.RerateUsageResponse:
        """Works out one batch of calls anew."""
        require_operator(context, self._operator_token.reveal())
        question = _question(request)
        place = queries.place_of(request.page_token, question)
        after = None
        if place is not None:
            at, _, name = place.partition("/")
            after = Place(int(at), name)
        records, last = await self._rerates.records(request, after)
        batch = rerated(records, self._sheets)
        if request.dry_run:
            told = await self._rerates.look(batch.found)
        else:
            told = await self._rerates.keep(batch.found, billed=request.billed)
        told.calls, told.left, told.unpriced = len(records), batch.left, batch.unpriced
        told.reached.CopyFrom(request.started_before)
        if last is not None:
            told.reached.FromMicroseconds(last.started_at_us)
            told.next_page_token = queries.token_of(
                f"{last.started_at_us}/{last.attempt_id}", question
            )
        return told


def _question(request: pb.RerateUsageRequest) -> tuple[object, ...]:
    """What a request is about, checked. Raises INVALID_REQUEST."""
    span = request.started_from, request.started_before
    if not all(moment.seconds in _SECONDS for moment in span):
        raise invalid("started_from", "and `started_before` must be set")
    times = [moment.ToMicroseconds() for moment in span]
    if times[0] >= times[1]:
        raise invalid("started_before", "must lie after `started_from`")
    names = (request.organization_id, request.project_id, request.model)
    if max(map(len, names)) > NAME_CHARS_MAX:
        raise invalid("model", "is too long")
    return (*times, *names)
