"""API keys of projects and of administrators, in OpenAI's shape, and what the gateway adds to it.
Pure.

https://platform.openai.com/docs/api-reference/project-api-keys and ``…/admin-api-keys``. Making a
key in a project directly is the gateway's own: OpenAI makes it with a service account.
"""

from typing import Any, Final

from edge.admin.asked import Asked, refused
from edge.admin.projects import PROJECT
from edge.admin.route import AnyRoute, Json, Route, deleted, listed, seconds, seconds_or_none
from edge.admin.waiting import take_wait, wait_s, with_wait
from onegate.auth.v1 import grant_pb2
from onegate.auth.v1 import key_service_pb2 as pb

ADMIN_KEYS: Final = "/v1/organization/admin_api_keys"
PROJECT_KEYS: Final = f"{PROJECT}/api_keys"
_ADMIN: Final = grant_pb2.KEY_KIND_ADMIN
_METERS: Final = {
    "requests": grant_pb2.RATE_METER_REQUESTS,
    "tokens": grant_pb2.RATE_METER_TOKENS,
    "concurrency": grant_pb2.RATE_METER_CONCURRENCY,
    "images": grant_pb2.RATE_METER_IMAGES,
    "audio_megabytes": grant_pb2.RATE_METER_AUDIO_MEGABYTES,
}
_METER_NAMES: Final = {meter: name for name, meter in _METERS.items()}


def admin_key_json(key: pb.Key) -> Json:
    """One admin key. ``scopes`` is the gateway's own, and what ``_life`` says."""
    return {
        "id": key.id,
        "object": "organization.admin_api_key",
        "name": key.name,
        "redacted_value": key.redacted_value,
        "created_at": seconds(key.created_at),
        "expires_at": seconds_or_none(key, "expires_at"),
        "last_used_at": seconds_or_none(key, "last_used_at"),
        "owner": _admin_owner(key),
        "scopes": list(key.scopes),
        **_life(key),
    }


def _life(key: pb.Key) -> Json:
    """What the gateway adds to any key."""
    return {
        "status": "disabled" if key.HasField("disabled_at") else "active",
        "disabled_at": seconds_or_none(key, "disabled_at"),
        "rotated_at": seconds_or_none(key, "rotated_at"),
        "former_secrets": [
            {"redacted_value": secret.redacted_value, "ends_at": seconds(secret.ends_at)}
            for secret in key.former_secrets
        ],
        "networks": list(key.networks_allowed),
    }


def _admin_owner(key: pb.Key) -> Json:
    if not key.HasField("owner"):
        # The organisation's own key: nobody's in person.
        return {"type": "user", "object": "organization.user", "role": "owner"}
    owner = key.owner
    return {
        "type": "user",
        "object": "organization.user",
        "id": owner.id,
        "name": owner.name,
        "created_at": seconds(owner.created_at),
        "role": owner.role,
    }


def project_key_json(key: pb.Key) -> Json:
    """One key of a project. ``scopes``, ``models``, ``denied_models``, ``tags`` and ``limits`` are
    the gateway's own, and what ``_life`` says.
    """
    return {
        "id": key.id,
        "object": "organization.project.api_key",
        "name": key.name,
        "redacted_value": key.redacted_value,
        "created_at": seconds(key.created_at),
        "expires_at": seconds_or_none(key, "expires_at"),
        "last_used_at": seconds_or_none(key, "last_used_at"),
        "owner": _project_owner(key),
        "owner_project_access": "active",
        "scopes": list(key.scopes),
        "models": list(key.models_allowed),
        "denied_models": list(key.models_denied),
        "tags": dict(key.tags),
        "limits": [_limit_json(limit) for limit in key.rate_limits],
        **_life(key),
    }


def _project_owner(key: pb.Key) -> Json:
    if not key.HasField("owner"):
        return {"type": None}
    owner: dict[str, Any] = {
        "id": key.owner.id,
        "name": key.owner.name,
        "role": key.owner.role,
        "created_at": seconds(key.owner.created_at),
    }
    if not key.owner.email:
        return {"type": "service_account", "service_account": owner}
    return {"type": "user", "user": {**owner, "email": key.owner.email}}


def _limit_json(limit: grant_pb2.RateLimit) -> Json:
    return {
        "meter": _METER_NAMES.get(limit.meter, str(limit.meter)),
        "amount": limit.amount,
        "window_seconds": limit.window_s,
        "model": limit.model or None,
    }


def _limits(asked: Asked) -> list[grant_pb2.RateLimit]:
    limits = []
    for limit in asked.objects("limits"):
        meter = limit.text("meter")
        if meter not in _METERS:
            raise refused("limits.meter", f"must be one of {', '.join(_METERS)}")
        limits.append(
            grant_pb2.RateLimit(
                meter=_METERS[meter],
                amount=limit.whole("amount") or 0,
                window_s=min(limit.whole("window_seconds") or 0, 2**31 - 1),
                model=limit.text_or("model") or "",
            )
        )
        limit.finish()
    return limits


def _create_project_key(asked: Asked) -> pb.CreateKeyRequest:
    return pb.CreateKeyRequest(
        name=asked.text("name"),
        kind=grant_pb2.KEY_KIND_PROJECT,
        project_id=asked.path["project_id"],
        expires_in_seconds=expiry(asked),
        models_allowed=asked.texts("models"),
        tags=asked.mapping("tags"),
        rate_limits=_limits(asked),
        scopes=asked.texts("scopes"),
        models_denied=asked.texts("denied_models"),
        networks_allowed=asked.texts("networks"),
    )


def expiry(asked: Asked) -> int:
    """``expires_in_seconds``; 0 where there is none. Nothing expires at once."""
    value = asked.whole("expires_in_seconds")
    if value == 0:
        raise refused("expires_in_seconds", "must be at least 1; leave it out for never")
    return value or 0


def _create_admin_key(asked: Asked) -> pb.CreateKeyRequest:
    return pb.CreateKeyRequest(
        name=asked.text("name"),
        kind=_ADMIN,
        expires_in_seconds=expiry(asked),
        scopes=asked.texts("scopes"),
        owner_id=asked.text_or("user_id") or "",
        networks_allowed=asked.texts("networks"),
    )


def _texts(asked: Asked, name: str) -> pb.KeyTexts | None:
    """A list that may be set, or left as it is."""
    values = asked.texts(name)
    return None if values is None else pb.KeyTexts(values=values)


def _update_key(asked: Asked) -> pb.UpdateKeyRequest:
    """What may be changed of any key."""
    scopes = asked.texts("scopes")
    return pb.UpdateKeyRequest(
        expires_in_seconds=asked.whole("expires_in_seconds"),
        never_expires=asked.flag("never_expires"),
        name=asked.text_or("name"),
        scopes=None if scopes is None else pb.KeyScopes(names=scopes),
        networks_allowed=_texts(asked, "networks"),
    )


def _update_project_key(asked: Asked) -> pb.UpdateKeyRequest:
    request = _update_key(asked)
    request.id, request.project_id = asked.path["api_key_id"], asked.path["project_id"]
    if asked.has("limits"):
        request.rate_limits.CopyFrom(pb.KeyRateLimits(values=_limits(asked)))
    if asked.has("tags"):
        request.tags.CopyFrom(pb.KeyTags(values=asked.mapping("tags")))
    for field, models in (
        (request.models_allowed, _texts(asked, "models")),
        (request.models_denied, _texts(asked, "denied_models")),
    ):
        if models is not None:
            field.CopyFrom(models)
    return request


def _update_admin_key(asked: Asked) -> pb.UpdateKeyRequest:
    request = _update_key(asked)
    request.id, request.kind = asked.path["key_id"], _ADMIN
    return request


def _list_project_keys(asked: Asked) -> pb.ListKeysRequest:
    page = asked.page(20)
    # Whoever owns a key here has access as long as the key is live: "inactive" lists nothing.
    access = asked.filter_word("owner_project_access", "any", "active", "inactive")
    if access == "inactive":
        raise refused("owner_project_access", "must be active or any: keys end with their owners")
    return pb.ListKeysRequest(
        project_id=asked.path["project_id"],
        kind=grant_pb2.KEY_KIND_PROJECT,
        page_size=page.size,
        after=page.after,
        ascending=page.ascending,
    )


def _list_admin_keys(asked: Asked) -> pb.ListKeysRequest:
    page = asked.page(20)
    return pb.ListKeysRequest(
        kind=_ADMIN, page_size=page.size, after=page.after, ascending=page.ascending
    )


def _project_key(asked: Asked) -> pb.GetKeyRequest:
    return pb.GetKeyRequest(
        id=asked.path["api_key_id"],
        kind=grant_pb2.KEY_KIND_PROJECT,
        project_id=asked.path["project_id"],
        live_only=True,
    )


def _revoke_admin_key(asked: Asked) -> pb.RevokeKeyRequest:
    request = pb.RevokeKeyRequest(id=asked.path["key_id"], kind=_ADMIN)
    take_wait(asked, request)
    return request


def _revoke_project_key(asked: Asked) -> pb.RevokeKeyRequest:
    request = pb.RevokeKeyRequest(
        id=asked.path["api_key_id"],
        kind=grant_pb2.KEY_KIND_PROJECT,
        project_id=asked.path["project_id"],
    )
    take_wait(asked, request)
    return request


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        name="admin_api_keys.list",
        method="GET",
        path=ADMIN_KEYS,
        rpc="KeyService/ListKeys",
        request=_list_admin_keys,
        response=pb.ListKeysResponse,
        answer=lambda answer, _: listed(
            [admin_key_json(key) for key in answer.keys], has_more=bool(answer.next_page_token)
        ),
    ),
    Route(
        name="admin_api_keys.create",
        method="POST",
        path=ADMIN_KEYS,
        rpc="KeyService/CreateKey",
        request=_create_admin_key,
        response=pb.CreateKeyResponse,
        answer=lambda answer, _: {**admin_key_json(answer.key), "value": answer.value},
    ),
    Route(
        name="admin_api_keys.get",
        method="GET",
        path=f"{ADMIN_KEYS}/{{key_id}}",
        rpc="KeyService/GetKey",
        request=lambda asked: pb.GetKeyRequest(
            id=asked.path["key_id"], kind=_ADMIN, live_only=True
        ),
        response=pb.GetKeyResponse,
        answer=lambda answer, _: admin_key_json(answer.key),
    ),
    Route(
        name="admin_api_keys.update",
        method="POST",
        path=f"{ADMIN_KEYS}/{{key_id}}",
        rpc="KeyService/UpdateKey",
        request=_update_admin_key,
        response=pb.UpdateKeyResponse,
        answer=lambda answer, _: admin_key_json(answer.key),
    ),
    Route(
        name="admin_api_keys.revoke",
        method="DELETE",
        path=f"{ADMIN_KEYS}/{{key_id}}",
        rpc="KeyService/RevokeKey",
        request=_revoke_admin_key,
        response=pb.RevokeKeyResponse,
        answer=lambda answer, asked: with_wait(
            answer, asked, deleted("organization.admin_api_key.deleted", answer.key.id)
        ),
        wait_s=wait_s,
    ),
    Route(
        name="api_keys.list",
        method="GET",
        path=PROJECT_KEYS,
        rpc="KeyService/ListKeys",
        request=_list_project_keys,
        response=pb.ListKeysResponse,
        answer=lambda answer, _: listed(
            [project_key_json(key) for key in answer.keys], has_more=bool(answer.next_page_token)
        ),
    ),
    Route(
        name="api_keys.create",
        method="POST",
        path=PROJECT_KEYS,
        rpc="KeyService/CreateKey",
        request=_create_project_key,
        response=pb.CreateKeyResponse,
        answer=lambda answer, _: {**project_key_json(answer.key), "value": answer.value},
    ),
    Route(
        name="api_keys.get",
        method="GET",
        path=f"{PROJECT_KEYS}/{{api_key_id}}",
        rpc="KeyService/GetKey",
        request=_project_key,
        response=pb.GetKeyResponse,
        answer=lambda answer, _: project_key_json(answer.key),
    ),
    Route(
        name="api_keys.update",
        method="POST",
        path=f"{PROJECT_KEYS}/{{api_key_id}}",
        rpc="KeyService/UpdateKey",
        request=_update_project_key,
        response=pb.UpdateKeyResponse,
        answer=lambda answer, _: project_key_json(answer.key),
    ),
    Route(
        name="api_keys.revoke",
        method="DELETE",
        path=f"{PROJECT_KEYS}/{{api_key_id}}",
        rpc="KeyService/RevokeKey",
        request=_revoke_project_key,
        response=pb.RevokeKeyResponse,
        answer=lambda answer, asked: with_wait(
            answer, asked, deleted("organization.project.api_key.deleted", answer.key.id)
        ),
        wait_s=wait_s,
    ),
)
