"""Where data may go: every demand, every way of not knowing, and that demands only add up."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegate.auth.v1 import data_policy_pb2, grant_pb2
from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.routing.data_rules import (
    EU_MEMBERS,
    FREE,
    UNKNOWN,
    CallData,
    DataHandling,
    call_data,
    objection,
    unmet_demands,
)
from tests.fake_provider import FakeProvider, Reply
from tests.services.router.rig import PRICED, hello, provider, running, settings_in

CLASSES = ("public", "internal", "confidential")
Demands = data_policy_pb2.DataDemands
Rule = data_policy_pb2.DataRule
ORGANIZATION = data_policy_pb2.DATA_LEVEL_ORGANIZATION
PROJECT = data_policy_pb2.DATA_LEVEL_PROJECT
KEY = data_policy_pb2.DATA_LEVEL_KEY
SAFE = DataHandling(regions=("eu",), retention_days=0, training=False)


def policy(*rules: Rule) -> grant_pb2.Grant:
    """A grant under these rules."""
    return grant_pb2.Grant(
        kind=grant_pb2.KEY_KIND_PROJECT,
        data_policy=data_policy_pb2.DataPolicy(
            version="dp-1" if rules else "", classes=CLASSES, rules=rules
        ),
    )


REGIONS = st.lists(st.sampled_from(["eu", "us", "de", "fr", "jp"]), unique=True, max_size=3)
HANDLINGS = st.builds(
    DataHandling,
    regions=REGIONS.map(tuple),
    retention_days=st.none() | st.integers(0, 40),
    training=st.none() | st.booleans(),
)
DEMANDS = st.builds(
    Demands,
    regions=REGIONS,
    storage_regions=REGIONS,
    retention_days_max=st.none() | st.integers(0, 40),
    no_training=st.booleans(),
)
RULES = st.builds(
    Rule,
    level=st.sampled_from([ORGANIZATION, PROJECT, KEY]),
    data_class=st.sampled_from(["", *CLASSES, "gone"]),
    demands=DEMANDS,
    class_min=st.sampled_from(["", "", "", *CLASSES, "gone"]),
)
ROUTINGS = st.none() | st.builds(
    chat_pb2.RoutingPreferences, no_training=st.booleans(), zero_retention=st.booleans()
)


@pytest.mark.parametrize(
    ("demands", "handling", "met"),
    [
        (Demands(), UNKNOWN, True),
        (Demands(regions=["eu"]), UNKNOWN, False),
        (Demands(regions=["eu"]), DataHandling(regions=("eu",)), True),
        (Demands(regions=["eu"]), DataHandling(regions=("de", "fr")), True),
        (Demands(regions=["de"]), DataHandling(regions=("eu",)), False),
        (Demands(regions=["eu"]), DataHandling(regions=("eu", "us")), False),
        (Demands(regions=["eu", "us"]), DataHandling(regions=("eu", "us")), True),
        (Demands(storage_regions=["jp"]), DataHandling(regions=("us",), retention_days=0), True),
        (Demands(storage_regions=["jp"]), DataHandling(regions=("us",), retention_days=1), False),
        (Demands(storage_regions=["jp"]), DataHandling(regions=("us",)), False),
        (Demands(storage_regions=["jp"]), DataHandling(regions=("jp",), retention_days=9), True),
        (Demands(retention_days_max=0), UNKNOWN, False),
        (Demands(retention_days_max=0), DataHandling(retention_days=30), False),
        (Demands(retention_days_max=30), DataHandling(retention_days=30), True),
        (Demands(retention_days_max=0), DataHandling(retention_days=0), True),
        (Demands(no_training=True), UNKNOWN, False),
        (Demands(no_training=True), DataHandling(training=True), False),
        (Demands(no_training=True), DataHandling(training=False), True),
        (Demands(no_training=True), DataHandling(retention_days=0), True),
        (Demands(no_training=True), DataHandling(retention_days=0, training=True), False),
    ],
)
def test_a_demand_is_met_only_by_what_is_known(
    demands: Demands, handling: DataHandling, met: bool
) -> None:
    assert (not unmet_demands(handling, demands)) == met


def test_the_union_has_its_members() -> None:
    assert len(EU_MEMBERS) == 27
    assert not EU_MEMBERS & {"gb", "ch", "no", "us"}


@given(demands=DEMANDS, handling=HANDLINGS)
def test_knowing_less_never_meets_more(demands: Demands, handling: DataHandling) -> None:
    if not unmet_demands(UNKNOWN, demands):
        assert not unmet_demands(handling, demands)
    fewer = DataHandling(regions=handling.regions, retention_days=None, training=handling.training)
    if unmet_demands(handling, demands):
        assert unmet_demands(fewer, demands)


@given(rules=st.lists(RULES, max_size=4), more=RULES, routing=ROUTINGS, handling=HANDLINGS)
def test_another_rule_never_lets_more_through(
    rules: list[Rule],
    more: Rule,
    routing: chat_pb2.RoutingPreferences | None,
    handling: DataHandling,
) -> None:
    before = objection("m", handling, call_data(policy(*rules), "", routing))
    after = objection("m", handling, call_data(policy(*rules, more), "", routing))
    if before is not None:
        assert after is not None


@given(
    rules=st.lists(RULES, max_size=4),
    said=st.sampled_from(["", *CLASSES]),
    routing=ROUTINGS,
    handling=HANDLINGS,
)
def test_a_request_can_only_tighten(
    rules: list[Rule],
    said: str,
    routing: chat_pb2.RoutingPreferences | None,
    handling: DataHandling,
) -> None:
    plain = call_data(policy(*rules), "", None)
    asked = call_data(policy(*rules), said, routing)
    if objection("m", handling, plain) is not None:
        assert objection("m", handling, asked) is not None
    if plain.data_class and asked.data_class:
        assert CLASSES.index(asked.data_class) >= CLASSES.index(plain.data_class)


def test_a_refusal_says_whose_demand_it_was_and_what_is_known_instead() -> None:
    data = call_data(
        policy(
            Rule(level=PROJECT, data_class="internal", demands=Demands(regions=["eu"])),
            Rule(level=KEY, demands=Demands(retention_days_max=7)),
        ),
        "confidential",
        chat_pb2.RoutingPreferences(no_training=True),
    )
    refused = objection("a/m", DataHandling(regions=("us",), retention_days=30), data)
    assert refused is not None
    assert refused.reason == error_pb2.ERROR_REASON_DATA_POLICY
    for words in (
        "the project demands processing in eu (it is us) for internal data",
        "the key demands at most 7 days retention (it is 30 days)",
        "the request demands no training (it is unknown)",
    ):
        assert words in refused.message
    assert objection("a/m", SAFE, data) is None


@pytest.mark.parametrize(
    ("said", "floor", "effective"),
    [
        ("", "", "public"),
        ("internal", "", "internal"),
        ("public", "internal", "internal"),
        ("confidential", "internal", "confidential"),
        ("", "gone", "confidential"),
    ],
)
def test_a_call_is_of_the_highest_class_that_anybody_says(
    said: str, floor: str, effective: str
) -> None:
    grant = policy(Rule(level=PROJECT, class_min=floor, demands=Demands(no_training=True)))
    assert call_data(grant, said, None).data_class == effective


def test_a_rule_of_a_class_that_is_gone_holds_for_all_data() -> None:
    grant = policy(Rule(level=KEY, data_class="gone", demands=Demands(retention_days_max=0)))
    assert len(call_data(grant, "", None).rules) == 1


def test_a_class_that_does_not_exist_is_refused() -> None:
    for grant in (policy(), policy(Rule(level=KEY)), grant_pb2.Grant()):
        with pytest.raises(GatewayError) as caught:
            call_data(grant, "secret", None)
        assert caught.value.reason == error_pb2.ERROR_REASON_INVALID_REQUEST
        assert caught.value.param == "x-onegate-data-class"


def test_nobody_pays_for_what_nobody_demands() -> None:
    for routing in (None, chat_pb2.RoutingPreferences(provider_only=["a"])):
        assert call_data(policy(), "", routing) is FREE
    assert call_data(policy(), "public", None) == CallData(data_class="public")


@pytest.mark.anyio
async def test_a_call_goes_only_where_its_data_may_and_the_row_keeps_the_proof(
    tmp_path: Path,
) -> None:
    async with FakeProvider() as far, FakeProvider() as near:
        settings = settings_in(
            tmp_path,
            provider("far", far, region=("us",), retention_days=30, trains=False),
            provider("near", near, region=("de",), retention_days=0, trains=False),
            provider("dark", far),
        )
        rule = Rule(
            level=PROJECT,
            data_class="confidential",
            demands=Demands(regions=["eu"], retention_days_max=0, no_training=True),
        )
        wishes = chat_pb2.RoutingPreferences(fallback_models=["dark/m", "near/m"])
        confidential = chat_pb2.CallContext(data_class="confidential")
        async with running(settings, PRICED) as rig:
            key = rig.add_key(data_policy=policy(rule).data_policy)
            said = await rig.chat(hello("far/m"), key=key, routing=wishes, context=confidential)
            assert said.served.model == "near/m"
            assert far.chats == []
            near.script(Reply(status=500), Reply(status=500), Reply(status=500))
            failed = await rig.chat(hello("near/m"), key=key, context=confidential)
            assert failed.error is not None
            refused = await rig.chat(hello("far/m"), key=key, context=confidential)
            assert refused.reason == "data_policy"
            assert refused.error is not None
            assert [out.model for out in refused.error.excluded] == ["far/m"]
            wishes = chat_pb2.RoutingPreferences(fallback_models=["near/m"], zero_retention=True)
            zero = await rig.chat(hello("dark/m"), routing=wishes)
            assert zero.served.model == "near/m"
            open_ = await rig.chat(hello("far/m"), key=key)
            assert open_.served.model == "far/m"
            # What was decided for one class of data is not remembered for another.
            again = await rig.chat(hello("far/m"), key=key, context=confidential)
            assert again.reason == "data_policy"
            wishes = chat_pb2.RoutingPreferences(zero_retention=True)
            assert (await rig.chat(hello("far/m"), key=key, routing=wishes)).reason == "data_policy"
            assert len(far.chats) == 1
            records = {r.request_id: r for r in await rig.records(len(near.chats) + 1)}
    by_model = {record.model: record for record in records.values() if record.data.policy_version}
    proof = by_model["near/m"].data
    assert (proof.policy_version, proof.data_class) == ("dp-1", "confidential")
    assert (list(proof.regions), proof.retention_days, proof.training) == (["de"], 0, False)
    assert by_model["far/m"].data.data_class == "public"


@pytest.mark.anyio
async def test_every_row_of_a_key_under_a_policy_keeps_the_proof(tmp_path: Path) -> None:
    """Also those of calls whose decisions are remembered from the first one."""
    async with FakeProvider() as near:
        settings = settings_in(tmp_path, provider("near", near, region=("de",)))
        grant = policy(Rule(level=KEY, class_min="internal", demands=Demands(regions=["eu"])))
        async with running(settings, PRICED) as rig:
            key = rig.add_key(data_policy=grant.data_policy)
            for _ in range(3):
                assert (await rig.chat(hello("near/m"), key=key)).error is None
            proofs = [record.data for record in await rig.records(3)]
    assert {(proof.policy_version, proof.data_class) for proof in proofs} == {("dp-1", "internal")}
    assert all(list(proof.regions) == ["de"] for proof in proofs)
