"""The first start."""

import asyncio
from pathlib import Path

import pytest

from onegate.auth.v1 import grant_pb2
from runtime import apikeys
from runtime.config import Settings
from services.auth.bootstrap import bootstrap, ensure_organization
from services.auth.keys import grant
from services.auth.records import KeyFilter, Page
from tests.services.auth.ports import ENTROPY, SteppedClock, auth_settings, opened

pytestmark = pytest.mark.anyio


async def test_the_first_start_makes_a_working_key_of_each_kind(tmp_path: Path) -> None:
    settings = Settings(auth=auth_settings(tmp_path))
    first = await bootstrap(settings, SteppedClock(), ENTROPY)
    assert first is not None
    assert apikeys.kind_of(first.admin_key) == grant_pb2.KEY_KIND_ADMIN
    assert apikeys.kind_of(first.api_key) == grant_pb2.KEY_KIND_PROJECT
    async with opened(tmp_path) as identity:
        for key, project_id in ((first.admin_key, ""), (first.api_key, first.project_id)):
            lineage = await identity.store.find_lineage(identity.mac(apikeys.digest(key)))
            assert lineage is not None
            granted = grant(lineage, identity.data_classes)
            assert granted.organization_id == first.organization_id
            assert granted.project_id == project_id
            assert granted.kind == apikeys.kind_of(key)


async def test_the_second_start_makes_nothing(tmp_path: Path) -> None:
    settings = Settings(auth=auth_settings(tmp_path))
    assert await bootstrap(settings, SteppedClock(), ENTROPY) is not None
    assert await bootstrap(settings, SteppedClock(), ENTROPY) is None


async def test_of_processes_that_start_at_once_one_makes_the_keys(tmp_path: Path) -> None:
    settings = Settings(auth=auth_settings(tmp_path))
    attempts = (bootstrap(settings, SteppedClock(), ENTROPY) for _ in range(8))
    made = [first for first in await asyncio.gather(*attempts) if first is not None]
    assert len(made) == 1
    async with opened(tmp_path) as identity:
        keys = await identity.store.list_keys(KeyFilter(organization_id=None), Page(size=9))
        assert len(keys.rows) == 2
        digest = apikeys.digest(made[0].api_key)
        assert await identity.store.find_lineage(identity.mac(digest)) is not None


async def test_the_secrets_of_the_first_start_do_not_print(tmp_path: Path) -> None:
    first = await bootstrap(Settings(auth=auth_settings(tmp_path)), SteppedClock(), ENTROPY)
    assert first is not None
    assert first.api_key not in f"{first} {first!r}"
    assert first.admin_key not in f"{first} {first!r}"


async def test_a_service_that_nobody_set_up_gets_an_organisation_and_no_keys(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as identity:
        for _ in range(2):
            await ensure_organization(identity)
        assert len((await identity.store.list_projects(None, Page(size=9))).rows) == 1
        keys = await identity.store.list_keys(KeyFilter(organization_id=None), Page(size=9))
        assert keys.rows == []
