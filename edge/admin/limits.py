"""Rate limits of keys and organisations, in the shape that OpenAI has for a project's; what goes
beyond OpenAI's numbers is there for every level. Pure.
"""

from typing import Final

from edge.admin.asked import Asked
from edge.admin.keys import PROJECT_KEYS
from edge.admin.policies import RATE_LIMITS, limit_json, limit_numbers
from edge.admin.route import AnyRoute, Json, Route, listed
from onegate.auth.v1 import project_policy_service_pb2
from onegate.auth.v1 import rate_limit_service_pb2 as pb

ORGANIZATION: Final = "/v1/organization/rate_limits"
KEY: Final = f"{PROJECT_KEYS}/{{api_key_id}}/rate_limits"
_SERVICE: Final = "RateLimitService"


def _level(asked: Asked) -> pb.RateLimitLevel:
    return pb.RateLimitLevel(
        project_id=asked.path.get("project_id", ""), key_id=asked.path.get("api_key_id", "")
    )


def _kind(asked: Asked) -> str:
    if "api_key_id" in asked.path:
        return "organization.project.api_key.rate_limit"
    return "project.rate_limit" if "project_id" in asked.path else "organization.rate_limit"


def _shown(limit: project_policy_service_pb2.ProjectRateLimit, asked: Asked) -> Json:
    return {**limit_json(limit), "object": _kind(asked)}


def _list(asked: Asked) -> pb.ListRateLimitsRequest:
    return pb.ListRateLimitsRequest(level=_level(asked), page=asked.page(100, order="asc"))


def _set(asked: Asked) -> pb.SetRateLimitRequest:
    return pb.SetRateLimitRequest(level=_level(asked), rate_limit=limit_numbers(asked))


def _unset(asked: Asked) -> pb.UnsetRateLimitRequest:
    return pb.UnsetRateLimitRequest(level=_level(asked), id=asked.path["rate_limit_id"])


def _deleted(_answer: pb.UnsetRateLimitResponse, asked: Asked) -> Json:
    limit_id = asked.path["rate_limit_id"]
    return {"id": limit_id, "object": f"{_kind(asked)}.deleted", "deleted": True}


def _listed(answer: pb.ListRateLimitsResponse, asked: Asked) -> Json:
    data = [_shown(limit, asked) for limit in answer.rate_limits]
    return listed(data, has_more=answer.has_more)


def _routes(name: str, path: str) -> tuple[AnyRoute, ...]:
    return (
        Route(
            name=f"{name}.list",
            method="GET",
            path=path,
            rpc=f"{_SERVICE}/ListRateLimits",
            request=_list,
            response=pb.ListRateLimitsResponse,
            answer=_listed,
        ),
        Route(
            name=f"{name}.update",
            method="POST",
            path=f"{path}/{{rate_limit_id}}",
            rpc=f"{_SERVICE}/SetRateLimit",
            request=_set,
            response=pb.SetRateLimitResponse,
            answer=lambda answer, asked: _shown(answer.rate_limit, asked),
        ),
        _delete(name, path),
    )


def _delete(name: str, path: str) -> AnyRoute:
    return Route(
        name=f"{name}.delete",
        method="DELETE",
        path=f"{path}/{{rate_limit_id}}",
        rpc=f"{_SERVICE}/UnsetRateLimit",
        request=_unset,
        response=pb.UnsetRateLimitResponse,
        answer=_deleted,
    )


ROUTES: Final[tuple[AnyRoute, ...]] = (
    *_routes("organization.rate_limits", ORGANIZATION),
    *_routes("api_keys.rate_limits", KEY),
    _delete("rate_limits", RATE_LIMITS),
)
