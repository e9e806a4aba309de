"""Data policies over REST: what organisation, project and key demand of whoever is given their
data. OpenAI's API has no equal; the shapes follow its others. Pure.
"""

from typing import Any, Final

from edge.admin.asked import Asked, refused
from edge.admin.projects import PROJECT
from edge.admin.route import AnyRoute, Json, Route
from onegate.auth.v1 import data_policy_pb2
from onegate.auth.v1 import data_policy_service_pb2 as pb

PATHS: Final = (
    ("data_policy", "/v1/organization/data_policy"),
    ("projects.data_policy", f"{PROJECT}/data_policy"),
    ("api_keys.data_policy", f"{PROJECT}/api_keys/{{api_key_id}}/data_policy"),
)
_SERVICE: Final = "DataPolicyService"
_LEVELS: Final = {
    data_policy_pb2.DATA_LEVEL_ORGANIZATION: "organization",
    data_policy_pb2.DATA_LEVEL_PROJECT: "project",
    data_policy_pb2.DATA_LEVEL_KEY: "api_key",
    data_policy_pb2.DATA_LEVEL_REQUEST: "request",
}


def demands_json(demands: data_policy_pb2.DataDemands) -> Json:
    """Demands; what is not demanded is ``null``, empty or false."""
    days = demands.retention_days_max if demands.HasField("retention_days_max") else None
    return {
        "regions": list(demands.regions),
        "storage_regions": list(demands.storage_regions),
        "retention_days_max": days,
        "no_training": demands.no_training,
    }


def rule_json(rule: data_policy_pb2.DataRule) -> Json:
    """One rule with the level whose it is."""
    return {
        "level": _LEVELS.get(rule.level, "unknown"),
        "data_class": rule.data_class or None,
        "class_min": rule.class_min or None,
        **demands_json(rule.demands),
    }


def policy_json(
    settings: pb.DataPolicySettings, effective: data_policy_pb2.DataPolicy
) -> dict[str, Any]:
    """What a level says, and what holds there."""
    return {
        "object": "data_policy",
        "class_min": settings.class_min or None,
        "demands": [
            {"data_class": entry.data_class or None, **demands_json(entry.demands)}
            for entry in settings.demands
        ],
        "effective": {
            "version": effective.version or None,
            "classes": list(effective.classes),
            "rules": [rule_json(rule) for rule in effective.rules],
        },
    }


def _answer(answer: pb.GetDataPolicyResponse | pb.UpdateDataPolicyResponse, _: Asked) -> Json:
    return policy_json(answer.settings, answer.effective)


def _get(asked: Asked) -> pb.GetDataPolicyRequest:
    return pb.GetDataPolicyRequest(
        project_id=asked.path.get("project_id", ""), key_id=asked.path.get("api_key_id", "")
    )


def _update(asked: Asked) -> pb.UpdateDataPolicyRequest:
    if not asked.has("demands") and not asked.has("class_min"):
        raise refused("demands", "must be set: an empty list takes this level's demands away")
    entries = [_demands(entry) for entry in asked.objects("demands")]
    return pb.UpdateDataPolicyRequest(
        project_id=asked.path.get("project_id", ""),
        key_id=asked.path.get("api_key_id", ""),
        settings=pb.DataPolicySettings(class_min=asked.text_or("class_min") or "", demands=entries),
    )


def _demands(entry: Asked) -> pb.ClassDemands:
    days = entry.whole("retention_days_max")
    if days is not None and days >= 2**31:
        raise refused("retention_days_max", "is too large")
    found = pb.ClassDemands(
        data_class=entry.text_or("data_class") or "",
        demands=data_policy_pb2.DataDemands(
            regions=entry.texts("regions") or (),
            storage_regions=entry.texts("storage_regions") or (),
            retention_days_max=days,
            no_training=entry.flag("no_training"),
        ),
    )
    entry.finish()
    return found


ROUTES: Final[tuple[AnyRoute, ...]] = tuple(
    route
    for name, path in PATHS
    for route in (
        Route(
            name=f"{name}.get",
            method="GET",
            path=path,
            rpc=f"{_SERVICE}/GetDataPolicy",
            request=_get,
            response=pb.GetDataPolicyResponse,
            answer=_answer,
        ),
        Route(
            name=f"{name}.update",
            method="POST",
            path=path,
            rpc=f"{_SERVICE}/UpdateDataPolicy",
            request=_update,
            response=pb.UpdateDataPolicyResponse,
            answer=_answer,
        ),
    )
)
