"""Pictures, documents, sound and video as Converse takes them: a format, and bytes or an object in
S3 (https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_DocumentBlock.html and its
neighbours). Every document has a name of its own, made of few characters.
"""

import base64
import re
from collections.abc import Mapping
from typing import Final

from onegate.common.v1 import content_pb2
from services.router.providers.bedrock_models import PROVIDER
from services.router.providers.foreign import Json, invalid, unsupported

IMAGES: Final[Mapping[str, str]] = {
    "image/gif": "gif",
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "image/png": "png",
    "image/webp": "webp",
}

DOCUMENTS: Final[Mapping[str, str]] = {
    "application/msword": "doc",
    "application/pdf": "pdf",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "text/csv": "csv",
    "text/html": "html",
    "text/markdown": "md",
    "text/plain": "txt",
}

VIDEOS: Final[Mapping[str, str]] = {
    "video/3gpp": "three_gp",
    "video/mp4": "mp4",
    "video/mpeg": "mpeg",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/x-flv": "flv",
    "video/x-matroska": "mkv",
    "video/x-ms-wmv": "wmv",
}

SOUNDS: Final[Mapping[str, str]] = {
    "audio/aac": "aac",
    "audio/flac": "flac",
    "audio/mp3": "mp3",
    "audio/mp4": "mp4",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/opus": "opus",
    "audio/pcm": "pcm",
    "audio/wav": "wav",
    "audio/webm": "webm",
    "audio/x-m4a": "m4a",
    "audio/x-wav": "wav",
}

_S3: Final = "s3://"
_NAME_CHARS_MAX: Final = 180
_UNNAMED: Final = "Document"
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9\s()\[\]-]+")
_SPACES: Final = re.compile(r"\s+")


class Names:
    """The names of a call's documents, each given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def of(self, filename: str) -> str:
        """A name after a file's: its characters are letters, digits, single spaces, hyphens,
        parentheses and brackets.
        """
        stem = filename.rpartition("/")[2].rpartition(".")[0] or filename
        name = _SPACES.sub(" ", _NOT_IN_NAMES.sub("-", stem)).strip()[:_NAME_CHARS_MAX]
        unique = name = name or _UNNAMED
        number = 1
        while unique in self._given:
            number += 1
            unique = f"{name} ({number})"
        self._given.add(unique)
        return unique


def block(part: content_pb2.Part, where: str, names: Names) -> Json:
    """A part's block. Raises INVALID_REQUEST or UNSUPPORTED_PARAMETER."""
    match part.WhichOneof("content"):
        case "image":
            if part.image.detail == "low":
                raise unsupported(f"{where}.image_url.detail", PROVIDER)
            return {"image": _medium(part.image.source, IMAGES, "", where)}
        case "audio":
            if part.audio.audio_id:
                raise unsupported(f"{where}.audio", PROVIDER, "Send the sound itself.")
            return {"audio": _medium(part.audio.source, SOUNDS, part.audio.format, where)}
        case "video":
            return {"video": _medium(part.video.source, VIDEOS, "", where)}
        case _:
            return _document(part.file, where, names)


def blob(data: bytes) -> str:
    """Bytes as they stand in JSON."""
    return base64.b64encode(data).decode()


def _document(part: content_pb2.FilePart, where: str, names: Names) -> Json:
    """A document; a picture in a file is a picture."""
    source = part.source
    if source.media_type in IMAGES:
        return {"image": _medium(source, IMAGES, "", where)}
    extension = part.filename.rpartition(".")[2].lower()
    hint = extension if extension in DOCUMENTS.values() else ""
    named = {"name": names.of(part.filename)}
    return {"document": {**named, **_medium(source, DOCUMENTS, hint, where)}}


def _medium(
    source: content_pb2.MediaSource, formats: Mapping[str, str], hint: str, where: str
) -> Json:
    """Format and place. The format is that of the media type, else ``hint``, else what the object's
    name ends in.
    """
    place = _place(source, where)
    extension = source.url.rpartition(".")[2].lower() if source.url else ""
    known = formats.values()
    kind = formats.get(source.media_type.partition(";")[0].strip().lower(), "")
    kind = kind or next((word for word in (hint, extension) if word in known), "")
    if not kind:
        takes = ", ".join(sorted(set(known)))
        raise unsupported(where, PROVIDER, f"Name a media type that it takes: {takes}.")
    return {"format": kind, "source": place}


def _place(source: content_pb2.MediaSource, where: str) -> Json:
    """Where a medium is."""
    match source.WhichOneof("source"):
        case "data":
            return {"bytes": blob(source.data)}
        case "url" if source.url.startswith(_S3):
            return {"s3Location": {"uri": source.url}}
        case None:
            raise invalid(where, f"`{where}` needs data, or an address in S3.")
        case _:
            raise unsupported(where, PROVIDER, "It fetches from S3 only: send the data itself.")
