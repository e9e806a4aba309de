"""Sends what lies in the outbox: a signed webhook, or mail. At least once, by any replica."""

import asyncio
import logging
import smtplib
import socket
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Final, Protocol
from urllib.parse import urlsplit

import msgspec

from onegate.usage.v1 import alert_service_pb2 as pb
from runtime.clock import Clock, Entropy
from runtime.config import AlertSettings
from runtime.errors import GatewayError
from runtime.later import Later
from runtime.secrets import Secret, Secrets
from services.usage.alerts import messages
from services.usage.alerts.alert_rows import WEBHOOK
from services.usage.alerts.alert_store import AlertStore, Letter

ROUND_S: Final = 2.0
"""How often is looked for what is due, in seconds."""

_ANSWER_CHARS_MAX: Final = 200
_HTTP: Final = Later("httpx2")
_LOG = logging.getLogger(__name__)


class SendError(Exception):
    """A message was not taken. Its text says why, without a secret."""


class Post(Protocol):
    """One way to send."""

    async def send(self, letter: Letter, at_s: int) -> None:
        """Returns when the message was taken. Raises ``SendError``."""
        ...


class Webhook:
    """Posts signed JSON to one URL; follows no redirect and uses no proxy."""

    def __init__(self, settings: AlertSettings, key: bytes) -> None:
        self._settings = settings
        self._key = key

    async def send(self, letter: Letter, at_s: int) -> None:
        """See :class:`Post`."""
        parts = urlsplit(self._settings.webhook_url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = await self._address(host, port)
        named = f"[{address}]" if ":" in address else address
        # To the address that was looked at: a name might lead elsewhere when it is asked again.
        url = parts._replace(netloc=f"{named}:{port}").geturl()
        headers = {
            "host": parts.netloc,
            "content-type": "application/json",
            "user-agent": "onegate",
            "webhook-id": letter.id,
            "webhook-timestamp": str(at_s),
            "webhook-signature": messages.signature(self._key, letter.id, at_s, letter.payload),
        }
        try:
            async with (
                asyncio.timeout(self._settings.timeout_s),
                _HTTP.AsyncClient(trust_env=False, follow_redirects=False) as client,
                client.stream(
                    "POST",
                    url,
                    content=letter.payload,
                    headers=headers,
                    extensions={"sni_hostname": host},
                ) as answer,
            ):
                status = answer.status_code
        except (_HTTP.HTTPError, OSError, TimeoutError) as error:
            raise SendError(f"{type(error).__name__}: {error}") from error
        if not 200 <= status < 300:
            raise SendError(f"the receiver answered {status}")

    async def _address(self, host: str, port: int) -> str:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError) as error:
            raise SendError(f"the name {host} leads nowhere: {error}") from error
        addresses = [str(one[4][0]) for one in found]
        for address in addresses:
            fault = messages.fault_of_address(
                address, private_allowed=self._settings.webhook_private
            )
            if fault:
                raise SendError(fault)
        return addresses[0]


class Mail:
    """Sends by SMTP, on a thread of its own."""

    def __init__(self, settings: AlertSettings, password: Secret | None) -> None:
        self._settings = settings
        self._password = password

    async def send(self, letter: Letter, at_s: int) -> None:
        """See :class:`Post`."""
        del at_s
        message = self._message(letter)
        try:
            await asyncio.to_thread(self._deliver, message)
        except (smtplib.SMTPException, OSError) as error:
            raise SendError(f"{type(error).__name__}: {error}") from error

    def _message(self, letter: Letter) -> EmailMessage:
        subject, text = messages.mail_of(msgspec.json.decode(letter.payload))
        prefix = " ".join(letter.prefix.split())
        message = EmailMessage()
        message["Subject"] = f"{prefix} {subject}".strip()
        message["From"] = self._settings.mail_from
        message["To"] = letter.target
        # The same for every attempt, so that a mail that came twice can be told.
        message["Message-ID"] = f"<{letter.id}@onegate.invalid>"
        message.set_content(text)
        return message

    def _deliver(self, message: EmailMessage) -> None:
        settings, context = self._settings, ssl.create_default_context()
        if settings.smtp_ca_file:
            context.load_verify_locations(settings.smtp_ca_file)
        place = (settings.smtp_host, settings.smtp_port)
        line: smtplib.SMTP
        if settings.smtp_security == "tls":
            line = smtplib.SMTP_SSL(*place, timeout=settings.timeout_s, context=context)
        else:
            line = smtplib.SMTP(*place, timeout=settings.timeout_s)
        with line:
            if settings.smtp_security == "starttls":
                line.starttls(context=context)
            if settings.smtp_username and self._password is not None:
                line.login(settings.smtp_username, self._password.reveal())
            line.send_message(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """The ways that are configured."""

    webhook: Post | None
    mail: Post | None


def ways_of(settings: AlertSettings, secrets: Secrets) -> Ways:
    """The ways that the settings name.

    Raises ``SecretError`` for a file that cannot be used, ``ValueError`` for a webhook without a
    secret of its own.
    """
    webhook: Post | None = None
    if settings.webhook_url:
        if not settings.webhook_secret_file:
            raise ValueError("alerts.webhook_url needs messages.webhook_secret_file.")
        key = messages.secret_of(secrets.read(settings.webhook_secret_file).reveal())
        webhook = Webhook(settings, key)
    mail: Post | None = None
    if settings.smtp_host:
        if not settings.mail_from:
            raise ValueError("alerts.smtp_host needs messages.mail_from.")
        named = settings.smtp_password_file
        mail = Mail(settings, secrets.read(named) if named else None)
    return Ways(webhook=webhook, mail=mail)


class AlertSender:
    """Runs beside the services of one usage process; does nothing when no way is configured."""

    def __init__(self, store: AlertStore, ways: Ways, clock: Clock, entropy: Entropy) -> None:
        self._store = store
        self._ways = ways
        self._clock = clock
        self._entropy = entropy

    async def run(self) -> None:
        """Until it is cancelled; while the store is away, everything waits."""
        if self._ways.webhook is None and self._ways.mail is None:
            return
        while True:
            await self._clock.sleep(ROUND_S)
            try:
                await self.round()
            except GatewayError as error:
                _LOG.warning("alerts wait: %s", error.message)

    async def round(self) -> None:
        """Decides what is due and sends it. Raises STORE_UNAVAILABLE."""
        ways = self._ways
        while await self._store.gather(
            webhook=ways.webhook is not None, mail=ways.mail is not None
        ):
            pass
        while letters := await self._store.claim():
            for letter in letters:
                await self._send(letter)

    async def _send(self, letter: Letter) -> None:
        post = self._ways.webhook if letter.target == WEBHOOK else self._ways.mail
        if post is None:
            await self._failed(letter, "this way is not configured any more")
            return
        try:
            await post.send(letter, int(self._clock.now().timestamp()))
        except SendError as error:
            await self._failed(letter, str(error)[:_ANSWER_CHARS_MAX])
        else:
            await self._store.done(letter, pb.ALERT_STATE_SENT, "", 0)

    async def _failed(self, letter: Letter, why: str) -> None:
        if letter.attempts >= messages.ATTEMPTS_MAX:
            _LOG.error("alert %s to %s is given up: %s", letter.id, letter.target, why)
            await self._store.done(letter, pb.ALERT_STATE_DEAD, why, 0)
            return
        _LOG.warning("alert %s to %s will be sent again: %s", letter.id, letter.target, why)
        wait_s = messages.backoff_s(letter.attempts, self._entropy.bytes(1)[0] / 255)
        await self._store.done(letter, pb.ALERT_STATE_PENDING, why, int(wait_s * 1_000_000))
