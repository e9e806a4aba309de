"""The table of all administrative routes."""

from typing import Final

from edge.admin import keys, projects
from edge.admin.route import AnyRoute

ROUTES: Final[tuple[AnyRoute, ...]] = (*projects.ROUTES, *keys.ROUTES)
