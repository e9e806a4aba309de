"""Signature Version 4, against botocore's."""

import random
from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import quote

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from services.router.providers.aws_sigv4 import (
    AwsCredential,
    AwsSigner,
    credential_of,
    region_of,
)
from services.router.providers.base import UpstreamRequest

NOW = datetime(2026, 11, 21, 22, 3, 4, tzinfo=UTC)
LETTERS = "abcXYZ019-._~:/%é ø+=*'()!@$&,;"
REGIONS = ("us-east-1", "eu-central-2", "ap-southeast-4", "us-gov-west-1")


def word(rng: random.Random, longest: int) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randrange(longest)))


def random_case(rng: random.Random) -> tuple[AwsCredential, str, UpstreamRequest, datetime]:
    """A credential, an address, a request and a time."""
    region = rng.choice(REGIONS)
    base = rng.choice(
        (
            f"https://bedrock-runtime.{region}.amazonaws.com",
            f"https://bedrock-runtime-fips.{region}.amazonaws.com:8443/behind",
            f"http://127.0.0.1:{rng.randrange(1024, 60000)}",
        )
    )
    named = f"/model/{quote(word(rng, 30), safe='')}/converse"
    path = rng.choice(("", "/", "/a//b/./c/../", "/../x/.", named, named))
    query = "&".join(
        f"{quote(word(rng, 6), safe='')}={quote(word(rng, 9), safe='')}"
        for _ in range(rng.choice((0, 0, 1, 4)))
    )
    credential = AwsCredential(
        access_key_id=f"AKIA{rng.randrange(10**12)}",
        secret_access_key=word(rng, 40) or "k",
        session_token="".join(c for c in word(rng, 60) if c.isascii()).strip(),
        region=region,
    )
    request = UpstreamRequest(
        method=rng.choice(("GET", "POST")),
        path=path + (f"?{query}" if query else ""),
        headers=rng.choice(
            (
                [],
                [("content-type", "application/json")],
                [("Content-Type", "  a   b "), ("accept", "*/*")],
            )
        ),
        body=rng.randbytes(rng.randrange(200)),
    )
    at = NOW + timedelta(seconds=rng.randrange(10**8))
    return credential, base + request.path, request, at


def botocores(
    credential: AwsCredential, url: str, request: UpstreamRequest, now: datetime
) -> dict[str, str]:
    """The headers that botocore adds."""
    keys = Credentials(
        credential.access_key_id, credential.secret_access_key, credential.session_token or None
    )
    asked = AWSRequest(
        method=request.method, url=url, headers=dict(request.headers), data=request.body
    )
    signer = botocore.auth.SigV4Auth(keys, "bedrock", credential.region)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(botocore.auth, "get_current_datetime", lambda: now.replace(tzinfo=None))
        signer.add_auth(asked)
    before = {name.lower() for name, _ in request.headers}
    return {k.lower(): v for k, v in asked.headers.items() if k.lower() not in before}


def test_a_hundred_random_requests_are_signed_as_botocore_does() -> None:
    rng = random.Random(7)
    tokens = 0
    for _ in range(100):
        credential, url, request, at = random_case(rng)
        signer = AwsSigner(credential=credential, service="bedrock")
        assert dict(signer.sign(url, request, at)) == botocores(credential, url, request, at)
        tokens += bool(credential.session_token)
    assert 20 < tokens < 100


def test_the_time_is_told_in_utc() -> None:
    request = UpstreamRequest(method="POST", path="/", headers=[], body=b"")
    signer = AwsSigner(
        credential=AwsCredential(access_key_id="a", secret_access_key="b", region="r"),
        service="bedrock",
    )
    oslo = NOW.astimezone(timezone(timedelta(hours=1)))
    assert signer.sign("https://h/", request, oslo) == signer.sign("https://h/", request, NOW)


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("bedrock-runtime.us-east-1.amazonaws.com", "us-east-1"),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("bedrock.eu-west-3.amazonaws.com", "eu-west-3"),
        ("bedrock-runtime.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("vpce-1a.bedrock-runtime.eu-north-1.vpce.amazonaws.com", "eu-north-1"),
        ("127.0.0.1", ""),
        ("gateway.example", ""),
    ],
)
def test_an_address_of_amazons_names_its_region(host: str, region: str) -> None:
    assert region_of(host) == region


def test_the_region_comes_from_the_address_and_must_come_from_somewhere() -> None:
    request = UpstreamRequest(method="GET", path="/", headers=[], body=b"")
    nowhere = AwsCredential(access_key_id="AKIA", secret_access_key="s")
    signer = AwsSigner(credential=nowhere, service="bedrock")
    signed = dict(signer.sign("https://bedrock.eu-west-3.amazonaws.com/", request, NOW))
    assert "/20261121/eu-west-3/bedrock/aws4_request" in signed["authorization"]
    with pytest.raises(GatewayError, match="Region") as raised:
        signer.sign("https://gateway.example/", request, NOW)
    assert raised.value.reason == error_pb2.ERROR_REASON_UPSTREAM_AUTH


def test_a_credential_is_read_in_the_shape_that_aws_prints() -> None:
    printed = (
        '{"Version": 1, "AccessKeyId": "AKIA", "SecretAccessKey": "s", "SessionToken": "t",'
        ' "Expiration": "2026-01-01T00:00:00Z"}'
    )
    assert credential_of(printed) == AwsCredential(
        access_key_id="AKIA", secret_access_key="s", session_token="t"
    )
    beside = '{"AccessKeyId": "A", "SecretAccessKey": "s", "SessionToken": null, "Region": "r"}'
    assert credential_of(beside) == AwsCredential(
        access_key_id="A", secret_access_key="s", region="r"
    )
    assert credential_of("ABSKQmVkcm9jaw==") is None
    assert credential_of("") is None


@pytest.mark.parametrize(
    "secret", ["{", '{"AccessKeyId": "A"}', '{"AccessKeyId": "", "SecretAccessKey": "s"}']
)
def test_a_credential_that_lacks_a_key_is_refused_without_showing_it(secret: str) -> None:
    with pytest.raises(GatewayError, match="AccessKeyId") as raised:
        credential_of(secret)
    assert raised.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST


def test_a_credential_never_shows_its_secrets() -> None:
    shown = repr(AwsCredential(access_key_id="A", secret_access_key="sss", session_token="ttt"))
    assert "sss" not in shown
    assert "ttt" not in shown
