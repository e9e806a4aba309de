"""What every key of a project is held to: rates, models, retention of data.

A change is pushed like a change of each of the project's keys.
"""

# ruff: noqa: N802 - methods are named as the contract names them

from dataclasses import replace
from typing import Final

from onegate.auth.v1 import project_policy_service_pb2 as pb
from onegate.auth.v1 import project_policy_service_pb2_grpc
from services.auth import key_rows, keys
from services.auth.administration import Administration, Context, Deed, missing, refused
from services.auth.desks import paging
from services.auth.objects import RateLimitRecord
from services.auth.project_policy import ALLOW, DENY, policy_of
from services.auth.records import ProjectRecord, Slice

LIMITS_MAX: Final = 100
"""How many model patterns of one project may have limits."""

ID_PREFIX: Final = "rl-"
EVERY_MODEL: Final = "*"
NUMBERS: Final = (
    "requests_per_minute",
    "tokens_per_minute",
    "images_per_minute",
    "audio_megabytes_per_minute",
    "requests_per_day",
    "batch_input_tokens_per_day",
)
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
            after=_model(request.page.after) if request.page.after else None,
            before=_model(request.before) if request.before else None,
            ascending=True,
        )

        def work(deed: Deed) -> list[RateLimitRecord]:
            project = deed.project("rate_limits.list", request.project_id)
            return deed.session.select(RateLimitRecord, {"project_id": project.id}, part)

        rows, has_more = paging.split(await self._administration.read(context, work), part)
        return pb.ListProjectRateLimitsResponse(
            rate_limits=map(_limit_message, rows), has_more=has_more
        )

    async def UpdateProjectRateLimit(
        self, request: pb.UpdateProjectRateLimitRequest, context: Context
    ) -> pb.UpdateProjectRateLimitResponse:
        """Sets the rate limits of one model pattern."""

        def work(deed: Deed) -> RateLimitRecord:
            project = deed.active_project("rate_limits.update", request.project_id)
            model = _model(request.rate_limit.id)
            where = {"project_id": project.id, "model": model}
            before = deed.session.find(RateLimitRecord, where)
            limit = _changed(before or _unlimited(deed, project, model), request.rate_limit)
            if before is None:
                _check_count(deed, project)
                deed.session.insert(limit)
            else:
                deed.session.replace(limit)
            if limit != before:
                _keep(deed, project)
                deed.note(f"{ID_PREFIX}{model}", before, limit, project.id)
            return limit

        limit = await self._administration.change(context, work)
        return pb.UpdateProjectRateLimitResponse(rate_limit=_limit_message(limit))

    async def GetModelPermissions(
        self, request: pb.GetModelPermissionsRequest, context: Context
    ) -> pb.GetModelPermissionsResponse:
        """Which models the project may call."""
        project = await self._administration.read(
            context, lambda deed: deed.project("model_permissions.get", request.project_id)
        )
        return pb.GetModelPermissionsResponse(permissions=_permissions_message(project))

    async def UpdateModelPermissions(
        self, request: pb.UpdateModelPermissionsRequest, context: Context
    ) -> pb.UpdateModelPermissionsResponse:
        """Sets which models the project may call."""

        def work(deed: Deed) -> ProjectRecord:
            project = deed.active_project("model_permissions.update", request.project_id)
            mode = _MODES.get(request.permissions.mode)
            if mode is None:
                raise refused("mode", "must be allow_list or deny_list")
            models = keys.checked_patterns(request.permissions.models, "model_ids")
            return _changed_project(deed, project, mode, models)

        project = await self._administration.change(context, work)
        return pb.UpdateModelPermissionsResponse(permissions=_permissions_message(project))

    async def DeleteModelPermissions(
        self, request: pb.DeleteModelPermissionsRequest, context: Context
    ) -> pb.DeleteModelPermissionsResponse:
        """Lets the project call every model that its organisation may."""

        def work(deed: Deed) -> None:
            project = deed.active_project("model_permissions.delete", request.project_id)
            _changed_project(deed, project, "", ())

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


def _model(limit_id: str) -> str:
    """The model pattern that a limit's id names. Raises NOT_FOUND."""
    model = limit_id.removeprefix(ID_PREFIX)
    if model == limit_id or not model:
        raise missing(f"rate limit; an id is {ID_PREFIX} and a model, such as {ID_PREFIX}*")
    keys.check_pattern("rate_limit_id", model)
    return model


def _unlimited(deed: Deed, project: ProjectRecord, model: str) -> RateLimitRecord:
    return RateLimitRecord(
        id=deed.new_id("rl"),
        organization_id=project.organization_id,
        project_id=project.id,
        model=model,
        requests_per_minute=None,
        tokens_per_minute=None,
        images_per_minute=None,
        audio_megabytes_per_minute=None,
        requests_per_day=None,
        batch_input_tokens_per_day=None,
    )


def _changed(limit: RateLimitRecord, asked: pb.ProjectRateLimit) -> RateLimitRecord:
    """The limit with what is set in the request."""
    for name in NUMBERS:
        if asked.HasField(name):
            value: int = getattr(asked, name)
            if not 0 <= value <= keys.RATE_AMOUNT_MAX:
                raise refused(name, f"must be 0 to {keys.RATE_AMOUNT_MAX}")
            limit = replace(limit, **{name: value})  # type: ignore[arg-type]
    return limit


def _check_count(deed: Deed, project: ProjectRecord) -> None:
    part = Slice(size=LIMITS_MAX)
    if len(deed.session.select(RateLimitRecord, {"project_id": project.id}, part)) == LIMITS_MAX:
        raise refused("rate_limit_id", f"is one too many: a project has at most {LIMITS_MAX}")


def _changed_project(
    deed: Deed, project: ProjectRecord, mode: str, models: tuple[str, ...]
) -> ProjectRecord:
    changed = replace(project, model_mode=mode, models=models)
    if changed != project:
        kept = _keep(deed, changed)
        deed.note(project.id, project, kept, project.id)
    return changed


def _keep(deed: Deed, project: ProjectRecord) -> ProjectRecord:
    """Keeps the project with the policy that follows, as a change of all its keys."""
    part = Slice(size=LIMITS_MAX, ascending=True)
    limits = deed.session.select(RateLimitRecord, {"project_id": project.id}, part)
    policy = replace(policy_of(project, limits), data=project.policy.data)
    narrowed = replace(project, policy=policy)
    return key_rows.keep_project(deed.session, narrowed, now=deed.now)


def _limit_message(limit: RateLimitRecord) -> pb.ProjectRateLimit:
    return pb.ProjectRateLimit(
        id=f"{ID_PREFIX}{limit.model}",
        model=limit.model,
        requests_per_minute=limit.requests_per_minute,
        tokens_per_minute=limit.tokens_per_minute,
        images_per_minute=limit.images_per_minute,
        audio_megabytes_per_minute=limit.audio_megabytes_per_minute,
        requests_per_day=limit.requests_per_day,
        batch_input_tokens_per_day=limit.batch_input_tokens_per_day,
    )


def _permissions_message(project: ProjectRecord) -> pb.ModelPermissions:
    mode = _MODE_OF.get(project.model_mode, pb.MODEL_PERMISSION_MODE_DENY)
    return pb.ModelPermissions(mode=mode, models=project.models)
