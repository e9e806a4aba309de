"""Alerts: decided once, sent at least once, signed; to a real HTTP and a real SMTP server."""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from onegate.usage.v1 import alert_service_pb2 as pb
from onegate.usage.v1.budget_pb2 import BudgetAlert
from runtime.clock import SystemEntropy
from runtime.config import AlertSettings
from runtime.secrets import FileSecrets, Secret
from services.usage.alerts import messages
from services.usage.alerts.alert_rows import WEBHOOK
from services.usage.alerts.alert_sender import AlertSender, Mail, Ways, Webhook, ways_of
from services.usage.alerts.alert_store import CLAIM_US, AlertStore
from tests.services.usage.books import ALERT, Books, books_on

KEY = b"k" * 24


class Receiver:
    """An HTTP server that keeps what it is sent and answers as it is told."""

    def __init__(self) -> None:
        self.port = 0
        self.answers: list[str] = []
        self.got: list[tuple[dict[str, str], bytes]] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        self.got.append((headers, await reader.readexactly(int(headers["content-length"]))))
        status = self.answers.pop(0) if self.answers else "204 No Content"
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    server = await asyncio.start_server(made.take, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    async with server:
        yield made


class Postbox:
    """What an SMTP server was given."""

    def __init__(self) -> None:
        self.mails: list[Envelope] = []

    async def handle_DATA(  # noqa: N802 - named by aiosmtpd
        self, _server: Any, _session: Session, envelope: Envelope
    ) -> str:
        self.mails.append(envelope)
        return "250 OK"


@asynccontextmanager
async def mail_server(**options: Any) -> AsyncIterator[tuple[Postbox, int]]:
    box = Postbox()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(box, hostname="localhost", **options), "127.0.0.1", 0
    )
    async with server:
        yield box, server.sockets[0].getsockname()[1]


def hook(port: int, **fields: Any) -> Webhook:
    given = {"webhook_url": f"http://127.0.0.1:{port}/in?x=1", "webhook_private": True, **fields}
    return Webhook(AlertSettings(**given), KEY)


Spend = Callable[[int], Awaitable[None]]


async def outbox_on(books: Books) -> AlertStore:
    made = AlertStore(books.database, books.now_us)
    await made.migrate(now=books.clock.now())
    return made


async def crossed(books: Books) -> None:
    """A budget of which 80 and then 100 percent are spent."""
    alert = BudgetAlert(percents=[80, 100], recipients=["a@example.com"], subject_prefix="[ops]")
    await books.budget(1_000, mode=ALERT, alert=alert)
    for number in (1, 2, 3):
        await books.settle(number, 400)


def sender(store: AlertStore, books: Books, webhook: Any = None, mail: Any = None) -> AlertSender:
    return AlertSender(store, Ways(webhook=webhook, mail=mail), books.clock, SystemEntropy())


def test_a_signature_is_the_one_of_the_specification() -> None:
    # The example of the Standard Webhooks specification's libraries.
    key = messages.secret_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = messages.signature(
        key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}'
    )
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("text", ["", "whsec_", "short", "whsec_!!", "whsec_YWJj"])
def test_a_secret_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="secret"):
        messages.secret_of(text)


@pytest.mark.parametrize(
    ("address", "private", "fine"),
    [
        ("93.184.216.34", False, True),
        ("2606:4700::1111", False, True),
        ("10.0.0.1", False, False),
        ("10.0.0.1", True, True),
        ("127.0.0.1", False, False),
        ("::ffff:10.0.0.1", False, False),
        ("64:ff9b::a00:1", False, False),
        ("2002:a00:1::1", False, False),
        ("fd00::1", False, False),
        ("169.254.169.254", True, False),
        ("::ffff:169.254.169.254", True, False),
        ("fe80::1%eth0", True, False),
        ("0.0.0.0", True, False),
        ("224.0.0.1", True, False),
    ],
)
def test_private_addresses_need_the_operator_s_word(
    address: str, private: bool, fine: bool
) -> None:
    assert (messages.fault_of_address(address, private_allowed=private) == "") is fine


def test_attempts_wait_longer_each_time_up_to_a_bound() -> None:
    waits = [messages.backoff_s(attempt, 1.0) for attempt in range(1, messages.ATTEMPTS_MAX)]
    assert waits[:3] == [5, 20, 80]
    assert waits == sorted(waits)
    assert waits[-1] == 4 * 3600
    assert messages.backoff_s(1, 0.0) == 4


@pytest.mark.anyio
async def test_a_crossing_is_told_once_by_signed_webhook_and_by_mail(dsn: str) -> None:
    async with books_on(dsn) as books, receiver() as web, mail_server() as (box, port):
        store = await outbox_on(books)
        await crossed(books)
        settings = AlertSettings(
            smtp_host="127.0.0.1", smtp_port=port, smtp_security="none", mail_from="o@example.com"
        )
        # Two replicas.
        both = [sender(store, books, hook(web.port), Mail(settings, None)) for _ in range(2)]
        await asyncio.gather(*(one.round() for one in both))
        await asyncio.gather(*(one.round() for one in both))
        assert sorted(json.loads(body)["data"]["percent"] for _, body in web.got) == [80, 100]
        assert len({headers["webhook-id"] for headers, _ in web.got}) == 2
        for headers, body in web.got:
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
            digest = hmac.new(KEY, signed, hashlib.sha256).digest()
            # The receiver read its headers in lower case.
            expected = f"v1,{base64.b64encode(digest).decode()}".lower()
            assert headers["webhook-signature"] == expected
        assert [mail.rcpt_tos for mail in box.mails] == [["a@example.com"]] * 2
        assert all(b"Subject: [ops] onegate:" in (mail.content or b"") for mail in box.mails)
        states = {one.state for one in await store.latest(pb.ALERT_STATE_UNSPECIFIED, 10)}
        assert states == {pb.ALERT_STATE_SENT}


@pytest.mark.anyio
async def test_what_a_killed_sender_left_is_sent_by_another(dsn: str) -> None:
    async with books_on(dsn) as books, receiver() as web:
        store = await outbox_on(books)
        await crossed(books)
        assert await store.gather(webhook=True, mail=False) == 2
        assert await store.gather(webhook=True, mail=False) == 0
        # It claimed one, perhaps sent it, and died.
        (lost,) = await store.claim()
        assert lost.target == WEBHOOK
        other = sender(store, books, hook(web.port))
        await other.round()
        assert len(web.got) == 1
        books.clock.passed_s += CLAIM_US / 1e6 + 1
        await other.round()
        assert {headers["webhook-id"] for headers, _ in web.got} >= {lost.id}
        assert len(web.got) == 2


@pytest.mark.anyio
async def test_a_refused_message_is_sent_again_and_at_last_given_up(tmp_path: Path) -> None:
    async with books_on(f"sqlite://{tmp_path}/books.db") as books, receiver() as web:
        store = await outbox_on(books)
        await store.put_trial("one", [WEBHOOK])
        web.answers = ["500 Oh", "302 Found"]
        one = sender(store, books, hook(web.port))
        await one.round()
        (kept,) = await store.latest(pb.ALERT_STATE_PENDING, 10)
        assert (kept.attempts, kept.error) == (1, "the receiver answered 500")
        for _ in range(2):
            books.clock.passed_s += 30
            await one.round()
        (kept,) = await store.latest(pb.ALERT_STATE_SENT, 10)
        assert (kept.attempts, kept.error) == (3, "")
        assert len({headers["webhook-id"] for headers, _ in web.got}) == 1
        web.answers = ["500 Oh"] * 99
        await store.put_trial("two", [WEBHOOK])
        for _ in range(messages.ATTEMPTS_MAX + 1):
            await one.round()
            books.clock.passed_s += 5 * 3600
        (dead,) = await store.latest(pb.ALERT_STATE_DEAD, 10)
        assert dead.attempts == messages.ATTEMPTS_MAX


@pytest.mark.anyio
async def test_nothing_is_sent_to_an_address_that_is_not_allowed(tmp_path: Path) -> None:
    async with books_on(f"sqlite://{tmp_path}/books.db") as books, receiver() as web:
        store = await outbox_on(books)
        await store.put_trial("one", [WEBHOOK])
        url = f"http://localhost:{web.port}/"
        await sender(store, books, hook(0, webhook_url=url, webhook_private=False)).round()
        (kept,) = await store.latest(pb.ALERT_STATE_PENDING, 10)
        assert "alerts.webhook_private" in kept.error
        assert web.got == []


def certificate(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """What a server on this machine shows, and the file by which it is trusted."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    shown, secret = directory / "cert.pem", directory / "key.pem"
    shown.write_bytes(made.public_bytes(pem))
    secret.write_bytes(key.private_bytes(pem, *plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown, secret)
    return context, shown


@pytest.mark.anyio
async def test_mail_is_encrypted_and_logs_in_and_a_refusal_is_tried_again(tmp_path: Path) -> None:
    def authenticate(*given: Any) -> AuthResult:
        return AuthResult(success=given[-1].password == b"right", handled=False)

    context, trusted = certificate(tmp_path)
    options = {"authenticator": authenticate, "auth_required": True, "tls_context": context}
    async with (
        books_on(f"sqlite://{tmp_path}/books.db") as books,
        mail_server(**options, require_starttls=True) as (box, port),
    ):
        store = await outbox_on(books)
        await store.put_trial("one", ["a@example.com"])
        settings = AlertSettings(
            smtp_host="localhost",
            smtp_port=port,
            smtp_username="u",
            smtp_ca_file=str(trusted),
            mail_from="o@example.com",
        )
        for settings_, password, fault in (
            (replace(settings, smtp_ca_file=""), "right", "CERTIFICATE_VERIFY_FAILED"),
            (settings, "wrong", "SMTPAuthenticationError"),
            (settings, "right", ""),
        ):
            await sender(store, books, mail=Mail(settings_, Secret(password))).round()
            (kept,) = await store.latest(pb.ALERT_STATE_UNSPECIFIED, 10)
            assert fault in kept.error
            books.clock.passed_s += 30
        (kept,) = await store.latest(pb.ALERT_STATE_SENT, 10)
        assert kept.attempts == 3
        assert len(box.mails) == 1


def test_a_webhook_without_a_secret_is_refused(tmp_path: Path) -> None:
    secrets = FileSecrets(SystemEntropy())
    with pytest.raises(ValueError, match="webhook_secret_file"):
        ways_of(AlertSettings(webhook_url="https://a.example"), secrets)
    with pytest.raises(ValueError, match="mail_from"):
        ways_of(AlertSettings(smtp_host="localhost"), secrets)
    file = tmp_path / "secret"
    file.write_text("short")
    file.chmod(0o600)
    named = AlertSettings(webhook_url="https://a.example", webhook_secret_file=str(file))
    with pytest.raises(ValueError, match="16 bytes"):
        ways_of(named, secrets)
    assert ways_of(AlertSettings(), secrets) == Ways(webhook=None, mail=None)
