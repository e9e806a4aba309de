"""What usage may see of a call with an idempotency key: digests under the caller's own API key, and
answers that only the same API key and idempotency key open.

No other key can name a claim, whatever it guesses, and whoever reads the database reads nothing.
"""

import hashlib
import hmac
import zlib
from typing import Final

from onegate.common.v1 import error_pb2
from onegate.router.v1 import chat_pb2
from runtime.errors import GatewayError
from runtime.later import Later

KEY_CHARS_MAX: Final = 255
"""Of an idempotency key."""

_NONCE_BYTES: Final = 12
_FAST: Final = 1
_AEAD: Final = Later("cryptography.hazmat.primitives.ciphers.aead")
_FAILURES: Final = Later("cryptography.exceptions")


class AnswerSeal:
    """The secrets of one idempotency key of one API key.

    Args:
        api_key: the caller's; 238 random bits, so that digests under it tell nothing.
        idempotency_key: as the caller wrote it. Raises INVALID_REQUEST for one that is too long.
    """

    def __init__(self, api_key: str, idempotency_key: str) -> None:
        if not 0 < len(idempotency_key) <= KEY_CHARS_MAX:
            raise GatewayError(
                error_pb2.ERROR_REASON_INVALID_REQUEST,
                f"An Idempotency-Key has 1 to {KEY_CHARS_MAX} characters; a UUID is a good one.",
                param="Idempotency-Key",
            )
        self._secret = api_key.encode()
        self._name = idempotency_key.encode()
        self.id = self._derived(b"claim", self._name).hex()
        """What usage knows the pair by."""

    def body(self, request: chat_pb2.ChatRequest) -> bytes:
        """The digest of what is asked."""
        digest = request.context.body_digest
        if not digest:
            bare = chat_pb2.ChatRequest()
            bare.CopyFrom(request)
            bare.ClearField("context")
            digest = hashlib.sha256(bare.SerializeToString(deterministic=True)).digest()
        return self._derived(b"body", digest)

    def cipher(self, claim_id: str) -> "AnswerCipher":
        """What seals the answer of one claim: a claim's key is never used for another."""
        return AnswerCipher(self._derived(b"answer", claim_id.encode() + b"\0" + self._name))

    def _derived(self, purpose: bytes, what: bytes) -> bytes:
        return hmac.digest(self._secret, b"onegate " + purpose + b"\0" + what, "sha256")


class AnswerCipher:
    """Compresses and seals the pieces of one answer: AES-256-GCM; a piece's number is its nonce."""

    def __init__(self, key: bytes) -> None:
        self._aead = _AEAD.AESGCM(key)

    def seal(self, sequence: int, piece: bytes) -> bytes:
        """A piece, as it is kept."""
        chunk: bytes = self._aead.encrypt(_nonce(sequence), zlib.compress(piece, _FAST), None)
        return chunk

    def open(self, sequence: int, chunk: bytes) -> bytes:
        """The piece again. Raises INTERNAL for what was not sealed so."""
        try:
            return zlib.decompress(self._aead.decrypt(_nonce(sequence), chunk, None))
        except (_FAILURES.InvalidTag, zlib.error):
            raise GatewayError(
                error_pb2.ERROR_REASON_INTERNAL,
                "The answer that was kept for this Idempotency-Key is damaged; use another key.",
            ) from None


def _nonce(sequence: int) -> bytes:
    return sequence.to_bytes(_NONCE_BYTES, "big")
