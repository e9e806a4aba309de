"""What becomes of keys after they were made, beside OpenAI's own routes: rotation, disabling and
enabling, and what an organisation or a project says of all its keys. Pure.
"""

from typing import Final

from edge.admin.asked import Asked
from edge.admin.keys import ADMIN_KEYS, PROJECT_KEYS, admin_key_json, project_key_json
from edge.admin.projects import PROJECT
from edge.admin.route import AnyRoute, Json, Route
from edge.admin.waiting import take_wait, wait_s, with_wait
from onegate.auth.v1 import grant_pb2
from onegate.auth.v1 import key_policy_service_pb2 as policy_pb
from onegate.auth.v1 import key_service_pb2 as pb

POLICY: Final = "/v1/organization/key_policy"
PROJECT_POLICY: Final = f"{PROJECT}/key_policy"
_ADMIN_KEY: Final = f"{ADMIN_KEYS}/{{key_id}}"
_PROJECT_KEY: Final = f"{PROJECT_KEYS}/{{api_key_id}}"
_ADMIN: Final = grant_pb2.KEY_KIND_ADMIN


def _rotate_project_key(asked: Asked) -> pb.RotateKeyRequest:
    return pb.RotateKeyRequest(
        id=asked.path["api_key_id"],
        kind=grant_pb2.KEY_KIND_PROJECT,
        project_id=asked.path["project_id"],
        grace_seconds=asked.whole("grace_seconds"),
        expires_in_seconds=asked.whole("expires_in_seconds"),
    )


def _rotate_admin_key(asked: Asked) -> pb.RotateKeyRequest:
    return pb.RotateKeyRequest(
        id=asked.path["key_id"],
        kind=_ADMIN,
        grace_seconds=asked.whole("grace_seconds"),
        expires_in_seconds=asked.whole("expires_in_seconds"),
    )


def policy_json(policy: policy_pb.KeyPolicy, asked: Asked) -> Json:
    """What one level says of its keys; ``null`` where it says nothing."""
    level = "project" if "project_id" in asked.path else "organization"
    return {
        "object": f"{level}.key_policy",
        "max_key_lifetime_seconds": policy.max_lifetime_seconds or None,
        "default_key_lifetime_seconds": policy.default_lifetime_seconds or None,
        "networks": list(policy.networks_allowed),
        "tags": dict(policy.tags),
    }


def _get_policy(asked: Asked) -> policy_pb.GetKeyPolicyRequest:
    return policy_pb.GetKeyPolicyRequest(project_id=asked.path.get("project_id", ""))


def _update_policy(asked: Asked) -> policy_pb.UpdateKeyPolicyRequest:
    request = policy_pb.UpdateKeyPolicyRequest(
        project_id=asked.path.get("project_id", ""),
        max_lifetime_seconds=asked.whole("max_key_lifetime_seconds"),
        default_lifetime_seconds=asked.whole("default_key_lifetime_seconds"),
    )
    networks = asked.texts("networks")
    if networks is not None:
        request.networks_allowed.CopyFrom(policy_pb.PolicyNetworks(values=networks))
    if asked.has("tags"):
        request.tags.CopyFrom(policy_pb.PolicyTags(values=asked.mapping("tags")))
    return request


def _disable_admin_key(asked: Asked) -> pb.DisableKeyRequest:
    request = pb.DisableKeyRequest(id=asked.path["key_id"], kind=_ADMIN)
    take_wait(asked, request)
    return request


def _disable_project_key(asked: Asked) -> pb.DisableKeyRequest:
    request = pb.DisableKeyRequest(
        id=asked.path["api_key_id"],
        kind=grant_pb2.KEY_KIND_PROJECT,
        project_id=asked.path["project_id"],
    )
    take_wait(asked, request)
    return request


_POLICY_ROUTES: Final[tuple[AnyRoute, ...]] = tuple(
    route
    for name, path in (("key_policy", POLICY), ("projects.key_policy", PROJECT_POLICY))
    for route in (
        Route(
            name=f"{name}.get",
            method="GET",
            path=path,
            rpc="KeyPolicyService/GetKeyPolicy",
            request=_get_policy,
            response=policy_pb.GetKeyPolicyResponse,
            answer=lambda answer, asked: policy_json(answer.policy, asked),
        ),
        Route(
            name=f"{name}.update",
            method="POST",
            path=path,
            rpc="KeyPolicyService/UpdateKeyPolicy",
            request=_update_policy,
            response=policy_pb.UpdateKeyPolicyResponse,
            answer=lambda answer, asked: policy_json(answer.policy, asked),
        ),
    )
)

ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        name="admin_api_keys.rotate",
        method="POST",
        path=f"{_ADMIN_KEY}/rotate",
        rpc="KeyService/RotateKey",
        request=_rotate_admin_key,
        response=pb.RotateKeyResponse,
        answer=lambda answer, _: {**admin_key_json(answer.key), "value": answer.value},
    ),
    Route(
        name="admin_api_keys.disable",
        method="POST",
        path=f"{_ADMIN_KEY}/disable",
        rpc="KeyService/DisableKey",
        request=_disable_admin_key,
        response=pb.DisableKeyResponse,
        answer=lambda answer, asked: with_wait(answer, asked, admin_key_json(answer.key)),
        wait_s=wait_s,
    ),
    Route(
        name="admin_api_keys.enable",
        method="POST",
        path=f"{_ADMIN_KEY}/enable",
        rpc="KeyService/EnableKey",
        request=lambda asked: pb.EnableKeyRequest(id=asked.path["key_id"], kind=_ADMIN),
        response=pb.EnableKeyResponse,
        answer=lambda answer, _: admin_key_json(answer.key),
    ),
    Route(
        name="api_keys.rotate",
        method="POST",
        path=f"{_PROJECT_KEY}/rotate",
        rpc="KeyService/RotateKey",
        request=_rotate_project_key,
        response=pb.RotateKeyResponse,
        answer=lambda answer, _: {**project_key_json(answer.key), "value": answer.value},
    ),
    Route(
        name="api_keys.disable",
        method="POST",
        path=f"{_PROJECT_KEY}/disable",
        rpc="KeyService/DisableKey",
        request=_disable_project_key,
        response=pb.DisableKeyResponse,
        answer=lambda answer, asked: with_wait(answer, asked, project_key_json(answer.key)),
        wait_s=wait_s,
    ),
    Route(
        name="api_keys.enable",
        method="POST",
        path=f"{_PROJECT_KEY}/enable",
        rpc="KeyService/EnableKey",
        request=lambda asked: pb.EnableKeyRequest(
            id=asked.path["api_key_id"],
            kind=grant_pb2.KEY_KIND_PROJECT,
            project_id=asked.path["project_id"],
        ),
        response=pb.EnableKeyResponse,
        answer=lambda answer, _: project_key_json(answer.key),
    ),
    *_POLICY_ROUTES,
)
