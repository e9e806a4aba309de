"""AWS Signature Version 4: who makes a request, and that nobody changed it on the way.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html. Pure:
the time is a parameter. The path is encoded once more than it is sent, as every service but S3
asks; the whole body is part of the signature.
"""

import hashlib
import hmac
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, urlsplit

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from services.router.providers.base import Headers, UpstreamRequest

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_UNRESERVED: Final = "/-_.~"
_HOST_REGION: Final = re.compile(r"(?:^|\.)bedrock(?:-runtime)?(?:-fips)?\.([a-z]{2}[a-z0-9-]+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsCredential:
    """What AWS knows an account's user or role by. ``session_token`` is empty for keys that last,
    ``region`` where the address says it.
    """

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    region: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsSigner:
    """Signs every request to one service."""

    credential: AwsCredential
    service: str

    def sign(self, url: str, request: UpstreamRequest, now: datetime) -> Headers:
        """The headers that carry the signature.

        Raises UPSTREAM_AUTH when nothing says in which region the service is.
        """
        parts = urlsplit(url)
        region = self.credential.region or region_of(parts.hostname or "")
        if not region:
            raise GatewayError(
                error_pb2.ERROR_REASON_UPSTREAM_AUTH,
                "Nothing says which AWS region signs for this address. The operator must put "
                '"Region" into the credential, or use the address that AWS gives the service.',
            )
        at = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        added = [("x-amz-date", at)]
        if self.credential.session_token:
            added.append(("x-amz-security-token", self.credential.session_token))
        told = [*request.headers, *added, ("host", parts.netloc)]
        signed = {name.lower(): " ".join(value.split()) for name, value in told}
        names = ";".join(sorted(signed))
        canonical = "\n".join(
            (
                request.method,
                _path(parts.path),
                _query(parts.query),
                *(f"{name}:{signed[name]}" for name in sorted(signed)),
                "",
                names,
                hashlib.sha256(request.body).hexdigest(),
            )
        )
        scope = f"{at[:8]}/{region}/{self.service}/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        signature = hmac.digest(
            self._key(scope), f"{_ALGORITHM}\n{at}\n{scope}\n{digest}".encode(), "sha256"
        )
        authorization = (
            f"{_ALGORITHM} Credential={self.credential.access_key_id}/{scope}, "
            f"SignedHeaders={names}, Signature={signature.hex()}"
        )
        return [*added, ("authorization", authorization)]

    def _key(self, scope: str) -> bytes:
        """The key of a day, region and service."""
        key = f"AWS4{self.credential.secret_access_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        return key


def credential_of(secret: str) -> AwsCredential | None:
    """The credential that a secret holds, in the shape that ``aws configure export-credentials``
    prints (https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html), with
    ``Region`` beside it where wanted; ``None`` for a secret of another kind.

    Raises INVALID_REQUEST for JSON that lacks what a signature needs.
    """
    if not secret.startswith("{"):
        return None
    try:
        told = json.loads(secret)
    except ValueError:
        told = {}
    match told:
        case {"AccessKeyId": str(key_id), "SecretAccessKey": str(key)} if key_id and key:
            return AwsCredential(
                access_key_id=key_id,
                secret_access_key=key,
                session_token=str(told.get("SessionToken") or ""),
                region=str(told.get("Region") or ""),
            )
        case _:
            raise GatewayError(
                error_pb2.ERROR_REASON_INVALID_REQUEST,
                'The AWS credential is JSON without "AccessKeyId" and "SecretAccessKey"; write '
                "what `aws configure export-credentials` prints, on one line.",
            )


def region_of(host: str) -> str:
    """The region that a service's own address names; empty for any other address."""
    found = _HOST_REGION.search(host)
    return found[1] if found else ""


def _path(path: str) -> str:
    """The path without redundant parts, encoded once more than it is sent."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    end = "/" if kept and path.endswith("/") else ""
    return quote(f"/{'/'.join(kept)}{end}", safe=_UNRESERVED)


def _query(query: str) -> str:
    """The query sorted by name, then by value; its parts are encoded as they are sent."""
    pairs = [part.partition("=")[::2] for part in query.split("&") if part]
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))
