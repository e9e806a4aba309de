"""Amazon Bedrock's Converse API, one form for the models of many vendors.

URL: ``POST https://bedrock-runtime.{region}.amazonaws.com/model/{modelId}/converse`` and
``…/converse-stream`` (https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html,
version 2023-09-30); ``GET https://bedrock.{region}.amazonaws.com/foundation-models`` and
``/inference-profiles``. Key: a Bedrock API key as a bearer token
(https://docs.aws.amazon.com/bedrock/latest/userguide/api-keys-use.html), or a user's or role's
keys, with which every request is signed (Signature Version 4, service ``bedrock``).

How it differs from OpenAI's dialect: the model stands in the path, and may be a model's id, an
inference profile's, or an ARN; system messages stand beside the turns; turns alternate and hold
blocks that are known by their one member; a cache breakpoint is a block; thoughts carry proofs that
must come back; media are bytes or objects in S3; what only some models can do goes through
``additionalModelRequestFields``; streams are binary; an answer has no id; the input count leaves
out what was cached; there is one answer per call and no seed, penalty, bias or log probability.
"""

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import quote

import msgspec

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from services.router.providers import bedrock_blocks, bedrock_messages, bedrock_models
from services.router.providers.aws_sigv4 import AwsSigner, credential_of
from services.router.providers.base import (
    Answer,
    Exchange,
    Headers,
    ListedModel,
    Signer,
    UpstreamRequest,
)
from services.router.providers.bedrock_models import PROVIDER, family
from services.router.providers.bedrock_outcomes import (
    FINISH_REASONS,
    answered_tier,
    error,
    extra,
    served_by,
)
from services.router.providers.bedrock_stream import BedrockStream
from services.router.providers.foreign import (
    MALFORMED,
    Fields,
    Json,
    Rule,
    copy_fields,
    given_object,
    invalid,
    protocol_error,
    read_object,
    unsupported,
)

FIELDS: Final[Fields] = {
    "model": Rule.DERIVED,
    "messages": Rule.DERIVED,
    "tools": Rule.DERIVED,
    "tool_choice": Rule.DERIVED,
    "parallel_tool_calls": Rule.DERIVED,
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": Rule.DERIVED,
    "min_p": None,
    "presence_penalty": None,
    "frequency_penalty": None,
    "seed": None,
    "stop": "stopSequences",
    "logit_bias": None,
    "output_tokens_max": "maxTokens",
    "choices": None,
    "response_format": Rule.DERIVED,
    "thinking": Rule.DERIVED,
    "logprobs": None,
    "top_logprobs": None,
    "output_modalities": Rule.DERIVED,
    "audio_output": None,
    "stream": Rule.DERIVED,
    "stream_usage": Rule.ACCEPTED,
    "service_tier": Rule.DERIVED,
    "store": Rule.ACCEPTED,
    "verbosity": None,
    "prediction": None,
    "web_search_options_json": None,
    "prompt_cache_key": Rule.ACCEPTED,
    "prompt_cache_retention": None,
    "metadata": Rule.ACCEPTED,
    "end_user": Rule.ACCEPTED,
    "safety_identifier": Rule.ACCEPTED,
    "extra_json": Rule.DERIVED,
    "routing": Rule.ACCEPTED,
    "context": Rule.ACCEPTED,
    "native": Rule.ACCEPTED,
    "legacy_output_tokens_max": Rule.ACCEPTED,
    "legacy_functions": Rule.ACCEPTED,
}
"""What becomes of every field of a request; names are those of ``inferenceConfig``. ``metadata`` is
kept with the usage row: ``requestMetadata``, which takes fewer characters, can be added."""

EXTRA: Final = frozenset(
    {
        "additionalModelResponseFieldPaths",
        "guardrailConfig",
        "performanceConfig",
        "promptVariables",
        "requestMetadata",
    }
)
"""Fields of Converse that the contract does not name and that callers may add to theirs.
``additionalModelRequestFields``, ``inferenceConfig`` and ``outputConfig`` may be added, too; what
the contract says wins."""

SERVICE_TIERS: Final[Mapping[str, str]] = {
    "auto": "",
    "default": "default",
    "flex": "flex",
    "priority": "priority",
    "reserved": "reserved",
}
"""https://docs.aws.amazon.com/bedrock/latest/userguide/service-tiers-inference.html; empty for
Bedrock's own choice."""

_SERVICE: Final = "bedrock"
_RUNTIME: Final = "://bedrock-runtime"
_TEXT: Final = "TEXT"
_ON_DEMAND: Final = "ON_DEMAND"
_NO_CHAT: Final = ("embed", "rerank", "stability.", "twelvelabs.")
_ENCODER: Final = msgspec.json.Encoder()


class BedrockWire:
    """How Bedrock speaks."""

    dialect = chat_pb2.DIALECT_UNSPECIFIED
    native = False
    base_url = ""

    def authorize(self, secret: str) -> Headers | Signer:
        """An API key as it is; with a user's or role's keys every request is signed. Nothing is
        said without a secret, for an address that signs by itself.
        """
        credential = credential_of(secret)
        if credential is not None:
            return AwsSigner(credential=credential, service=_SERVICE).sign
        return [("authorization", f"Bearer {secret}")] if secret else []

    def request(self, exchange: Exchange) -> UpstreamRequest:
        """The call. Raises UNSUPPORTED_PARAMETER or INVALID_REQUEST."""
        request, model = exchange.request, exchange.model
        body: Json = {}
        config: Json = {}
        more: Json = {}
        output: Json = {}
        into = {
            "additionalModelRequestFields": more,
            "inferenceConfig": config,
            "outputConfig": output,
        }
        _extra(request, body, into)
        copy_fields(request, FIELDS, config, PROVIDER)
        bedrock_models.check_sampling(config, model)
        _conversation(request, model, body)
        if request.HasField("top_k"):
            bedrock_models.put_top_k(more, request.top_k, model)
        if request.HasField("thinking"):
            more.update(bedrock_models.thinking(request, model))
        _form(request, output)
        if tier := _service_tier(request.service_tier):
            body["serviceTier"] = {"type": tier}
        body.update({key: value for key, value in into.items() if value})
        operation = "converse-stream" if request.stream else "converse"
        return UpstreamRequest(
            method="POST",
            path=f"/model/{quote(model, safe='')}/{operation}",
            headers=[("content-type", "application/json")],
            body=_ENCODER.encode(body),
        )

    def response(self, exchange: Exchange, body: bytes) -> Answer:
        """A whole answer."""
        told = read_object(body, PROVIDER)
        try:
            return _answer(told, exchange.model)
        except MALFORMED as exc:
            raise protocol_error(PROVIDER, "answered with something that is no answer") from exc

    def stream(self, exchange: Exchange) -> BedrockStream:
        """A decoder for one streamed answer."""
        return BedrockStream(exchange.model)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> GatewayError:
        """What an error means: its name, or its status when nothing names it."""
        return error(status, headers, body)

    def models_request(self) -> UpstreamRequest | None:
        """The runtime's address has no list; see :meth:`lists`."""
        return None

    def lists(self, base_url: str) -> Sequence[tuple[str, UpstreamRequest]]:
        """The models that are called by their own ids, and the inference profiles by which others
        are called (https://docs.aws.amazon.com/bedrock/latest/APIReference/API_ListFoundationModels.html,
        …/API_ListInferenceProfiles.html). Both are served beside the runtime.
        """
        place = base_url.replace(_RUNTIME, "://bedrock", 1)
        paths = ("/foundation-models?byOutputModality=TEXT", "/inference-profiles?maxResults=1000")
        return [
            (place, UpstreamRequest(method="GET", path=path, headers=[], body=b""))
            for path in paths
        ]

    def models(self, body: bytes) -> list[ListedModel]:
        """The models of one of the lists that write text."""
        page = read_object(body, PROVIDER)
        try:
            if "modelSummaries" in page:
                return [_listed(each) for each in page["modelSummaries"] if _writes_text(each)]
            return [_profile(each) for each in page["inferenceProfileSummaries"] if _serves(each)]
        except MALFORMED as exc:
            raise protocol_error(PROVIDER, "answered with something that is no list") from exc


WIRE: Final = BedrockWire()


def _conversation(request: chat_pb2.ChatRequest, model: str, body: Json) -> None:
    """Who said what, and the tools."""
    row = family(model)
    conversation = bedrock_messages.Conversation(row)
    for index, message in enumerate(request.messages):
        conversation.add(message, index)
    body["messages"] = conversation.turns
    if conversation.system:
        body["system"] = conversation.system
    if tools := bedrock_messages.tool_config(request, row, conversation.turns):
        body["toolConfig"] = tools


def _form(request: chat_pb2.ChatRequest, output: Json) -> None:
    """What the answer is made of
    (https://docs.aws.amazon.com/bedrock/latest/userguide/structured-output.html).
    """
    wanted = request.response_format
    if wanted.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT:
        hint = "Ask for `json_schema` and give the schema."
        raise unsupported("response_format", PROVIDER, hint)
    if wanted.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
        given_object(wanted.schema, "response_format.json_schema.schema")
        schema: Json = {"schema": wanted.schema.decode()}
        if wanted.name:
            schema["name"] = wanted.name
        if wanted.description:
            schema["description"] = wanted.description
        output["textFormat"] = {"type": "json_schema", "structure": {"jsonSchema": schema}}
    for modality in request.output_modalities:
        if modality != chat_pb2.OUTPUT_MODALITY_TEXT:
            raise unsupported("modalities", PROVIDER, "It answers in text only.")


def _service_tier(wanted: str) -> str:
    """Bedrock's word for the service tier; empty for its own choice."""
    if wanted and wanted not in SERVICE_TIERS:
        raise unsupported("service_tier", PROVIDER)
    return SERVICE_TIERS.get(wanted, "")


def _extra(request: chat_pb2.ChatRequest, body: Json, into: Mapping[str, Json]) -> None:
    """Adds the caller's additional fields."""
    for key, value in given_object(request.extra_json or b"{}", "extra").items():
        if key in EXTRA:
            body[key] = value
        elif key not in into:
            raise unsupported(key, PROVIDER)
        elif not isinstance(value, dict):
            raise invalid(key, f"`{key}` must be a JSON object.")
        else:
            into[key].update(value)


def _answer(told: Json, model: str) -> Answer:
    """An answer as the contract has it."""
    parts = bedrock_blocks.parts(told["output"]["message"]["content"])
    reason = str(told["stopReason"])
    tier = answered_tier(told)
    choice = chat_pb2.Choice(
        message=content_pb2.Message(role=content_pb2.ROLE_ASSISTANT, parts=parts),
        finish_reason=FINISH_REASONS.get(reason, chat_pb2.FINISH_REASON_STOP),
        native_finish_reason=reason,
    )
    answer = chat_pb2.ChatAnswer(
        model=served_by(told, model), service_tier=tier, choices=[choice], extra_json=extra(told)
    )
    return Answer(
        event=chat_pb2.ChatEvent(answer=answer),
        usage=bedrock_blocks.usage(told.get("usage") or {}, tier),
        finish_reason=reason,
        upstream_id="",
        output_bytes=sum(map(bedrock_blocks.output_bytes, parts)),
    )


def _writes_text(model: Json) -> bool:
    """Whether a foundation model is called by its own id and writes text."""
    return _TEXT in model["outputModalities"] and _ON_DEMAND in model["inferenceTypesSupported"]


def _listed(model: Json) -> ListedModel:
    """A foundation model."""
    return ListedModel(
        id=model["modelId"],
        owner=str(model.get("providerName") or "").lower(),
        name=model.get("modelName") or "",
    )


def _serves(profile: Json) -> bool:
    """Whether a profile is in use and may lead to a model that writes text: it does not say."""
    name = profile["inferenceProfileId"]
    return profile.get("status") == "ACTIVE" and not any(word in name for word in _NO_CHAT)


def _profile(profile: Json) -> ListedModel:
    """An inference profile. One that a customer made is called by its ARN."""
    own = profile.get("type") == "APPLICATION"
    return ListedModel(
        id=profile["inferenceProfileArn" if own else "inferenceProfileId"],
        name=profile.get("inferenceProfileName") or "",
    )
