"""Organisations and projects as the levels that keys inherit from."""

from typing import TypeAlias, assert_never

from services.auth import key_rows
from services.auth.administration import Deed
from services.auth.records import OrganizationRecord, ProjectRecord

Level: TypeAlias = OrganizationRecord | ProjectRecord


def keep_level(deed: Deed, before: Level, after: Level) -> Level:
    """Keeps a changed level, tells of it as of a change of all its keys, and logs it."""
    if before == after:
        return after
    kept: Level
    match after:
        case OrganizationRecord():
            kept = key_rows.keep_organization(deed.session, after, now=deed.now)
            deed.note(after.id, before, kept)
        case ProjectRecord():
            kept = key_rows.keep_project(deed.session, after, now=deed.now)
            deed.note(after.id, before, kept, after.id)
        case never:
            assert_never(never)
    return kept
