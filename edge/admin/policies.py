"""Rate limits, model permissions and data retention in OpenAI's shape
(https://platform.openai.com/docs/api-reference/project-rate-limits). Pure.
"""

from typing import Final

from edge.admin.asked import Asked, refused
from edge.admin.projects import PROJECT
from edge.admin.route import AnyRoute, Json, Route, listed
from onegate.auth.v1 import project_policy_service_pb2 as pb

RATE_LIMITS: Final = f"{PROJECT}/rate_limits"
MODELS: Final = f"{PROJECT}/model_permissions"
ORGANIZATION_MODELS: Final = "/v1/organization/model_permissions"
RETENTION: Final = "/v1/organization/data_retention"
PROJECT_RETENTION: Final = f"{PROJECT}/data_retention"
UNLIMITED: Final = 10**12
"""What is said of requests and tokens in a minute without a limit: the SDK wants a number."""

_SERVICE: Final = "ProjectPolicyService"
_NUMBERS: Final = {
    "max_requests_per_1_minute": "requests_per_minute",
    "max_tokens_per_1_minute": "tokens_per_minute",
    "max_images_per_1_minute": "images_per_minute",
    "max_audio_megabytes_per_1_minute": "audio_megabytes_per_minute",
    "max_requests_per_1_day": "requests_per_day",
    "batch_1_day_max_input_tokens": "batch_input_tokens_per_day",
    # The gateway's own.
    "max_tokens_per_1_day": "tokens_per_day",
    "max_concurrent_calls": "concurrent_calls",
}
_ALWAYS: Final = ("max_requests_per_1_minute", "max_tokens_per_1_minute")
_MODES: Final = {
    "allow_list": pb.MODEL_PERMISSION_MODE_ALLOW,
    "deny_list": pb.MODEL_PERMISSION_MODE_DENY,
}
_MODE_NAMES: Final = {mode: name for name, mode in _MODES.items()}


def limit_json(limit: pb.ProjectRateLimit) -> Json:
    """One project rate limit; what is not limited is left out where the SDK lets it."""
    numbers = {
        shown: getattr(limit, name)
        for shown, name in _NUMBERS.items()
        if limit.HasField(name)  # type: ignore[arg-type]
    }
    return {
        "id": limit.id,
        "object": "project.rate_limit",
        "model": limit.model,
        **dict.fromkeys(_ALWAYS, UNLIMITED),
        **numbers,
    }


def limit_numbers(asked: Asked) -> pb.ProjectRateLimit:
    """The numbers that a request sets."""
    limit = pb.ProjectRateLimit(id=asked.path["rate_limit_id"])
    for shown, name in _NUMBERS.items():
        value = asked.whole(shown)
        if value is not None:
            setattr(limit, name, value)
    return limit


def _update_limit(asked: Asked) -> pb.UpdateProjectRateLimitRequest:
    return pb.UpdateProjectRateLimitRequest(
        project_id=asked.path["project_id"], rate_limit=limit_numbers(asked)
    )


def _list_limits(asked: Asked) -> pb.ListProjectRateLimitsRequest:
    return pb.ListProjectRateLimitsRequest(
        project_id=asked.path["project_id"],
        page=asked.page(100, order="asc"),
        before=asked.filter("before"),
    )


def models_json(permissions: pb.ModelPermissions, asked: Asked) -> Json:
    """Model permissions of a project, or of the organisation, which is the gateway's own."""
    return {
        "object": _models_object(asked),
        "mode": _MODE_NAMES[permissions.mode],
        "model_ids": list(permissions.models),
    }


def _models_object(asked: Asked) -> str:
    level = "project" if "project_id" in asked.path else "organization"
    return f"{level}.model_permissions"


def _project_of(asked: Asked) -> str:
    return asked.path.get("project_id", "")


def _update_models(asked: Asked) -> pb.UpdateModelPermissionsRequest:
    mode = asked.text("mode")
    if mode not in _MODES:
        raise refused("mode", f"must be one of {', '.join(_MODES)}")
    models = asked.texts("model_ids")
    if models is None:
        raise refused("model_ids", "must be set")
    permissions = pb.ModelPermissions(mode=_MODES[mode], models=models)
    return pb.UpdateModelPermissionsRequest(project_id=_project_of(asked), permissions=permissions)


def _retention_json(word: str, asked: Asked) -> Json:
    level = "project" if "project_id" in asked.path else "organization"
    return {"object": f"{level}.data_retention", "type": word}


def _get_retention(asked: Asked) -> pb.GetDataRetentionRequest:
    return pb.GetDataRetentionRequest(project_id=asked.path.get("project_id", ""))


def _update_retention(asked: Asked) -> pb.UpdateDataRetentionRequest:
    return pb.UpdateDataRetentionRequest(
        project_id=asked.path.get("project_id", ""), type=asked.text("retention_type")
    )


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        name="rate_limits.list",
        method="GET",
        path=RATE_LIMITS,
        rpc=f"{_SERVICE}/ListProjectRateLimits",
        request=_list_limits,
        response=pb.ListProjectRateLimitsResponse,
        answer=lambda answer, _: listed(
            [limit_json(limit) for limit in answer.rate_limits], has_more=answer.has_more
        ),
    ),
    Route(
        name="rate_limits.update",
        method="POST",
        path=f"{RATE_LIMITS}/{{rate_limit_id}}",
        rpc=f"{_SERVICE}/UpdateProjectRateLimit",
        request=_update_limit,
        response=pb.UpdateProjectRateLimitResponse,
        answer=lambda answer, _: limit_json(answer.rate_limit),
    ),
    *(
        route
        for name, path in (
            ("model_permissions", MODELS),
            ("organization.model_permissions", ORGANIZATION_MODELS),
        )
        for route in (
            Route(
                name=f"{name}.get",
                method="GET",
                path=path,
                rpc=f"{_SERVICE}/GetModelPermissions",
                request=lambda asked: pb.GetModelPermissionsRequest(project_id=_project_of(asked)),
                response=pb.GetModelPermissionsResponse,
                answer=lambda answer, asked: models_json(answer.permissions, asked),
            ),
            Route(
                name=f"{name}.update",
                method="POST",
                path=path,
                rpc=f"{_SERVICE}/UpdateModelPermissions",
                request=_update_models,
                response=pb.UpdateModelPermissionsResponse,
                answer=lambda answer, asked: models_json(answer.permissions, asked),
            ),
            Route(
                name=f"{name}.delete",
                method="DELETE",
                path=path,
                rpc=f"{_SERVICE}/DeleteModelPermissions",
                request=lambda asked: pb.DeleteModelPermissionsRequest(
                    project_id=_project_of(asked)
                ),
                response=pb.DeleteModelPermissionsResponse,
                answer=lambda _answer, asked: {
                    "object": f"{_models_object(asked)}.deleted",
                    "deleted": True,
                },
            ),
        )
    ),
    *(
        route
        for name, path in (
            ("data_retention", RETENTION),
            ("projects.data_retention", PROJECT_RETENTION),
        )
        for route in (
            Route(
                name=f"{name}.get",
                method="GET",
                path=path,
                rpc=f"{_SERVICE}/GetDataRetention",
                request=_get_retention,
                response=pb.GetDataRetentionResponse,
                answer=lambda answer, asked: _retention_json(answer.type, asked),
            ),
            Route(
                name=f"{name}.update",
                method="POST",
                path=path,
                rpc=f"{_SERVICE}/UpdateDataRetention",
                request=_update_retention,
                response=pb.UpdateDataRetentionResponse,
                answer=lambda answer, asked: _retention_json(answer.type, asked),
            ),
        )
    ),
)
