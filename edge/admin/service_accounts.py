"""Service accounts in OpenAI's shape
(https://platform.openai.com/docs/api-reference/project-service-accounts). Pure.
"""

from typing import Final

from edge.admin.asked import Asked
from edge.admin.keys import expiry
from edge.admin.projects import PROJECT
from edge.admin.route import AnyRoute, Json, Route, deleted, listed, seconds, seconds_or_none
from onegate.auth.v1 import key_service_pb2
from onegate.auth.v1 import service_account_service_pb2 as pb

ACCOUNTS: Final = f"{PROJECT}/service_accounts"
ACCOUNT: Final = f"{ACCOUNTS}/{{service_account_id}}"
_SERVICE: Final = "ServiceAccountService"


def account_json(account: pb.ServiceAccount) -> Json:
    """One service account."""
    return {
        "id": account.id,
        "object": "organization.project.service_account",
        "name": account.name,
        "role": account.role,
        "created_at": seconds(account.created_at),
    }


def _key_json(key: key_service_pb2.Key, value: str) -> Json:
    return {
        "id": key.id,
        "object": "organization.project.service_account.api_key",
        "name": key.name,
        "value": value,
        "created_at": seconds(key.created_at),
        "expires_at": seconds_or_none(key, "expires_at"),
    }


def _created(answer: pb.CreateServiceAccountResponse, _asked: Asked) -> Json:
    key = _key_json(answer.key, answer.value) if answer.HasField("key") else None
    return {**account_json(answer.service_account), "api_key": key}


def _create(asked: Asked) -> pb.CreateServiceAccountRequest:
    return pb.CreateServiceAccountRequest(
        project_id=asked.path["project_id"],
        name=asked.text("name"),
        account_only=asked.flag("create_service_account_only"),
        expires_in_seconds=expiry(asked),
    )


def _create_key(asked: Asked) -> pb.CreateServiceAccountKeyRequest:
    return pb.CreateServiceAccountKeyRequest(
        project_id=asked.path["project_id"],
        service_account_id=asked.path["service_account_id"],
        name=asked.text_or("name") or "",
        expires_in_seconds=expiry(asked),
        scopes=asked.texts("scopes"),
    )


def _update(asked: Asked) -> pb.UpdateServiceAccountRequest:
    return pb.UpdateServiceAccountRequest(
        project_id=asked.path["project_id"],
        id=asked.path["service_account_id"],
        name=asked.text_or("name"),
        role=asked.text_or("role"),
    )


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        name="service_accounts.list",
        method="GET",
        path=ACCOUNTS,
        rpc=f"{_SERVICE}/ListServiceAccounts",
        request=lambda asked: pb.ListServiceAccountsRequest(
            project_id=asked.path["project_id"], page=asked.page(20)
        ),
        response=pb.ListServiceAccountsResponse,
        answer=lambda answer, _: listed(
            [account_json(row) for row in answer.service_accounts], has_more=answer.has_more
        ),
    ),
    Route(
        name="service_accounts.create",
        method="POST",
        path=ACCOUNTS,
        rpc=f"{_SERVICE}/CreateServiceAccount",
        request=_create,
        response=pb.CreateServiceAccountResponse,
        answer=_created,
    ),
    Route(
        name="service_accounts.get",
        method="GET",
        path=ACCOUNT,
        rpc=f"{_SERVICE}/GetServiceAccount",
        request=lambda asked: pb.GetServiceAccountRequest(
            project_id=asked.path["project_id"], id=asked.path["service_account_id"]
        ),
        response=pb.GetServiceAccountResponse,
        answer=lambda answer, _: account_json(answer.service_account),
    ),
    Route(
        name="service_accounts.update",
        method="POST",
        path=ACCOUNT,
        rpc=f"{_SERVICE}/UpdateServiceAccount",
        request=_update,
        response=pb.UpdateServiceAccountResponse,
        answer=lambda answer, _: account_json(answer.service_account),
    ),
    Route(
        name="service_accounts.delete",
        method="DELETE",
        path=ACCOUNT,
        rpc=f"{_SERVICE}/DeleteServiceAccount",
        request=lambda asked: pb.DeleteServiceAccountRequest(
            project_id=asked.path["project_id"], id=asked.path["service_account_id"]
        ),
        response=pb.DeleteServiceAccountResponse,
        answer=lambda answer, _: deleted("organization.project.service_account.deleted", answer.id),
    ),
    Route(
        name="service_accounts.api_keys.create",
        method="POST",
        path=f"{ACCOUNT}/api_keys",
        rpc=f"{_SERVICE}/CreateServiceAccountKey",
        request=_create_key,
        response=pb.CreateServiceAccountKeyResponse,
        answer=lambda answer, _: _key_json(answer.key, answer.value),
    ),
)
