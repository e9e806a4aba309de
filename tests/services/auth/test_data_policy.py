"""What is demanded of whoever is given data: kept, inherited, pushed, and never loosened."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegate.auth.v1 import (
    data_policy_pb2,
    data_policy_service_pb2_grpc,
    project_policy_service_pb2_grpc,
    project_service_pb2,
)
from onegate.auth.v1 import data_policy_service_pb2 as pb
from onegate.auth.v1 import project_policy_service_pb2 as words_pb
from onegate.common.v1 import error_pb2
from runtime.errors import GatewayError, reason_name
from runtime.rpc import unary
from services.auth.data_policy import message_of, policy_of
from services.auth.data_rules import DataRule, Demands, Level, from_fields, to_fields
from services.auth.policy import Policy, from_json, narrow, to_json
from tests.services.auth.ports import until
from tests.services.auth.serving import OPERATOR, Auth, auth, bearer
from tests.services.auth.test_keys import CLASSES, ORGANIZATION, PROJECT

RULES = st.builds(
    DataRule,
    level=st.sampled_from([1, 2, 3]),
    data_class=st.sampled_from(["", *CLASSES]),
    class_min=st.sampled_from(["", *CLASSES]),
    demands=st.builds(
        Demands,
        regions=st.lists(st.sampled_from(["eu", "us"]), unique=True).map(tuple),
        storage_regions=st.lists(st.sampled_from(["eu", "jp"]), unique=True).map(tuple),
        retention_days_max=st.none() | st.integers(0, 99),
        no_training=st.booleans(),
    ),
)


@given(rule=RULES)
def test_a_rule_is_kept_as_it_was_set(rule: DataRule) -> None:
    assert from_fields(to_fields(rule)) == rule
    assert from_json(to_json(Policy(data=(rule,)))).data == (rule,)


def test_a_rule_of_a_newer_program_is_not_ignored() -> None:
    with pytest.raises(ValueError, match="planets"):
        from_fields({"level": "DATA_LEVEL_KEY", "planets": ["earth"]})


@given(parent=st.lists(RULES, max_size=3), child=st.lists(RULES, max_size=3))
def test_a_child_keeps_every_rule_of_its_parent(
    parent: list[DataRule], child: list[DataRule]
) -> None:
    both = narrow(Policy(data=tuple(parent)), Policy(data=tuple(child))).data
    assert set(both) == {*parent, *child}


@given(first=st.lists(RULES, max_size=3), second=st.lists(RULES, max_size=3))
def test_a_version_names_one_policy(first: list[DataRule], second: list[DataRule]) -> None:
    one, two = message_of(first, CLASSES), message_of(second, CLASSES)
    assert (one.version == two.version) == (list(one.rules) == list(two.rules))
    assert bool(one.version) == bool(first)
    if first:
        assert message_of(first, CLASSES[:2]).version != one.version


@pytest.mark.parametrize(
    ("residency", "regions", "storage"),
    [
        ("", (), ()),
        ("GLOBAL", (), ()),
        ("EU_STORAGE_PROCESSING", ("eu",), ("eu",)),
        ("JP_STORAGE", (), ("jp",)),
    ],
)
def test_residency_in_openais_words_is_a_demand_of_the_project(
    residency: str, regions: tuple[str, ...], storage: tuple[str, ...]
) -> None:
    rules = policy_of(ORGANIZATION, replace(PROJECT, residency=residency), (), CLASSES).rules
    found = [(r.level, tuple(r.demands.regions), tuple(r.demands.storage_regions)) for r in rules]
    assert found == ([(Level.DATA_LEVEL_PROJECT, regions, storage)] if storage else [])


@pytest.mark.parametrize(
    ("organization", "project", "levels"),
    [
        ("", "", []),
        ("modified_abuse_monitoring", "organization_default", []),
        ("zero_data_retention", "", [1]),
        ("zero_data_retention", "none", [1]),
        ("", "enhanced_zero_data_retention", [2]),
        ("zero_data_retention", "zero_data_retention", [1, 2]),
    ],
)
def test_zero_retention_in_openais_words_adds_up_and_no_project_takes_it_back(
    organization: str, project: str, levels: list[int]
) -> None:
    found = policy_of(
        replace(ORGANIZATION, retention=organization),
        replace(PROJECT, retention=project),
        (),
        CLASSES,
    )
    assert [rule.level for rule in found.rules] == levels
    assert all(rule.demands.HasField("retention_days_max") for rule in found.rules)
    assert all(rule.demands.retention_days_max == 0 for rule in found.rules)


def demands(data_class: str = "", **fields: Any) -> pb.ClassDemands:
    """One entry."""
    return pb.ClassDemands(data_class=data_class, demands=data_policy_pb2.DataDemands(**fields))


async def update(
    peer: Auth, *entries: pb.ClassDemands, metadata: Any = OPERATOR, **fields: Any
) -> pb.UpdateDataPolicyResponse:
    """Sets what a level says."""
    stub = data_policy_service_pb2_grpc.DataPolicyServiceStub(peer.channel)
    class_min = fields.pop("class_min", "")
    settings = pb.DataPolicySettings(class_min=class_min, demands=entries)
    request = pb.UpdateDataPolicyRequest(settings=settings, **fields)
    answer: pb.UpdateDataPolicyResponse = await unary(
        stub.UpdateDataPolicy, request, timeout_s=5, metadata=metadata
    )
    return answer


@pytest.mark.anyio
async def test_what_every_level_says_reaches_routers_by_push(tmp_path: Path) -> None:
    async with auth(tmp_path) as peer, peer.clients(1) as (client,):
        secret, key = await peer.create()
        assert list((await client.get(secret)).data_policy.classes) == list(CLASSES)
        assert not (await client.get(secret)).data_policy.version
        stub = project_policy_service_pb2_grpc.ProjectPolicyServiceStub(peer.channel)
        word = words_pb.UpdateDataRetentionRequest(type="zero_data_retention")
        await unary(stub.UpdateDataRetention, word, timeout_s=5, metadata=OPERATOR)
        await update(peer, demands(no_training=True))
        await update(peer, demands("internal", regions=["EU"]), project_id=key.project_id)
        said = await update(peer, key_id=key.id, class_min="internal")
        await until(lambda: client.lookup(secret) is None, "the push")
        rules = (await client.get(secret)).data_policy
        assert [rule.level for rule in rules.rules] == [1, 1, 2, 3]
        assert list(rules.rules[2].demands.regions) == ["eu"]
        assert rules == said.effective
        word.project_id, word.type = key.project_id, "enhanced_zero_data_retention"
        await unary(stub.UpdateDataRetention, word, timeout_s=5, metadata=OPERATOR)
        await until(lambda: client.lookup(secret) is None, "the push of the project's word")
        assert len((await client.get(secret)).data_policy.rules) == 5
        permissions = words_pb.ModelPermissions(mode=words_pb.MODEL_PERMISSION_MODE_DENY)
        other = words_pb.UpdateModelPermissionsRequest(
            project_id=key.project_id, permissions=permissions
        )
        await unary(stub.UpdateModelPermissions, other, timeout_s=5, metadata=OPERATOR)
        assert len((await client.get(secret)).data_policy.rules) == 5


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("entries", "class_min", "param"),
    [
        ([demands("secret", no_training=True)], "", "demands[0].data_class"),
        ([demands(regions=["e u"])], "", "demands[0].regions"),
        ([demands(regions=[f"r{n}" for n in range(21)])], "", "demands[0].regions"),
        ([demands(retention_days_max=-1)], "", "demands[0].retention_days_max"),
        ([demands(), demands(no_training=True)], "", "demands[1].data_class"),
        ([], "secret", "class_min"),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_its_place(
    tmp_path: Path, entries: list[pb.ClassDemands], class_min: str, param: str
) -> None:
    async with auth(tmp_path) as peer:
        with pytest.raises(GatewayError) as caught:
            await update(peer, *entries, class_min=class_min)
        assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST
        assert caught.value.param == param


@pytest.mark.anyio
async def test_a_key_of_another_project_is_not_there(tmp_path: Path) -> None:
    async with auth(tmp_path) as peer:
        _, key = await peer.create()
        request = project_service_pb2.CreateProjectRequest(name="other")
        other = await unary(peer.projects.CreateProject, request, timeout_s=5, metadata=OPERATOR)
        admin = bearer(peer.first.admin_key)
        assert (await update(peer, key_id=key.id, metadata=admin)).effective.classes
        for fields in ({"key_id": "key_x"}, {"key_id": key.id, "project_id": other.project.id}):
            with pytest.raises(GatewayError) as caught:
                await update(peer, metadata=admin, **fields)
            assert reason_name(caught.value.reason) == "not_found"
        with pytest.raises(GatewayError) as caught:
            await update(peer, metadata=bearer(peer.first.api_key))
        assert reason_name(caught.value.reason) == "scope_missing"
