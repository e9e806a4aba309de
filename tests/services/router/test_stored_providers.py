"""Providers that auth keeps under seal: a router calls them, and what becomes of them, without a
restart.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import Connection, text

from onegate.auth.v1 import data_policy_pb2, provider_service_pb2_grpc
from onegate.auth.v1 import provider_service_pb2 as pb
from onegate.router.v1 import provider_check_service_pb2, provider_check_service_pb2_grpc
from runtime.clock import SystemClock, SystemEntropy
from runtime.config import ProviderSettings, SealingSettings
from runtime.errors import GatewayError, reason_name
from runtime.rpc import OPERATOR_KEY, RpcServer, channel, unary
from runtime.sealing import Keyring
from runtime.secrets import Secret
from runtime.sql import open_database
from services.auth.administration import Administration
from services.auth.bootstrap import ensure_organization
from services.auth.desks.providers import ProviderService
from services.auth.identity import Identity, open_identity
from services.auth.objects import AuditRecord
from services.auth.records import Slice
from services.auth.watch import Feed
from services.auth.watchers import Watchers
from tests.fake_provider import FakeProvider, Reply
from tests.services.auth.ports import DSN_FILE, auth_settings, stored_bytes
from tests.services.router.rig import (
    PRICED,
    TEXT,
    Rig,
    hello,
    provider,
    running,
    settings_in,
    until,
)
from tests.services.router.test_credentials import credential, refusing, used

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def database(dsn: str, tmp_path: Path) -> None:
    """Every test here on each kind of database."""
    if not dsn.startswith("sqlite"):
        (tmp_path / DSN_FILE).write_text(dsn)


TOKEN = "operator-token-of-the-tests-0123456789"


class Vault:
    """A router, auth's providers beside it, and the operator."""

    def __init__(self, rig: Rig, identity: Identity, line: grpc.aio.Channel, router: Any) -> None:
        self.rig = rig
        self.identity = identity
        self.stub = provider_service_pb2_grpc.ProviderServiceStub(line)
        self._router = provider_check_service_pb2_grpc.ProviderCheckServiceStub(router)

    async def ask(self, method: str, request: Any, token: str = TOKEN) -> Any:
        return await unary(
            getattr(self.stub, method), request, timeout_s=10, metadata=((OPERATOR_KEY, token),)
        )

    async def add(self, name: str, fake: FakeProvider, **fields: Any) -> Any:
        new = {"name": "main", "secret": "key-of-main", **fields}
        request = pb.AddProviderRequest(
            name=name, kind="openai", base_url=fake.base_url, credential=pb.NewCredential(**new)
        )
        return await self.ask("AddProvider", request)

    async def check(self, name: str) -> list[provider_check_service_pb2.CredentialCheck]:
        request = provider_check_service_pb2.CheckProviderRequest(name=name)
        answer = await unary(
            self._router.CheckProvider, request, timeout_s=20, metadata=((OPERATOR_KEY, TOKEN),)
        )
        return list(answer.checks)

    async def says(self, model: str, reason: str) -> None:
        """Calls until the answer is this."""
        async with asyncio.timeout(15):
            while (await self.rig.chat(hello(model))).reason != reason:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@asynccontextmanager
async def vault(directory: Path, *providers: ProviderSettings) -> AsyncIterator[Vault]:
    entropy = SystemEntropy()
    token = directory / "operator.token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    settings = settings_in(directory, *providers)
    settings = replace(
        settings,
        rpc=replace(settings.rpc, operator_token_file=str(token)),
        sealing=SealingSettings(
            key_file=str(directory / "kek"), former_key_file=str(directory / "former")
        ),
    )
    identity = await open_identity(auth_settings(directory), SystemClock(), entropy)
    await ensure_organization(identity)
    administration = Administration(
        identity,
        Secret(TOKEN),
        Feed(identity.store, SystemClock()),
        Watchers(identity.store, SystemClock()),
    )
    service = ProviderService(administration, Keyring(settings.sealing, {}, entropy))

    def more(server: RpcServer) -> None:
        server.add(provider_service_pb2_grpc.add_ProviderServiceServicer_to_server, service)

    try:
        async with running(settings, PRICED, more=more) as rig:
            line = channel(settings.router.auth, settings.rpc)
            router = channel(settings.router.listen, settings.rpc)
            async with line, router:
                yield Vault(rig, identity, line, router)
    finally:
        await identity.store.close()


async def test_a_provider_comes_moves_and_goes_without_a_restart(tmp_path: Path) -> None:
    one, two = FakeProvider(models=("m",)), FakeProvider(models=("m",))
    async with one, two:  # noqa: SIM117
        async with vault(tmp_path) as at:
            await at.says("b/m", "model_not_found")
            await at.add("b", one)
            await at.says("b/m", "")
            assert used(one.chats) == {"main": 1}
            # The demo was there for want of another.
            await at.says("demo/echo", "model_not_found")
            # Discovery asked it at once.
            await one.until(lambda: any(taken.method == "GET" for taken in one.taken))
            with pytest.raises(GatewayError, match="every credential's secret, given anew"):
                await at.ask(
                    "MoveProvider", pb.MoveProviderRequest(name="b", base_url=two.base_url)
                )
            move = pb.MoveProviderRequest(
                name="b", base_url=two.base_url, secrets={"main": "key-of-other"}
            )
            await at.ask("MoveProvider", move)
            async with asyncio.timeout(15):
                while not two.chats:
                    assert (await at.rig.chat(hello("b/m"))).text == TEXT
            assert set(used(two.chats)) == {"other"}
            assert set(used(one.chats)) == {"main"}
            await at.ask("RemoveProvider", pb.RemoveProviderRequest(name="b"))
            await at.says("b/m", "model_not_found")
            await at.says("demo/echo", "")


async def test_a_rotated_secret_ends_the_quarantine(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        fake.choose = refusing("main")
        async with vault(tmp_path) as at:
            await at.add("b", fake)
            await at.says("b/m", "upstream_auth")
            rotate = pb.RotateCredentialRequest(provider="b", secret="key-of-new")
            await at.ask("RotateCredential", rotate)
            await at.says("b/m", "")
            assert used(fake.chats) == {"main": 1, "new": 1}


async def test_credentials_join_a_provider_of_the_file_at_the_same_address_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeProvider() as fake, FakeProvider() as other:
        fake.choose = refusing("file")
        of_file = provider("b", fake, api_key_file=credential("file", tmp_path).api_key_file)
        away = provider("c", fake, api_key_file=of_file.api_key_file)
        with caplog.at_level(logging.ERROR):
            async with vault(tmp_path, of_file, away) as at:
                await at.add("b", fake)
                await at.add("c", other)
                await at.says("b/m", "")
                await until(lambda: "another kind or address" in caplog.text)
                await at.says("c/m", "upstream_auth")
        assert other.chats == []


async def test_nothing_that_is_kept_or_told_holds_the_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "sk-canary-7c1f"
    async with FakeProvider() as fake:
        with caplog.at_level(logging.DEBUG):
            async with vault(tmp_path) as at:
                made = await at.add("b", fake, secret=canary)
                await at.says("b/m", "")
                assert fake.chats[0].headers["authorization"] == f"Bearer {canary}"
                listed = await at.ask("ListProviders", pb.ListProvidersRequest())
                watching = at.stub.WatchProviders(
                    pb.WatchProvidersRequest(), metadata=((OPERATOR_KEY, TOKEN),)
                )
                told = await watching.read()
                watching.cancel()
                entries = await at.identity.store.view(
                    lambda s: s.select(AuditRecord, {}, Slice(size=10, ascending=True))
                )
        shown = f"{made}{listed}{told}{entries}{caplog.text}"
        assert canary not in shown
        assert canary.encode() not in stored_bytes(tmp_path)
        assert [one.sealed for one in listed.providers[0].credentials] == [""]
        assert {e.type for e in entries} == {"provider.created", "provider.credential.created"}


async def test_who_writes_the_database_cannot_send_a_secret_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeProvider() as fake, FakeProvider() as thief:
        async with vault(tmp_path) as at:
            await at.add("b", fake)
            await at.says("b/m", "")
            database = open_database(auth_settings(tmp_path).dsn)

            def redirect(connection: Connection) -> None:
                connection.execute(
                    text("UPDATE providers SET base_url = :url"), {"url": thief.base_url}
                )

            await database.write(redirect)
            await database.close()
            await until(lambda: "does not belong to the address" in caplog.text)
            await at.says("b/m", "")
        assert thief.taken == []


async def test_secrets_move_to_another_key_while_calls_go_on(tmp_path: Path) -> None:
    async with FakeProvider() as fake:
        async with vault(tmp_path) as at:
            before = await at.add("b", fake)
            await at.says("b/m", "")
            (tmp_path / "kek").rename(tmp_path / "former")
            moved = await at.ask("RekeyCredentials", pb.RekeyCredentialsRequest())
            assert (moved.moved, moved.total) == (1, 1)
            assert moved.key_id != before.provider.credentials[0].key_id
            (tmp_path / "former").unlink()
            again = await at.ask("RekeyCredentials", pb.RekeyCredentialsRequest())
            assert (again.moved, again.total) == (0, 1)
            await at.says("b/m", "")
        # A router that starts now opens it with the new key alone.
        async with vault(tmp_path) as at:
            await at.says("b/m", "")
            assert used(fake.chats)["main"] == len(fake.chats)
            # Without any key nothing opens, and nothing is made up.
            (tmp_path / "kek").unlink()
            with pytest.raises(GatewayError, match="is not here"):
                await at.ask("RekeyCredentials", pb.RekeyCredentialsRequest())


async def test_a_credential_is_tried_and_told_in_words(tmp_path: Path) -> None:
    async with FakeProvider(models=("m", "n")) as fake, vault(tmp_path) as at:
        await at.add("b", fake)
        await at.ask(
            "AddCredential",
            pb.AddCredentialRequest(
                provider="b", credential=pb.NewCredential(name="spare", secret="key-of-spare")
            ),
        )
        checks = await at.check("b")
        async with asyncio.timeout(15):
            while len(checks) < 2:
                checks = await at.check("b")
        assert [(c.credential, c.ok, c.models) for c in checks] == [
            ("main", True, 2),
            ("spare", True, 2),
        ]
        fake.list_status = 401
        for check in await at.check("b"):
            assert not check.ok
            assert check.detail.startswith("it refuses the credential (HTTP 401): rotate it")
        with pytest.raises(GatewayError, match="no provider 'x': it has"):
            await at.check("x")


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"name": "B"}, "invalid_request", "name"),
    ({"kind": "demo"}, "invalid_request", "kind"),
    ({"kind": "compatible"}, "invalid_request", "base_url"),
    ({"kind": "bedrock"}, "invalid_request", "base_url"),
    ({"base_url": "http://user@host/"}, "invalid_request", "base_url"),
    ({"credential": {"secret": ""}}, "invalid_request", "secret"),
    ({"credential": {"secret": "a\nb"}}, "invalid_request", "secret"),
    ({"credential": {"name": "X"}}, "invalid_request", "credential.name"),
    ({"credential": {"weight": 1001}}, "invalid_request", "credential.weight"),
    ({"regions": ["Europe!"]}, "invalid_request", "regions"),
    ({"retention_days": -1}, "invalid_request", "retention_days"),
    ({"retention_days": 36_501}, "invalid_request", "retention_days"),
    ({"models": ["a b"]}, "invalid_request", "models"),
    ({"name": "there"}, "conflict", "There is a provider 'there'"),
]


async def test_what_no_router_could_call_is_refused(tmp_path: Path) -> None:
    async with FakeProvider() as fake, vault(tmp_path) as at:
        await at.add("there", fake)
        for fields, reason, message in REFUSED:
            asked = {"name": "new", "kind": "openai", **fields}
            given = {"name": "main", "secret": "s", **asked.pop("credential", {})}
            request = pb.AddProviderRequest(**asked, credential=pb.NewCredential(**given))
            with pytest.raises(GatewayError, match=re.escape(message)) as refused:
                await at.ask("AddProvider", request)
            assert reason_name(refused.value.reason) == reason


async def test_a_project_and_an_organisation_bring_keys_of_their_own(tmp_path: Path) -> None:
    async with FakeProvider() as fake, vault(tmp_path) as at:
        mine = at.rig.add_key(project_id="proj_7")
        theirs = at.rig.add_key(organization_id="org_7")
        await at.add("b", fake, projects=["proj_7"])
        async with asyncio.timeout(15):
            while (await at.rig.chat(hello("b/m"), key=mine)).error is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        # Nobody else may spend what is the project's.
        assert (await at.rig.chat(hello("b/m"))).reason == "model_forbidden"
        new = pb.NewCredential(name="org", secret="key-of-org", organizations=["org_7"])
        await at.ask("AddCredential", pb.AddCredentialRequest(provider="b", credential=new))
        async with asyncio.timeout(15):
            while (await at.rig.chat(hello("b/m"), key=theirs)).error is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await at.rig.chat(hello("b/m"), key=mine)).error is None
        assert used(fake.chats) == {"main": 2, "org": 1}
        assert (await at.rig.chat(hello("b/m"))).reason == "model_forbidden"


async def test_what_is_known_of_its_data_counts_for_data_policies(tmp_path: Path) -> None:
    demands = data_policy_pb2.DataDemands(regions=["eu"], retention_days_max=0, no_training=True)
    async with FakeProvider() as fake, vault(tmp_path) as at:
        rule = data_policy_pb2.DataRule(level=data_policy_pb2.DATA_LEVEL_KEY, demands=demands)
        policy = data_policy_pb2.DataPolicy(version="dp-1", rules=[rule])
        key = at.rig.add_key(data_policy=policy)
        await at.add("b", fake)
        await at.says("b/m", "")
        assert (await at.rig.chat(hello("b/m"), key=key)).reason == "data_policy"

        async def learns(reason: str, **fields: Any) -> pb.StoredProvider:
            mask = FieldMask(paths=["regions", "retention_days", "trains"])
            request = pb.UpdateProviderRequest(name="b", update_mask=mask, **fields)
            provider: pb.StoredProvider = (await at.ask("UpdateProvider", request)).provider
            async with asyncio.timeout(15):
                while (await at.rig.chat(hello("b/m"), key=key)).reason != reason:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            return provider

        told = await learns("", regions=["eu"], retention_days=0, trains=False)
        assert (list(told.regions), told.retention_days, told.trains) == (["eu"], 0, False)
        told = await learns("data_policy", regions=["eu", "us"], retention_days=0, trains=False)
        told = await learns("data_policy")
        assert not told.HasField("retention_days")
        assert not told.HasField("trains")
        for paths in ([], ["name"], ["base_url", "free"]):
            request = pb.UpdateProviderRequest(name="b", update_mask=FieldMask(paths=paths))
            with pytest.raises(GatewayError, match="must name some of free, models"):
                await at.ask("UpdateProvider", request)


async def test_a_stored_provider_s_models_are_changed_without_its_secret(tmp_path: Path) -> None:
    async with FakeProvider(models=("m", "n")) as fake, vault(tmp_path) as at:
        made = await at.add("b", fake)
        await at.says("b/m", "")
        request = pb.UpdateProviderRequest(
            name="b", models=["n"], free=True, update_mask=FieldMask(paths=["models", "free"])
        )
        changed = (await at.ask("UpdateProvider", request)).provider
        assert (list(changed.models), changed.free) == (["n"], True)
        assert changed.credentials[0].rotated_at == made.provider.credentials[0].rotated_at
        await at.says("b/m", "model_not_found")
        await at.says("b/n", "")


async def test_only_the_operator_reaches_providers(tmp_path: Path) -> None:
    async with FakeProvider() as fake, vault(tmp_path) as at:
        await at.add("b", fake)
        requests = {
            "AddProvider": pb.AddProviderRequest(name="x"),
            "ListProviders": pb.ListProvidersRequest(),
            "MoveProvider": pb.MoveProviderRequest(name="b"),
            "UpdateProvider": pb.UpdateProviderRequest(name="b"),
            "RemoveProvider": pb.RemoveProviderRequest(name="b"),
            "AddCredential": pb.AddCredentialRequest(provider="b"),
            "RotateCredential": pb.RotateCredentialRequest(provider="b", secret="s"),
            "RemoveCredential": pb.RemoveCredentialRequest(provider="b", credential="main"),
            "RekeyCredentials": pb.RekeyCredentialsRequest(),
        }
        for method, request in requests.items():
            with pytest.raises(GatewayError):
                await at.ask(method, request, token="wrong")
        watching = at.stub.WatchProviders(pb.WatchProvidersRequest())
        with pytest.raises(grpc.aio.AioRpcError):
            await watching.read()
        fake.script(Reply())
        await at.says("b/m", "")
