"""What organisation, project and key demand of whoever is given their data.

A change is pushed like a change of every key that it holds for.
"""

# ruff: noqa: N802 - methods are named as the contract names them

from dataclasses import dataclass, replace

from onegate.auth.v1 import data_policy_pb2, data_policy_service_pb2_grpc
from onegate.auth.v1 import data_policy_service_pb2 as pb
from services.auth import data_rules, key_rows
from services.auth.administration import Administration, Context, Deed, conflict, missing
from services.auth.data_policy import policy_of
from services.auth.data_rules import DataRule, Level
from services.auth.records import KeyRecord, OrganizationRecord, ProjectRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A level with those above it."""

    organization: OrganizationRecord
    project: ProjectRecord | None = None
    key: KeyRecord | None = None

    @property
    def rules(self) -> tuple[DataRule, ...]:
        """What the level says itself."""
        return (self.key or self.project or self.organization).policy.data

    @property
    def level(self) -> Level.ValueType:
        """Which level it is."""
        if self.key is not None:
            return Level.DATA_LEVEL_KEY
        if self.project is not None:
            return Level.DATA_LEVEL_PROJECT
        return Level.DATA_LEVEL_ORGANIZATION

    def effective(self, classes: tuple[str, ...]) -> data_policy_pb2.DataPolicy:
        """All that holds there."""
        own = self.key.policy.data if self.key is not None else ()
        return policy_of(self.organization, self.project, own, classes)


class DataPolicyService(data_policy_service_pb2_grpc.DataPolicyServiceServicer):
    """Administers data policies."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def GetDataPolicy(
        self, request: pb.GetDataPolicyRequest, context: Context
    ) -> pb.GetDataPolicyResponse:
        """What a level says, and what holds there."""
        classes = self._administration.identity.data_classes
        place = await self._administration.read(
            context, lambda deed: _place(deed, "get", request.project_id, request.key_id)
        )
        return pb.GetDataPolicyResponse(
            settings=data_rules.settings_message(place.rules), effective=place.effective(classes)
        )

    async def UpdateDataPolicy(
        self, request: pb.UpdateDataPolicyRequest, context: Context
    ) -> pb.UpdateDataPolicyResponse:
        """Sets what a level says."""
        classes = self._administration.identity.data_classes

        def work(deed: Deed) -> _Place:
            place = _place(deed, "update", request.project_id, request.key_id)
            rules = data_rules.checked(request.settings, place.level, classes)
            return place if rules == place.rules else _kept(deed, place, rules)

        place = await self._administration.change(context, work)
        return pb.UpdateDataPolicyResponse(
            settings=data_rules.settings_message(place.rules), effective=place.effective(classes)
        )


def _place(deed: Deed, action: str, project_id: str, key_id: str) -> _Place:
    """The level at which the caller may do this. Raises NOT_FOUND, SCOPE_MISSING, CONFLICT."""
    key = key_rows.find_key(deed.session, deed.scope, key_id) if key_id else None
    if key is not None and not project_id:
        project_id = key.project_id or ""
    if project_id:
        family = "api_keys.data_policy" if key_id else "projects.data_policy"
        project = deed.project(f"{family}.{action}", project_id)
    else:
        deed.allow(f"data_policy.{action}")
        project = None
    if key_id and (key is None or project is None or key.project_id != project.id):
        raise missing("key", "key_id")
    if action == "update":
        if project is not None:
            key_rows.check_active(project)
        if key is not None and key.revoked_at is not None:
            raise conflict("The key has ended: make a new one.", "key_id")
    return _Place(organization=deed.organization(), project=project, key=key)


def _kept(deed: Deed, place: _Place, rules: tuple[DataRule, ...]) -> _Place:
    """The level with other rules, kept and logged."""
    if place.key is not None:
        policy = replace(place.key.policy, data=rules)
        key = key_rows.keep_key(deed.session, replace(place.key, policy=policy), now=deed.now)
        deed.note(key.id, place.key, key, key.project_id or "")
        return replace(place, key=key)
    if place.project is not None:
        policy = replace(place.project.policy, data=rules)
        changed = replace(place.project, policy=policy)
        project = key_rows.keep_project(deed.session, changed, now=deed.now)
        deed.note(project.id, place.project, project, project.id)
        return replace(place, project=project)
    policy = replace(place.organization.policy, data=rules)
    said = replace(place.organization, policy=policy)
    organization = key_rows.keep_organization(deed.session, said, now=deed.now)
    deed.note(organization.id, place.organization, organization)
    return replace(place, organization=organization)
