"""Invoices over gRPC."""

# ruff: noqa: N802 - methods are named as the contract names them

from typing import Any, TypeAlias

import grpc

from onegate.usage.v1 import invoice_service_pb2 as pb
from onegate.usage.v1 import invoice_service_pb2_grpc
from runtime.rpc import require_operator
from runtime.secrets import Secret
from services.usage.invoices.documents import checked, invalid, issuer_of
from services.usage.invoices.invoice_store import InvoiceStore
from services.usage.reports import queries

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class InvoiceService(invoice_service_pb2_grpc.InvoiceServiceServicer):
    """Lets operators draft, issue, credit and read invoices."""

    def __init__(self, store: InvoiceStore, operator_token: Secret) -> None:
        self._store = store
        self._operator_token = operator_token

    async def DraftInvoice(
        self, request: pb.DraftInvoiceRequest, context: Context
    ) -> pb.DraftInvoiceResponse:
        """What an invoice would say."""
        require_operator(context, self._operator_token.reveal())
        return pb.DraftInvoiceResponse(invoice=await self._store.draft(checked(request.terms)))

    async def IssueInvoice(
        self, request: pb.IssueInvoiceRequest, context: Context
    ) -> pb.IssueInvoiceResponse:
        """Numbers and freezes an invoice."""
        require_operator(context, self._operator_token.reveal())
        made = await self._store.issue(checked(request.terms), request.request_id)
        return pb.IssueInvoiceResponse(invoice=made)

    async def CreditInvoice(
        self, request: pb.CreditInvoiceRequest, context: Context
    ) -> pb.CreditInvoiceResponse:
        """Numbers and freezes a credit note."""
        require_operator(context, self._operator_token.reveal())
        if not 0 < len(request.reason.strip()) <= 500 or not request.reason.isprintable():
            raise invalid("reason", "must say why, in one line of at most 500 characters")
        return pb.CreditInvoiceResponse(credit_note=await self._store.credit(request))

    async def GetInvoice(
        self, request: pb.GetInvoiceRequest, context: Context
    ) -> pb.GetInvoiceResponse:
        """One document."""
        require_operator(context, self._operator_token.reveal())
        found = await self._store.get(issuer_of(request.issuer), request.number)
        return pb.GetInvoiceResponse(invoice=found)

    async def ListInvoices(
        self, request: pb.ListInvoicesRequest, context: Context
    ) -> pb.ListInvoicesResponse:
        """A page of documents, newest first."""
        require_operator(context, self._operator_token.reveal())
        count = queries.page_size_of(request.page_size)
        question = (request.issuer, request.organization_id)
        place = queries.place_of(request.page_token, question)
        after = None
        if place is not None:
            at, issuer, number = place.split(" ", 2)
            after = (int(at), issuer, number)
        found = await self._store.list(*question, after, count + 1)
        page = found[:count]
        token = ""
        if len(found) > count:
            last = page[-1]
            place = f"{last.issued_at.ToMicroseconds()} {last.issuer} {last.number}"
            token = queries.token_of(place, question)
        return pb.ListInvoicesResponse(invoices=page, next_page_token=token)
