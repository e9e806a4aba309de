"""The store suite: what any storage of identity has to do, on real databases of each kind."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from onegate.auth.v1 import grant_pb2
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError
from runtime.secrets import SecretError
from runtime.sql import open_database
from services.auth.identity import Identity, open_identity
from services.auth.policy import Policy, RateLimit
from services.auth.records import (
    Founding,
    KeyFilter,
    KeyRecord,
    NewKey,
    Page,
    ProjectDraft,
    ProjectRecord,
)
from services.auth.store import MIGRATIONS, SqlStore
from tests.services.auth.ports import (
    DSN_FILE,
    ENTROPY,
    NOON,
    SteppedClock,
    asked,
    auth_settings,
    opened,
    run_statements,
    stored_bytes,
)

pytestmark = pytest.mark.anyio

ALL = KeyFilter(organization_id=None, include_revoked=True)
POLICY = Policy(
    models_allowed=("openai/*", "demo/echo"),
    models_denied=("*/gpt-4",),
    rate_limits=(
        RateLimit(
            meter=grant_pb2.RATE_METER_TOKENS,
            amount=10**12,
            window_s=60,
            scope=grant_pb2.RATE_SCOPE_KEY,
            model="openai/*",
        ),
    ),
    tags={"team": "Zürich"},
)


async def founded(identity: Identity, name: str = "default") -> tuple[str, str]:
    """An organisation and its first project."""
    organization_id, project_id = identity.new_id("org"), identity.new_id("proj")
    founding = Founding(
        organization_id=organization_id, project_id=project_id, name=name, keys=(), now=NOON
    )
    assert await identity.store.found(founding)
    return organization_id, project_id


@pytest.fixture(autouse=True)
def kept_in(dsn: str, tmp_path: Path) -> None:
    """Every test runs on every database."""
    (tmp_path / DSN_FILE).write_text(dsn)


async def second_organization(directory: Path) -> tuple[str, str]:
    """Another organisation with a project, as a later release may make them."""
    await run_statements(
        directory,
        "INSERT INTO organizations (id, name, policy, version, created_revision, created_at_us)"
        " VALUES ('org_2', 'other', '{}', 1000, 1000, 0)",
        "INSERT INTO projects (id, organization_id, name, policy, version, created_revision,"
        " created_at_us) VALUES ('proj_2', 'org_2', 'other', '{}', 1001, 1001, 0)",
        "UPDATE revisions SET newest = 1001",
    )
    return "org_2", "proj_2"


async def kept(identity: Identity, wanted: NewKey, organization_id: str | None = None) -> KeyRecord:
    _, draft = identity.mint(wanted, organization_id)
    key, made = await identity.store.add_key(draft)
    assert made
    return key


async def test_a_kept_key_is_read_back_as_it_was_asked_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        organization_id, project_id = await founded(identity)
        _, draft = identity.mint(replace(asked("ci", policy=POLICY), expires_in_s=60), None)
        key, made = await identity.store.add_key(draft)
        assert made
        assert key == await identity.store.find_key(None, draft.id)
        assert key.policy == POLICY
        assert (key.organization_id, key.project_id) == (organization_id, project_id)
        assert (key.created_at, key.expires_at) == (NOON, NOON + timedelta(seconds=60))
        assert key.revoked_at is None
        assert key.redacted_value == draft.redacted_value


async def test_a_key_is_found_by_its_mac_with_all_that_it_inherits_from(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        organization_id, project_id = await founded(identity)
        _, draft = identity.mint(asked(), None)
        await identity.store.add_key(draft)
        found = await identity.store.find_lineage(draft.mac)
        assert found is not None
        assert found.project is not None
        assert (found.organization.id, found.project.id) == (organization_id, project_id)
        assert found.key.id == draft.id
        assert await identity.store.find_lineage(bytes(32)) is None


async def test_an_admin_key_belongs_to_the_organisation_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        organization_id, _ = await founded(identity)
        _, draft = identity.mint(asked(kind=grant_pb2.KEY_KIND_ADMIN), None)
        key, _ = await identity.store.add_key(draft)
        assert (key.organization_id, key.project_id) == (organization_id, None)
        found = await identity.store.find_lineage(draft.mac)
        assert found is not None
        assert found.project is None


async def test_no_secret_reaches_the_database(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        await founded(identity)
        secret, draft = identity.mint(asked(), None)
        await identity.store.add_key(draft)
    content = stored_bytes(tmp_path)
    assert draft.redacted_value.encode() in content
    assert secret[10:].encode() not in content
    assert identity.pepper.reveal().encode() not in content


async def test_an_empty_project_means_the_first_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        organization_id, project_id = await founded(identity)
        later = ProjectDraft(
            id=identity.new_id("proj"), organization_id=None, name="later", now=NOON
        )
        project = await identity.store.add_project(later)
        assert isinstance(project, ProjectRecord)
        assert project.organization_id == organization_id
        assert (await kept(identity, asked())).project_id == project_id
        assert (await kept(identity, asked(project_id=later.id))).project_id == later.id


async def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        draft = ProjectDraft(id="proj_x", organization_id=None, name="x", now=NOON)
        for attempt in (identity.store.add_project(draft), kept(identity, asked())):
            with pytest.raises(GatewayError) as caught:
                await attempt
            assert caught.value.reason == error_pb2.ERROR_REASON_NOT_FOUND
        await founded(identity)
        with pytest.raises(GatewayError) as caught:
            await kept(identity, asked(project_id="proj_nowhere"))
        assert caught.value.reason == error_pb2.ERROR_REASON_NOT_FOUND
        assert caught.value.param == "project_id"
        assert await identity.store.find_key(None, "key_nowhere") is None
        assert await identity.store.revoke_key(None, "key_nowhere", now=NOON) is None


async def test_one_organisation_cannot_see_touch_or_fill_another(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        own, _ = await founded(identity)
        other, foreign_project = await second_organization(tmp_path)
        foreign = await kept(identity, asked(project_id=foreign_project), other)
        assert foreign.organization_id == other
        assert await identity.store.find_key(own, foreign.id) is None
        assert await identity.store.revoke_key(own, foreign.id, now=NOON) is None
        listing = await identity.store.list_keys(KeyFilter(organization_id=own), Page(size=10))
        assert listing.rows == []
        projects = await identity.store.list_projects(own, Page(size=10))
        assert [project.organization_id for project in projects.rows] == [own]
        with pytest.raises(GatewayError) as caught:
            await kept(identity, asked(project_id=foreign_project), own)
        assert caught.value.reason == error_pb2.ERROR_REASON_NOT_FOUND
        assert (await kept(identity, asked(), other)).project_id == foreign_project
        everything = await identity.store.list_keys(ALL, Page(size=10))
        assert len(everything.rows) == 2


async def test_keys_are_listed_newest_first_and_every_one_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        await founded(identity)
        made = [(await kept(identity, asked(f"k{n}"))).id for n in range(7)]
        seen: list[str] = []
        page: Page | None = Page(size=3)
        sizes = []
        while page is not None:
            listing = await identity.store.list_keys(ALL, page)
            seen += [key.id for key in listing.rows]
            sizes.append(len(listing.rows))
            # A key that is made in between is on no later page.
            await kept(identity, asked("late"))
            before = listing.next_before
            page = None if before is None else Page(size=3, before=before)
        assert seen == made[::-1]
        assert sizes == [3, 3, 1]


async def test_a_listing_can_be_narrowed_to_a_project_and_to_living_keys(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        _, project_id = await founded(identity)
        draft = ProjectDraft(id="proj_2", organization_id=None, name="second", now=NOON)
        await identity.store.add_project(draft)
        first = await kept(identity, asked())
        second = await kept(identity, asked(project_id="proj_2"))
        await identity.store.revoke_key(None, second.id, now=NOON)

        async def listed(**wanted: object) -> list[str]:
            keys = KeyFilter(organization_id=None, **wanted)  # type: ignore[arg-type]
            return [key.id for key in (await identity.store.list_keys(keys, Page(size=9))).rows]

        assert await listed() == [first.id]
        assert await listed(include_revoked=True) == [second.id, first.id]
        assert await listed(project_id="proj_2") == []
        assert await listed(project_id="proj_2", include_revoked=True) == [second.id]
        assert await listed(project_id=project_id) == [first.id]


async def test_projects_are_listed_newest_first_in_pages(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        await founded(identity)
        for n in range(3):
            draft = ProjectDraft(id=f"proj_{n}", organization_id=None, name=f"p{n}", now=NOON)
            await identity.store.add_project(draft)
        first = await identity.store.list_projects(None, Page(size=2))
        assert [project.name for project in first.rows] == ["p2", "p1"]
        rest = await identity.store.list_projects(None, Page(size=2, before=first.next_before))
        assert [project.name for project in rest.rows] == ["p0", "default"]
        assert rest.next_before is None


async def test_revoking_ends_a_key_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        await founded(identity)
        key = await kept(identity, asked())
        ended = await identity.store.revoke_key(None, key.id, now=NOON)
        assert ended is not None
        assert ended.revoked_at == NOON
        assert ended.version > key.version
        again = await identity.store.revoke_key(None, key.id, now=NOON + timedelta(days=1))
        assert again == ended


async def test_the_same_request_makes_one_key(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        organization_id, _ = await founded(identity)
        key = await kept(identity, asked(request_id="r1", policy=POLICY))
        _, draft = identity.mint(asked(request_id="r1", policy=POLICY), organization_id)
        assert await identity.store.add_key(draft) == (key, False)
        assert len((await identity.store.list_keys(ALL, Page(size=9))).rows) == 1


@pytest.mark.parametrize(
    "other",
    [
        asked("other", request_id="r1"),
        asked(request_id="r1", policy=POLICY),
        asked(request_id="r1", kind=grant_pb2.KEY_KIND_ADMIN),
        replace(asked(request_id="r1"), expires_in_s=60),
    ],
)
async def test_a_request_id_belongs_to_one_request(tmp_path: Path, other: NewKey) -> None:
    async with opened(tmp_path) as identity:
        await founded(identity)
        await kept(identity, asked(request_id="r1"))
        with pytest.raises(GatewayError) as caught:
            await kept(identity, other)
        assert caught.value.reason == error_pb2.ERROR_REASON_IDEMPOTENCY_MISMATCH
        await kept(identity, asked(request_id="r2"))


async def test_the_same_request_raced_by_two_processes_makes_one_key(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        await founded(one)
        drafts = [
            (identity, identity.mint(asked(request_id="r1"), None)[1])
            for identity in (one, two) * 10
        ]
        answers = await asyncio.gather(*(i.store.add_key(draft) for i, draft in drafts))
        assert sum(made for _, made in answers) == 1
        assert len({key.id for key, _ in answers}) == 1


async def test_every_change_takes_the_next_revision_whoever_writes(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        await founded(one)
        start = (await one.store.changes_after(0, rows_max=9)).revision
        keys = await asyncio.gather(*(kept(i, asked()) for i in (one, two) * 10))
        await asyncio.gather(*(two.store.revoke_key(None, key.id, now=NOON) for key in keys[:5]))
        log = await two.store.changes_after(start, rows_max=100)
        assert log.complete
        assert [change.revision for change in log.rows] == list(range(start + 1, start + 26))
        assert log.revision == start + 25
        assert [change.revoked for change in log.rows] == [False] * 20 + [True] * 5
        assert {change.key_id for change in log.rows[20:]} == {key.id for key in keys[:5]}


async def test_a_key_has_the_version_of_its_last_change(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        await founded(identity)
        key = await kept(identity, asked())
        ended = await identity.store.revoke_key(None, key.id, now=NOON)
        log = await identity.store.changes_after(0, rows_max=100)
        assert ended is not None
        assert [change.revision for change in log.rows] == [key.version, ended.version]


async def test_a_refused_write_takes_no_revision(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        await founded(identity)
        before = (await identity.store.changes_after(0, rows_max=9)).revision
        with pytest.raises(GatewayError):
            await kept(identity, asked(project_id="proj_nowhere"))
        assert (await identity.store.changes_after(0, rows_max=9)).revision == before


async def test_the_log_says_when_it_cannot_catch_a_reader_up(tmp_path: Path) -> None:
    database = open_database(auth_settings(tmp_path).dsn)
    store = SqlStore(database, changes_kept=5)
    async with opened(tmp_path) as identity:
        await founded(identity)
        for _ in range(10):
            await store.add_key(identity.mint(asked(), None)[1])
        newest = (await store.changes_after(0, rows_max=9)).revision
        for after, rows_max, count in [
            (newest, 9, 0),
            (newest - 2, 9, 2),
            (newest - 5, 9, 5),
            (newest - 5, 5, 5),
        ]:
            log = await store.changes_after(after, rows_max=rows_max)
            assert (log.complete, len(log.rows), log.revision) == (True, count, newest)
        for after, rows_max in [(newest - 6, 9), (newest - 5, 4), (newest + 1, 9), (0, 9)]:
            log = await store.changes_after(after, rows_max=rows_max)
            assert (log.complete, log.rows, log.revision) == (False, [], newest)
        # What is forgotten stays forgotten when a later program keeps more.
        await identity.store.add_key(identity.mint(asked(), None)[1])
        assert not (await identity.store.changes_after(newest - 6, rows_max=99)).complete
    await store.close()


async def test_an_empty_store_is_founded_once_by_whoever_is_first(tmp_path: Path) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as two:
        foundings = [
            Founding(
                organization_id=f"org_{n}", project_id=f"proj_{n}", name="x", keys=(), now=NOON
            )
            for n in range(6)
        ]
        won = await asyncio.gather(
            *(i.store.found(f) for i, f in zip((one, two) * 3, foundings, strict=True))
        )
        assert sum(won) == 1
        projects = (await one.store.list_projects(None, Page(size=9))).rows
        assert [project.id for project in projects] == [f"proj_{won.index(True)}"]


async def test_keys_survive_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        await founded(identity)
        _, draft = identity.mint(asked(), None)
        await identity.store.add_key(draft)
    async with opened(tmp_path) as again:
        assert again.mac(b"digest") == identity.mac(b"digest")
        assert await again.store.find_lineage(draft.mac) is not None


async def test_a_lost_pepper_is_noticed_at_the_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        await founded(identity)
    (tmp_path / "pepper").rename(tmp_path / "mislaid")
    with pytest.raises(SecretError, match="put the old file back"):
        await open_identity(auth_settings(tmp_path), SteppedClock(), ENTROPY)
    (tmp_path / "mislaid").rename(tmp_path / "pepper")
    async with opened(tmp_path) as again:
        assert await again.store.find_key(None, "key_x") is None


async def test_a_policy_that_this_program_cannot_enforce_lets_nobody_in(tmp_path: Path) -> None:
    async with opened(tmp_path) as identity:
        await founded(identity)
        _, draft = identity.mint(asked(), None)
        await identity.store.add_key(draft)
        await run_statements(tmp_path, 'UPDATE projects SET policy = \'{"residency": "ch"}\'')
        with pytest.raises(ValueError, match="residency"):
            await identity.store.find_lineage(draft.mac)


async def test_a_store_of_the_first_release_is_brought_up_to_date(tmp_path: Path, dsn: str) -> None:
    database = open_database(auth_settings(tmp_path).dsn)
    await database.migrate("auth", MIGRATIONS[:1], now=NOON)
    await database.close()
    hexed = (b"m" * 32).hex()
    mac = f"x'{hexed}'" if dsn.startswith("sqlite:") else f"'\\x{hexed}'"
    await run_statements(
        tmp_path,
        "INSERT INTO organizations VALUES ('org_1', 'old', '{}', 1, 1, 0)",
        "INSERT INTO projects VALUES ('proj_1', 'org_1', 'old', '{}', 1, 1, 0)",
        "INSERT INTO keys VALUES ('key_1', 'org_1', 'proj_1', '', 1, 'old',"
        f" {mac}, 'sk', '{{}}', 1, 1, 0, NULL, NULL)",
    )
    async with opened(tmp_path) as identity:
        (project,) = (await identity.store.list_projects(None, Page(size=5))).rows
        assert (project.name, project.archived_at, project.models) == ("old", None, ())
        lineage = await identity.store.find_lineage(b"m" * 32)
        assert lineage is not None
        assert (lineage.key.id, lineage.organization.retention) == ("key_1", "")
