"""The table of all administrative routes."""

from typing import Final

from edge.admin import keys, policies, projects, service_accounts
from edge.admin.route import AnyRoute

ROUTES: Final[tuple[AnyRoute, ...]] = (
    *projects.ROUTES,
    *keys.ROUTES,
    *service_accounts.ROUTES,
    *policies.ROUTES,
)
