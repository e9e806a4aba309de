"""All administrative services, each with the function that adds it to a server."""

from collections.abc import Callable
from typing import Any, Final

from onegate.auth.v1 import (
    audit_service_pb2_grpc,
    data_policy_service_pb2_grpc,
    group_service_pb2_grpc,
    invite_service_pb2_grpc,
    key_policy_service_pb2_grpc,
    key_service_pb2_grpc,
    organization_service_pb2_grpc,
    project_group_service_pb2_grpc,
    project_policy_service_pb2_grpc,
    project_service_pb2_grpc,
    project_user_service_pb2_grpc,
    rate_limit_service_pb2_grpc,
    role_service_pb2_grpc,
    service_account_service_pb2_grpc,
    sign_in_service_pb2_grpc,
    spending_access_service_pb2_grpc,
    usage_access_service_pb2_grpc,
    user_service_pb2_grpc,
)
from services.auth.administration import Administration
from services.auth.desks.audit import AuditService
from services.auth.desks.data_policy import DataPolicyService
from services.auth.desks.groups import GroupService, ProjectGroupService
from services.auth.desks.invites import InviteService
from services.auth.desks.key_policy import KeyPolicyService
from services.auth.desks.keys import KeyService
from services.auth.desks.organizations import OrganizationService
from services.auth.desks.project_policy import ProjectPolicyService
from services.auth.desks.projects import ProjectService
from services.auth.desks.rate_limits import RateLimitService
from services.auth.desks.roles import RoleService
from services.auth.desks.service_accounts import ServiceAccountService
from services.auth.desks.sign_in import SignInService
from services.auth.desks.spending import SpendingAccessService
from services.auth.desks.usage_access import UsageAccessService
from services.auth.desks.users import ProjectUserService, UserService

DESKS: Final[tuple[tuple[Callable[[Any, Any], None], Callable[[Administration], object]], ...]] = (
    (key_service_pb2_grpc.add_KeyServiceServicer_to_server, KeyService),
    (key_policy_service_pb2_grpc.add_KeyPolicyServiceServicer_to_server, KeyPolicyService),
    (rate_limit_service_pb2_grpc.add_RateLimitServiceServicer_to_server, RateLimitService),
    (project_service_pb2_grpc.add_ProjectServiceServicer_to_server, ProjectService),
    (
        service_account_service_pb2_grpc.add_ServiceAccountServiceServicer_to_server,
        ServiceAccountService,
    ),
    (
        project_policy_service_pb2_grpc.add_ProjectPolicyServiceServicer_to_server,
        ProjectPolicyService,
    ),
    (data_policy_service_pb2_grpc.add_DataPolicyServiceServicer_to_server, DataPolicyService),
    (user_service_pb2_grpc.add_UserServiceServicer_to_server, UserService),
    (project_user_service_pb2_grpc.add_ProjectUserServiceServicer_to_server, ProjectUserService),
    (invite_service_pb2_grpc.add_InviteServiceServicer_to_server, InviteService),
    (group_service_pb2_grpc.add_GroupServiceServicer_to_server, GroupService),
    (project_group_service_pb2_grpc.add_ProjectGroupServiceServicer_to_server, ProjectGroupService),
    (role_service_pb2_grpc.add_RoleServiceServicer_to_server, RoleService),
    (organization_service_pb2_grpc.add_OrganizationServiceServicer_to_server, OrganizationService),
    (
        spending_access_service_pb2_grpc.add_SpendingAccessServiceServicer_to_server,
        SpendingAccessService,
    ),
    (sign_in_service_pb2_grpc.add_SignInServiceServicer_to_server, SignInService),
    (audit_service_pb2_grpc.add_AuditServiceServicer_to_server, AuditService),
    (
        usage_access_service_pb2_grpc.add_UsageAccessServiceServicer_to_server,
        UsageAccessService,
    ),
)
