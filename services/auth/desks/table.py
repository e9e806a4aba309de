"""All administrative services, each with the function that adds it to a server."""

from collections.abc import Callable
from typing import Any, Final

from onegate.auth.v1 import (
    key_service_pb2_grpc,
    project_policy_service_pb2_grpc,
    project_service_pb2_grpc,
    service_account_service_pb2_grpc,
)
from services.auth.administration import Administration
from services.auth.desks.keys import KeyService
from services.auth.desks.project_policy import ProjectPolicyService
from services.auth.desks.projects import ProjectService
from services.auth.desks.service_accounts import ServiceAccountService

DESKS: Final[tuple[tuple[Callable[[Any, Any], None], Callable[[Administration], object]], ...]] = (
    (key_service_pb2_grpc.add_KeyServiceServicer_to_server, KeyService),
    (project_service_pb2_grpc.add_ProjectServiceServicer_to_server, ProjectService),
    (
        service_account_service_pb2_grpc.add_ServiceAccountServiceServicer_to_server,
        ServiceAccountService,
    ),
    (
        project_policy_service_pb2_grpc.add_ProjectPolicyServiceServicer_to_server,
        ProjectPolicyService,
    ),
)
