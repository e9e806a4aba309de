"""The table of all administrative routes."""

from typing import Final

from edge.admin import (
    audit,
    data_policies,
    groups,
    key_life,
    keys,
    limits,
    people,
    policies,
    projects,
    roles,
    service_accounts,
    spending,
    usage,
)
from edge.admin.route import AnyRoute

ROUTES: Final[tuple[AnyRoute, ...]] = (
    *projects.ROUTES,
    *keys.ROUTES,
    *key_life.ROUTES,
    *limits.ROUTES,
    *service_accounts.ROUTES,
    *policies.ROUTES,
    *data_policies.ROUTES,
    *spending.ROUTES,
    *people.ROUTES,
    *groups.ROUTES,
    *roles.ROUTES,
    *audit.ROUTES,
    *usage.ROUTES,
)
