"""What every key of a project is held to: rates, models, retention of data.

A change is pushed like a change of each of the project's keys.
"""

# ruff: noqa: N802 - methods are named as the contract names them

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from onegate.auth.v1 import project_policy_service_pb2 as pb
from onegate.auth.v1 import project_policy_service_pb2_grpc
from services.auth import key_rows, keys
from services.auth.administration import Administration, Context, Deed, missing, refused
from services.auth.desks import paging
from services.auth.desks.levels import keep_level
from services.auth.objects import RateLimitRecord
from services.auth.project_policy import ALLOW, DENY, models_policy, policy_of
from services.auth.rate_limits import (
    ID_PREFIX,
    changed,
    is_empty,
    message,
    model_of,
    unlimited,
    without,
)
from services.auth.records import OrganizationRecord, ProjectRecord, Slice

LIMITS_MAX: Final = 100
"""How many model patterns of one project may have limits."""

# https://platform.openai.com/docs/api-reference/projects/data-retention
ORGANIZATION_RETENTION: Final = (
    "zero_data_retention",
    "modified_abuse_monitoring",
    "enhanced_zero_data_retention",
    "enhanced_modified_abuse_monitoring",
)
PROJECT_DEFAULT: Final = "organization_default"
PROJECT_RETENTION: Final = (PROJECT_DEFAULT, "none", *ORGANIZATION_RETENTION)
RETENTION_DEFAULT: Final = "modified_abuse_monitoring"
"""What an organisation says that has said nothing."""

_MODES: Final = {pb.MODEL_PERMISSION_MODE_ALLOW: ALLOW, pb.MODEL_PERMISSION_MODE_DENY: DENY}
_MODE_OF: Final = {word: mode for mode, word in _MODES.items()}


class ProjectPolicyService(project_policy_service_pb2_grpc.ProjectPolicyServiceServicer):
    """Administers what a project's keys are held to."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def ListProjectRateLimits(
        self, request: pb.ListProjectRateLimitsRequest, context: Context
    ) -> pb.ListProjectRateLimitsResponse:
        """A project's rate limits, by model."""
        asked = paging.part(request.page, before=request.before, order="model")
        part = replace(
            asked,
            after=model_of(request.page.after) if request.page.after else None,
            before=model_of(request.before) if request.before else None,
            ascending=True,
        )

        def work(deed: Deed) -> list[RateLimitRecord]:
            project = deed.project("rate_limits.list", request.project_id)
            return deed.session.select(RateLimitRecord, {"project_id": project.id}, part)

        rows, has_more = paging.split(await self._administration.read(context, work), part)
        return pb.ListProjectRateLimitsResponse(rate_limits=map(message, rows), has_more=has_more)

    async def UpdateProjectRateLimit(
        self, request: pb.UpdateProjectRateLimitRequest, context: Context
    ) -> pb.UpdateProjectRateLimitResponse:
        """Sets the rate limits of one model pattern."""

        def work(deed: Deed) -> RateLimitRecord:
            project = deed.active_project("rate_limits.update", request.project_id)
            return set_project_limit(deed, project, request.rate_limit)

        limit = await self._administration.change(context, work)
        return pb.UpdateProjectRateLimitResponse(rate_limit=message(limit))

    async def GetModelPermissions(
        self, request: pb.GetModelPermissionsRequest, context: Context
    ) -> pb.GetModelPermissionsResponse:
        """Which models the project may call."""

        def work(deed: Deed) -> OrganizationRecord | ProjectRecord:
            if request.project_id:
                return deed.project("model_permissions.get", request.project_id)
            deed.allow("organization.model_permissions.get")
            return deed.organization()

        level = await self._administration.read(context, work)
        return pb.GetModelPermissionsResponse(permissions=_permissions_message(level))

    async def UpdateModelPermissions(
        self, request: pb.UpdateModelPermissionsRequest, context: Context
    ) -> pb.UpdateModelPermissionsResponse:
        """Sets which models the project may call."""

        def work(deed: Deed) -> OrganizationRecord | ProjectRecord:
            level = _permitted(deed, request.project_id, "update")
            mode = _MODES.get(request.permissions.mode)
            if mode is None:
                raise refused("mode", "must be allow_list or deny_list")
            models = keys.checked_patterns(request.permissions.models, "model_ids")
            return _with_models(deed, level, mode, models)

        level = await self._administration.change(context, work)
        return pb.UpdateModelPermissionsResponse(permissions=_permissions_message(level))

    async def DeleteModelPermissions(
        self, request: pb.DeleteModelPermissionsRequest, context: Context
    ) -> pb.DeleteModelPermissionsResponse:
        """Lets the project call every model that its organisation may."""

        def work(deed: Deed) -> None:
            _with_models(deed, _permitted(deed, request.project_id, "delete"), "", ())

        await self._administration.change(context, work)
        return pb.DeleteModelPermissionsResponse()

    async def GetDataRetention(
        self, request: pb.GetDataRetentionRequest, context: Context
    ) -> pb.GetDataRetentionResponse:
        """How long data may be kept."""

        def work(deed: Deed) -> str:
            if request.project_id:
                project = deed.project("projects.data_retention.get", request.project_id)
                return project.retention or PROJECT_DEFAULT
            deed.allow("data_retention.get")
            return deed.organization().retention or RETENTION_DEFAULT

        return pb.GetDataRetentionResponse(type=await self._administration.read(context, work))

    async def UpdateDataRetention(
        self, request: pb.UpdateDataRetentionRequest, context: Context
    ) -> pb.UpdateDataRetentionResponse:
        """Sets how long data may be kept."""

        def work(deed: Deed) -> str:
            if request.project_id:
                operation = "projects.data_retention.update"
                project = deed.active_project(operation, request.project_id)
                _check_word(request.type, PROJECT_RETENTION)
                changed = replace(project, retention=request.type)
                # Words of retention are demands on every call: routers must learn of them.
                kept = key_rows.keep_project(deed.session, changed, now=deed.now)
                deed.note(project.id, project, kept, project.id)
            else:
                deed.allow("data_retention.update")
                _check_word(request.type, ORGANIZATION_RETENTION)
                organization = deed.organization()
                said = replace(organization, retention=request.type)
                told = key_rows.keep_organization(deed.session, said, now=deed.now)
                deed.note(organization.id, organization, told)
            return request.type

        return pb.UpdateDataRetentionResponse(type=await self._administration.change(context, work))


def _check_word(word: str, words: tuple[str, ...]) -> None:
    if word not in words:
        raise refused("retention_type", f"must be one of {', '.join(words)}")


def set_project_limit(
    deed: Deed, project: ProjectRecord, asked: pb.ProjectRateLimit
) -> RateLimitRecord:
    """Sets numbers of one model pattern in a project."""
    model = model_of(asked.id)
    before = deed.session.find(RateLimitRecord, {"project_id": project.id, "model": model})
    row = before or unlimited(project.organization_id, project.id, model, deed.new_id("rl"))
    limit = changed(row, asked)
    if before is None:
        _check_count(deed, project)
        deed.session.insert(limit)
    else:
        deed.session.replace(limit)
    if limit != before:
        _keep(deed, project)
        deed.note(f"{ID_PREFIX}{model}", before, limit, project.id)
    return limit


def unset_project_limit(
    deed: Deed, project: ProjectRecord, limit_id: str, fields: Sequence[str]
) -> RateLimitRecord:
    """Takes numbers of one model pattern in a project away. Raises NOT_FOUND."""
    model = model_of(limit_id)
    before = deed.session.find(RateLimitRecord, {"project_id": project.id, "model": model})
    if before is None:
        raise missing("rate limit")
    limit = without(before, fields)
    if is_empty(limit):
        deed.session.delete(RateLimitRecord, {"id": before.id})
    else:
        deed.session.replace(limit)
    _keep(deed, project)
    deed.note(limit_id, before, None if is_empty(limit) else limit, project.id)
    return limit


def _check_count(deed: Deed, project: ProjectRecord) -> None:
    part = Slice(size=LIMITS_MAX)
    if len(deed.session.select(RateLimitRecord, {"project_id": project.id}, part)) == LIMITS_MAX:
        raise refused("rate_limit_id", f"is one too many: a project has at most {LIMITS_MAX}")


def _permitted(deed: Deed, project_id: str, action: str) -> OrganizationRecord | ProjectRecord:
    """The level whose models the caller may permit."""
    if project_id:
        return deed.active_project(f"model_permissions.{action}", project_id)
    deed.allow(f"organization.model_permissions.{action}")
    return deed.organization()


def _with_models(
    deed: Deed,
    level: OrganizationRecord | ProjectRecord,
    mode: str,
    models: tuple[str, ...],
) -> OrganizationRecord | ProjectRecord:
    said = replace(level, model_mode=mode, models=models)
    return keep_level(deed, level, replace(said, policy=models_policy(said)))


def _keep(deed: Deed, project: ProjectRecord) -> ProjectRecord:
    """Keeps the project with the policy that follows, as a change of all its keys."""
    part = Slice(size=LIMITS_MAX, ascending=True)
    limits = deed.session.select(RateLimitRecord, {"project_id": project.id}, part)
    policy = replace(policy_of(project, limits), data=project.policy.data)
    narrowed = replace(project, policy=policy)
    return key_rows.keep_project(deed.session, narrowed, now=deed.now)


def _permissions_message(level: OrganizationRecord | ProjectRecord) -> pb.ModelPermissions:
    mode = _MODE_OF.get(level.model_mode, pb.MODEL_PERMISSION_MODE_DENY)
    return pb.ModelPermissions(mode=mode, models=level.models)
