"""What a call is like, as far as a glance at it tells: for policies that choose a model by it.

Pure, and quick: of a long prompt only the beginning and the end are looked at.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from onegate.router.v1 import chat_pb2
from runtime.route_settings import PolicyRule
from services.router.limits import bounds

SAMPLE_BYTES: Final = 4096
"""How much of a prompt is looked at, at each of its ends."""
WORDS_MIN: Final = 3
"""So many common words of a language must be found to believe in it."""
SIGNS_MIN: Final = 2
"""So many signs of code must be found, where no fence says it."""

_ESCAPED: Final = re.compile(r"\\u([0-9a-fA-F]{4})")
_CODE: Final = re.compile(
    r"\bdef \w+\(|\bclass \w+[:({]|\bfunction \w*\(|\bimport \w+|#include\b|\breturn\b[^.]*;"
    r"|\bpublic (?:static|class)\b|\bSELECT\b.+\bFROM\b|=> *\{|\bconst \w+ =|\bfn \w+\(|\(\) *\{"
)
_WORD: Final = re.compile(r"[^\W\d_]+")
_SCRIPTS: Final = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af]")),
    ("zh", re.compile(r"[\u4e00-\u9fff]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
)
"""Scripts that tell a language; kana before Han, since Japanese has both."""
_LETTERS_MIN: Final = 3
_WORDS: Final = {
    "en": "the and is of to that what how with this please for you are",
    "de": "der die das und ist nicht ein eine ich wie mit für bitte den auf",
    "fr": "le la les et est une des que pour dans pas vous avec sur je",
    "es": "el los las y es una que por para con como del está más qué",
    "it": "il gli e è una che per di con come non sono della nel più",
    "pt": "o os as e é uma que por para com como não do da mais você",
    "nl": "de het een en is niet van ik je dat voor met op hoe zijn",
}
_COMMON: Final = {language: frozenset(words.split()) for language, words in _WORDS.items()}
"""Words that hardly any text of a language does without."""


@dataclass(frozen=True)
class Features:
    """A call as a policy sees it."""

    request: chat_pb2.ChatRequest

    @cached_property
    def input_tokens(self) -> int:
        """About how many."""
        return bounds.input_tokens_guess(self.request)

    @cached_property
    def needs(self) -> frozenset[int]:
        """What it needs beside text, as ``ChatFeature``."""
        request = self.request
        if request.HasField("native"):
            return frozenset(request.native.features)
        found = {
            _BY_PART[kind]
            for message in request.messages
            for part in message.parts
            if (kind := part.WhichOneof("content") or "") in _BY_PART
        }
        if request.tools:
            found.add(chat_pb2.CHAT_FEATURE_TOOLS)
        if request.response_format.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
            found.add(chat_pb2.CHAT_FEATURE_JSON_SCHEMA)
        return frozenset(found)

    @cached_property
    def sample(self) -> str:
        """Some of its text."""
        request = self.request
        if request.HasField("native"):
            body = request.native.body
        else:
            body = " ".join(
                part.text.text for message in request.messages for part in message.parts
            ).encode()
        if len(body) > 2 * SAMPLE_BYTES:
            body = body[:SAMPLE_BYTES] + b" " + body[-SAMPLE_BYTES:]
        text = body.decode(errors="replace")
        return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)

    @cached_property
    def code(self) -> bool:
        """Whether there is a program in it."""
        return "```" in self.sample or len(_CODE.findall(self.sample)) >= SIGNS_MIN

    @cached_property
    def language(self) -> str:
        """The language of its text, ISO 639-1; empty when it cannot be told."""
        for language, letters in _SCRIPTS:
            if len(letters.findall(self.sample)) >= _LETTERS_MIN:
                return language
        words = _WORD.findall(self.sample.lower())
        counts = {
            language: sum(word in common for word in words) for language, common in _COMMON.items()
        }
        best = max(counts, key=lambda language: counts[language])
        return best if counts[best] >= WORDS_MIN else ""


def holds(rule: PolicyRule, features: Features) -> bool:
    """Whether the call is one for which the rule is."""
    if features.input_tokens < rule.input_tokens_min:
        return False
    if rule.input_tokens_max and features.input_tokens > rule.input_tokens_max:
        return False
    for wanted, feature in _wanted(rule):
        if wanted is not None and wanted != (feature in features.needs):
            return False
    if rule.code is not None and rule.code != features.code:
        return False
    return not rule.language or features.language in rule.language


def _wanted(rule: PolicyRule) -> Iterable[tuple[bool | None, int]]:
    yield rule.tools, chat_pb2.CHAT_FEATURE_TOOLS
    yield rule.images, chat_pb2.CHAT_FEATURE_IMAGE_INPUT
    yield rule.audio, chat_pb2.CHAT_FEATURE_AUDIO_INPUT
    yield rule.files, chat_pb2.CHAT_FEATURE_FILE_INPUT
    yield rule.json_schema, chat_pb2.CHAT_FEATURE_JSON_SCHEMA


_BY_PART: Final = {
    "image": chat_pb2.CHAT_FEATURE_IMAGE_INPUT,
    "audio": chat_pb2.CHAT_FEATURE_AUDIO_INPUT,
    "file": chat_pb2.CHAT_FEATURE_FILE_INPUT,
    "video": chat_pb2.CHAT_FEATURE_VIDEO_INPUT,
}
