"""What an organisation or a project says of all its keys: lifetimes, networks, tags.

A change is pushed like a change of each of their keys.
"""

# ruff: noqa: N802 - methods are named as the contract names them

from dataclasses import replace
from typing import TypeVar

from onegate.auth.v1 import key_policy_service_pb2 as pb
from onegate.auth.v1 import key_policy_service_pb2_grpc
from services.auth import keys
from services.auth.administration import Administration, Context, Deed, refused
from services.auth.desks.levels import keep_level
from services.auth.records import OrganizationRecord, ProjectRecord

L = TypeVar("L", OrganizationRecord, ProjectRecord)


class KeyPolicyService(key_policy_service_pb2_grpc.KeyPolicyServiceServicer):
    """Administers what keys are made under and held to."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    async def GetKeyPolicy(
        self, request: pb.GetKeyPolicyRequest, context: Context
    ) -> pb.GetKeyPolicyResponse:
        """What is said of keys."""

        def work(deed: Deed) -> pb.KeyPolicy:
            if request.project_id:
                return _message(deed.project("projects.key_policy.get", request.project_id))
            deed.allow("key_policy.get")
            return _message(deed.organization())

        return pb.GetKeyPolicyResponse(policy=await self._administration.read(context, work))

    async def UpdateKeyPolicy(
        self, request: pb.UpdateKeyPolicyRequest, context: Context
    ) -> pb.UpdateKeyPolicyResponse:
        """Says it."""

        def work(deed: Deed) -> pb.KeyPolicy:
            if request.project_id:
                operation = "projects.key_policy.update"
                project = deed.active_project(operation, request.project_id)
                return _message(keep_level(deed, project, _changed(project, request)))
            deed.allow("key_policy.update")
            organization = deed.organization()
            return _message(keep_level(deed, organization, _changed(organization, request)))

        return pb.UpdateKeyPolicyResponse(policy=await self._administration.change(context, work))


def _changed(level: L, request: pb.UpdateKeyPolicyRequest) -> L:
    policy = level.policy
    if request.HasField("networks_allowed"):
        networks = keys.checked_networks(request.networks_allowed.values)
        policy = replace(policy, networks=networks)
    if request.HasField("tags"):
        policy = replace(policy, tags=keys.checked_tags(request.tags.values))
    most_s, usual_s = level.key_lifetime_max_s, level.key_lifetime_s
    if request.HasField("max_lifetime_seconds"):
        most_s = _seconds("max_lifetime_seconds", request.max_lifetime_seconds)
    if request.HasField("default_lifetime_seconds"):
        usual_s = _seconds("default_lifetime_seconds", request.default_lifetime_seconds)
    if most_s is not None and usual_s is not None and usual_s > most_s:
        raise refused("default_lifetime_seconds", f"must be at most the longest, {most_s}")
    return replace(level, policy=policy, key_lifetime_max_s=most_s, key_lifetime_s=usual_s)


def _seconds(param: str, value: int) -> int | None:
    if not 0 <= value <= keys.EXPIRES_IN_S_MAX:
        raise refused(param, f"must be 0 (nothing is said) to {keys.EXPIRES_IN_S_MAX}")
    return value or None


def _message(level: OrganizationRecord | ProjectRecord) -> pb.KeyPolicy:
    return pb.KeyPolicy(
        max_lifetime_seconds=level.key_lifetime_max_s or 0,
        default_lifetime_seconds=level.key_lifetime_s or 0,
        networks_allowed=level.policy.networks,
        tags=level.policy.tags,
    )
