"""The official SDK sets spend limits and alerts; they are budgets that hold at once."""

from typing import Any

import openai
import pytest
from openai.resources.admin.organization.organization import Organization

from tests.e2e.test_admin_sdk import client, gateway, http, organization, project_id
from tests.gateway import Gateway

__all__ = ["client", "gateway", "organization", "project_id"]

CHANNEL: Any = {"type": "email", "recipients": ["ops@example.com"], "subject_prefix": "[onegate]"}
MONTHLY: Any = {"currency": "USD", "interval": "month"}


def test_a_limit_is_set_read_changed_and_ended(organization: Organization, project_id: str) -> None:
    of_project = organization.projects.spend_limit
    with pytest.raises(openai.NotFoundError):
        of_project.retrieve(project_id)
    made = of_project.update(project_id, threshold_amount=12_345, **MONTHLY)
    assert (made.object, made.threshold_amount, made.enforcement.status) == (
        "project.spend_limit",
        12_345,
        "inactive",
    )
    assert of_project.update(project_id, threshold_amount=5, **MONTHLY).threshold_amount == 5
    assert of_project.retrieve(project_id).threshold_amount == 5
    nothing = of_project.update(project_id, threshold_amount=0, **MONTHLY)
    assert nothing.enforcement.status == "enforcing"
    assert of_project.delete(project_id).deleted
    with pytest.raises(openai.NotFoundError):
        of_project.delete(project_id)


def test_the_organisation_has_a_limit_of_its_own(organization: Organization) -> None:
    made = organization.spend_limit.update(threshold_amount=100_000, **MONTHLY)
    assert made.object == "organization.spend_limit"
    assert organization.spend_limit.retrieve().threshold_amount == 100_000
    assert organization.spend_limit.delete().object == "organization.spend_limit.deleted"


def test_alerts_are_made_paged_changed_and_ended(
    organization: Organization, project_id: str
) -> None:
    alerts = organization.projects.spend_alerts
    made = [
        alerts.create(project_id, threshold_amount=cents, notification_channel=CHANNEL, **MONTHLY)
        for cents in (100, 200, 300)
    ]
    assert made[0].notification_channel.recipients == ["ops@example.com"]
    assert made[0].notification_channel.subject_prefix == "[onegate]"
    listed = list(alerts.list(project_id, limit=2, order="asc"))
    assert [one.threshold_amount for one in listed] == [100, 200, 300]
    page = alerts.list(project_id, limit=2)
    assert [one.threshold_amount for one in page.data] == [300, 200]
    assert alerts.retrieve(made[1].id, project_id=project_id).threshold_amount == 200
    changed = alerts.update(
        made[1].id,
        project_id=project_id,
        threshold_amount=250,
        notification_channel=CHANNEL,
        **MONTHLY,
    )
    assert (changed.id, changed.threshold_amount) == (made[1].id, 250)
    assert alerts.delete(made[1].id, project_id=project_id).deleted
    assert len(list(alerts.list(project_id))) == 2
    assert list(organization.spend_alerts.list()) == [], "a project's are not the organisation's"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"currency": "EUR"}, "currency"),
        ({"interval": "day"}, "interval"),
        ({"threshold_amount": -1}, "threshold_amount"),
        ({"threshold_amount": 10**12}, "threshold_amount"),
        ({"more": 1}, "more"),
    ],
)
def test_a_limit_that_is_none_is_refused(
    gateway: Gateway, body: dict[str, Any], param: str
) -> None:
    given = {"currency": "USD", "interval": "month", "threshold_amount": 1, **body}
    status, answer = http(gateway, "POST", "/organization/spend_limit", given)
    assert (status, answer["error"]["param"]) == (400, param)


def test_who_set_a_limit_is_on_record(organization: Organization, project_id: str) -> None:
    organization.projects.spend_limit.update(project_id, threshold_amount=7, **MONTHLY)
    organization.projects.spend_limit.delete(project_id)
    kinds = [entry.type for entry in organization.audit_logs.list(limit=2).data]
    assert kinds == ["project.updated", "project.updated"]
