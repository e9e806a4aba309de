"""What models on Replicate take, and a conversation in their words.

Replicate has no chat: each model has inputs of its own, which its page lists under "API"
(https://replicate.com/openai/gpt-4o-mini/api), and Replicate drops an input that a model does not
have without a word. So only inputs that are known are sent: a family's, by the owner of the model;
of any other model nothing but its ``prompt``, which all language models have. Whatever else a
model takes, a caller gives under the model's own name in ``input``.

A conversation becomes a ``prompt`` and, where there is one, a system prompt. One question is sent
as it is. Several turns are sent as a transcript (``User: …``, ``Assistant: …``), unless the family
takes messages. Tools, audio and files have no place there.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from onegate.common.v1 import content_pb2
from onegate.router.v1 import chat_pb2
from services.router.providers.foreign import (
    Json,
    given_object,
    invalid,
    sent_back,
    unsupported,
)

PROVIDER: Final = "Replicate"

ROLES: Final[Mapping[int, str]] = {
    content_pb2.ROLE_SYSTEM: "system",
    content_pb2.ROLE_DEVELOPER: "system",
    content_pb2.ROLE_USER: "user",
    content_pb2.ROLE_ASSISTANT: "assistant",
}
_SPEAKERS: Final = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """A family's inputs. An empty name is an input that it does not have."""

    system: str = ""
    messages: str = ""
    """Takes a list of messages, in which several turns are sent."""
    images: str = ""
    """Takes pictures, as a list of URLs."""
    image: str = ""
    """Takes one picture, as a URL."""
    stop: str = ""
    """Takes ends of the answer, in one string, parted by commas."""
    effort: str = ""
    budget: str = ""
    thinks: str = ""
    """Must be true for a budget of thinking to count."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Fields of ``ChatRequest`` that it takes as they are."""


FAMILIES: Final[Mapping[str, Inputs]] = {
    # https://replicate.com/openai/gpt-4o-mini/api, https://replicate.com/openai/gpt-5.1/api
    "openai/": Inputs(
        system="system_prompt",
        messages="messages",
        images="image_input",
        effort="reasoning_effort",
        fields={
            "temperature": "temperature",
            "top_p": "top_p",
            "presence_penalty": "presence_penalty",
            "frequency_penalty": "frequency_penalty",
            "output_tokens_max": "max_completion_tokens",
            "verbosity": "verbosity",
        },
    ),
    # https://replicate.com/anthropic/claude-4-sonnet/api
    "anthropic/": Inputs(
        system="system_prompt",
        image="image",
        budget="thinking_budget_tokens",
        thinks="extended_thinking",
        fields={"output_tokens_max": "max_tokens"},
    ),
    # https://replicate.com/google/gemini-2.5-flash/api
    "google/": Inputs(
        system="system_instruction",
        images="images",
        budget="thinking_budget",
        fields={
            "temperature": "temperature",
            "top_p": "top_p",
            "output_tokens_max": "max_output_tokens",
        },
    ),
    # https://replicate.com/meta/llama-2-70b-chat/api
    "meta/llama-2": Inputs(
        system="system_prompt",
        stop="stop_sequences",
        fields={
            "temperature": "temperature",
            "top_p": "top_p",
            "top_k": "top_k",
            "seed": "seed",
            "output_tokens_max": "max_new_tokens",
        },
    ),
    # https://replicate.com/meta/meta-llama-3.1-405b-instruct/api
    "meta/": Inputs(
        system="system_prompt",
        fields={
            "temperature": "temperature",
            "top_p": "top_p",
            "presence_penalty": "presence_penalty",
            "frequency_penalty": "frequency_penalty",
            "output_tokens_max": "max_tokens",
        },
    ),
}
"""By the beginning of ``owner/name``; the first that fits counts."""

ANY: Final = Inputs()
"""What is known of every other model: that it takes a ``prompt``."""


def inputs_of(model: str) -> Inputs:
    """What a model takes, by its name."""
    return next((inputs for start, inputs in FAMILIES.items() if model.startswith(start)), ANY)


def conversation(messages: Sequence[content_pb2.Message], inputs: Inputs) -> Json:
    """All messages. Raises INVALID_REQUEST or UNSUPPORTED_PARAMETER."""
    turns: list[tuple[str, str]] = []
    pictures: list[str] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = ROLES.get(message.role)
        if role is None:
            raise unsupported(f"{where}.role", PROVIDER, "It has no tools.")
        if message.name:
            raise unsupported(f"{where}.name", PROVIDER)
        if sent_back(given_object(message.extra_json or b"{}", where), where, PROVIDER):
            raise unsupported(where, PROVIDER, "It takes no other provider's parts.")
        turns.append((role, _text(message, where, pictures)))
    spoken = [turn for turn in turns if turn[0] != "system" or not inputs.system]
    made = _spoken(spoken, turns, inputs)
    system = "\n\n".join(text for role, text in turns if role == "system")
    if inputs.system and system and "prompt" in made:
        made[inputs.system] = system
    if pictures:
        _show(pictures, made, inputs)
    return made


def think(asked: chat_pb2.Thinking, inputs: Inputs) -> Json:
    """How hard it thinks. Raises UNSUPPORTED_PARAMETER where the family cannot be told."""
    if asked.HasField("include_thoughts") and not asked.include_thoughts:
        raise unsupported("thinking.include_thoughts", PROVIDER)
    if asked.HasField("budget_tokens"):
        if not inputs.budget:
            raise unsupported("thinking.budget_tokens", PROVIDER)
        made: Json = {inputs.budget: asked.budget_tokens}
        return made | {inputs.thinks: True} if inputs.thinks else made
    off = asked.effort == chat_pb2.THINKING_EFFORT_NONE or (
        asked.HasField("enabled") and not asked.enabled
    )
    if asked.effort and inputs.effort:
        name = chat_pb2.ThinkingEffort.Name(asked.effort)
        return {inputs.effort: name.removeprefix("THINKING_EFFORT_").lower()}
    if inputs.thinks and (off or asked.enabled):
        return {inputs.thinks: not off}
    if off and inputs.budget:
        return {inputs.budget: 0}
    if asked.effort or asked.HasField("enabled"):
        raise unsupported("reasoning_effort" if asked.effort else "thinking", PROVIDER)
    return {}


def _spoken(
    spoken: Sequence[tuple[str, str]], turns: Sequence[tuple[str, str]], inputs: Inputs
) -> Json:
    """What was said, as the one question that it is, as messages, or as a transcript."""
    if len(spoken) == 1 and spoken[0][0] == "user":
        return {"prompt": spoken[0][1]}
    if inputs.messages:
        return {inputs.messages: [{"role": role, "content": text} for role, text in turns]}
    said = [f"{_SPEAKERS[role]}: {text}" for role, text in spoken]
    return {"prompt": "\n\n".join([*said, "Assistant:"])}


def _show(pictures: Sequence[str], made: Json, inputs: Inputs) -> None:
    """The pictures, beside the question."""
    if "prompt" not in made:
        raise unsupported("messages", PROVIDER, "It takes pictures beside a single question only.")
    if inputs.images:
        made[inputs.images] = list(pictures)
    elif inputs.image and len(pictures) == 1:
        made[inputs.image] = pictures[0]
    else:
        raise unsupported("messages", PROVIDER, "This model takes fewer pictures, or none.")


def _text(message: content_pb2.Message, where: str, pictures: list[str]) -> str:
    """A message's text; its pictures are added to ``pictures``."""
    texts: list[str] = []
    for number, part in enumerate(message.parts):
        place = f"{where}.content[{number}]"
        for key in given_object(part.extra_json or b"{}", place):
            # Citations that come back say nothing new; nothing else is known.
            if key != "citations" and not part.HasField("thinking"):
                raise unsupported(f"{place}.{key}", PROVIDER)
        match part.WhichOneof("content"):
            case "text":
                texts.append(part.text.text)
            case "refusal":
                texts.append(part.refusal.text)
            case "image":
                pictures.append(_url(part.image.source, place))
            case "thinking":
                # What a model thought before is no part of what it said.
                pass
            case kind:
                raise unsupported(place, PROVIDER, f"It takes no {kind or 'empty'} parts.")
    return "\n".join(texts)


def _url(source: content_pb2.MediaSource, where: str) -> str:
    """Where a picture is, or the picture itself
    (https://replicate.com/docs/topics/predictions/input-files).
    """
    match source.WhichOneof("source"):
        case "url":
            return source.url
        case "data" if source.media_type:
            return f"data:{source.media_type};base64,{base64.b64encode(source.data).decode()}"
        case _:
            raise invalid(where, f"`{where}` needs a URL, or data with a media type.")
