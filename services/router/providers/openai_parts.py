"""Parts of a message as parts of the OpenAI dialect, in the words of a row.

What a part cannot be on this wire is refused under its place in the request.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, assert_never

from onegate.common.v1 import content_pb2, error_pb2
from runtime.errors import GatewayError
from services.router.providers.json_members import Json, embedded, extend
from services.router.providers.openai_row import AudioForm, Compatible, FileForm

_AUDIO_FORMATS: Final = {"audio/mpeg": "mp3", "audio/x-wav": "wav", "audio/wave": "wav"}
"""Media types whose second half is not the name of the format."""
_SHORT_TTL_S: Final = 300


def unsupported(row: Compatible, param: str, advice: str = "") -> GatewayError:
    """The refusal of what the vendor has no equivalent for."""
    advice = advice or "Leave it out, or choose a model of a provider that has it."
    return GatewayError(
        error_pb2.ERROR_REASON_UNSUPPORTED_PARAMETER,
        f"{row.title} has no equivalent of `{param}`. {advice}",
        param=param,
    )


def invalid(param: str, message: str) -> GatewayError:
    """The refusal of a malformed value."""
    return GatewayError(error_pb2.ERROR_REASON_INVALID_REQUEST, message, param=param)


def content(row: Compatible, parts: Sequence[content_pb2.Part], place: str) -> str | list[Any]:
    """Parts as content: a text by itself is a string."""
    if not parts:
        return ""
    if len(parts) == 1:
        only = parts[0]
        if only.HasField("text") and not (only.extra_json or _hinted(row, only)):
            return only.text.text
    return [written(row, part, f"{place}[{index}]") for index, part in enumerate(parts)]


def cache_control(hint: content_pb2.CacheHint) -> Json:
    """A breakpoint in Anthropic's form, which knows 5 minutes and 1 hour
    (https://openrouter.ai/docs/features/prompt-caching).
    """
    control: Json = {"type": "ephemeral"}
    if hint.ttl_s:
        control["ttl"] = "5m" if hint.ttl_s <= _SHORT_TTL_S else "1h"
    return control


def _hinted(row: Compatible, part: content_pb2.Part) -> bool:
    return row.cache_control and part.HasField("cache_hint")


def written(row: Compatible, part: content_pb2.Part, place: str) -> Any:
    """One part. Raises UNSUPPORTED_PARAMETER and INVALID_REQUEST."""
    kind = part.WhichOneof("content")
    if kind == "opaque_json":
        return embedded(part.opaque_json, place)
    build = _BUILDERS.get(kind or "")
    if build is None:
        raise invalid(place, f"`{place}` cannot be a part here: {kind or 'it is empty'}.")
    made = build(row, part, place)
    if _hinted(row, part):
        made["cache_control"] = cache_control(part.cache_hint)
    if part.extra_json:
        extend(made, part.extra_json, place)
    return made


def _text(_row: Compatible, part: content_pb2.Part, _place: str) -> Json:
    return {"type": "text", "text": part.text.text}


def _refusal(_row: Compatible, part: content_pb2.Part, _place: str) -> Json:
    return {"type": "refusal", "refusal": part.refusal.text}


def _thought(_row: Compatible, part: content_pb2.Part, _place: str) -> Json:
    text = {"type": "text", "text": part.thinking.text}
    written: Json = {"type": "thinking", "thinking": [text]}
    if part.thinking.signature:
        written["signature"] = part.thinking.signature
    return written


def _image(row: Compatible, part: content_pb2.Part, place: str) -> Json:
    image = part.image
    if image.source.WhichOneof("source") == "file_id":
        raise unsupported(row, f"{place}.image_url.file_id", "Send the picture itself.")
    inner: Json = {"url": _url(image.source, place)}
    if image.detail:
        inner["detail"] = image.detail
    return {"type": "image_url", "image_url": inner}


def _video(row: Compatible, part: content_pb2.Part, place: str) -> Json:
    if not row.video:
        raise unsupported(row, f"{place}.video_url")
    return {"type": "video_url", "video_url": {"url": _url(part.video.source, place)}}


def _audio(row: Compatible, part: content_pb2.Part, place: str) -> Json:
    audio = part.audio
    source = audio.source
    form = row.audio
    if source.WhichOneof("source") not in ("data", "url") or (
        source.url and form is AudioForm.OBJECT
    ):
        raise unsupported(row, f"{place}.input_audio", "Send the sound itself.")
    kind = audio.format or _format_of(source.media_type)
    data = source.url or base64.b64encode(source.data).decode()
    as_url = source.url or f"data:{source.media_type or f'audio/{kind}'};base64,{data}"
    match form:
        case AudioForm.STRING:
            return {"type": "input_audio", "input_audio": data}
        case AudioForm.CONTENT:
            return {"type": "audio_content", "audio_content": {"content": as_url}}
        case AudioForm.OBJECT | AudioForm.OBJECT_URL:
            inner = {"data": data if form is AudioForm.OBJECT else as_url}
            if kind:
                inner["format"] = kind
            return {"type": "input_audio", "input_audio": inner}
        case _ as never:
            assert_never(never)


def _file(row: Compatible, part: content_pb2.Part, place: str) -> Json:
    source = part.file.source
    form = row.files
    where = source.WhichOneof("source")
    if where is None:
        raise invalid(place, f"`{place}` has no document; send its data or its id.")
    if (where == "file_id" and form is FileForm.FILE_URL) or (
        where == "url" and form is FileForm.OBJECT
    ):
        raise unsupported(row, f"{place}.file.{where}", "Send the document itself.")
    if where == "file_id" and form is FileForm.DOCUMENT_URL:
        return {"type": "file", "file_id": source.file_id}
    bare = base64.b64encode(source.data).decode()
    data = source.url or _data_url(source.media_type, bare)
    match form:
        case FileForm.OBJECT | FileForm.OBJECT_URL:
            inner = {"file_id": source.file_id} if source.file_id else {"file_data": data}
            if part.file.filename:
                inner["filename"] = part.file.filename
            return {"type": "file", "file": inner}
        case FileForm.FILE_URL:
            made: Json = {"type": "file_url", "file_url": {"url": source.url or bare}}
            if part.file.filename:
                made["file_name"] = part.file.filename
            return made
        case FileForm.DOCUMENT_URL:
            made = {"type": "document_url", "document_url": data}
            if part.file.filename:
                made["document_name"] = part.file.filename
            return made
        case _ as never:
            assert_never(never)


def _url(source: content_pb2.MediaSource, place: str) -> str:
    """Where a picture or video is, as a URL or a data URL."""
    match source.WhichOneof("source"):
        case "url":
            return source.url
        case "data":
            data = base64.b64encode(source.data).decode()
            return f"data:{source.media_type};base64,{data}"
        case _:
            raise invalid(place, f"`{place}` has no content; send a URL or data.")


def _data_url(media_type: str, data: str) -> str:
    """A document as a data URL; without a media type, as the base64 that the caller wrote."""
    return f"data:{media_type};base64,{data}" if media_type else data


def _format_of(media_type: str) -> str:
    return _AUDIO_FORMATS.get(media_type) or media_type.partition("/")[2]


_Builder = Callable[[Compatible, content_pb2.Part, str], Json]

_BUILDERS: Final[Mapping[str, _Builder]] = {
    "text": _text,
    "refusal": _refusal,
    "thinking": _thought,
    "image": _image,
    "audio": _audio,
    "file": _file,
    "video": _video,
}
