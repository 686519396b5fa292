"""Personal fields under lock: sealed before they become facts, opened only at a query's edge."""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from domain.values import Sealed

PLAINTEXT_BYTES_MAX = 1_400
"""Of one field: its box, in base64 and with 16 bytes of tag, still fits a `Text`."""


class SealBroken(ValueError):
    """The box does not open: altered, or sealed for another tenant, subject or field, or with another key."""


class FieldTooLong(ValueError):
    """More than PLAINTEXT_BYTES_MAX bytes of UTF-8 in one field."""


class Sealer:
    """AES-SIV (RFC 5297): authenticated, and without a nonce.

    The same words sealed twice give the same box, so that a retried command has the digest of the
    first. A box is bound to its tenant, subject and field: nobody can move it to where it would be
    shown to somebody else. One key for all subjects, for now; `Sealed.subject` is where theirs will go.
    """

    def __init__(self, key: bytes) -> None:
        """`key`: 64 bytes, as `Settings.sealing_key` gives them."""
        self.cipher = AESSIV(key)
        self.blind_key = hmac.digest(key, b"blind", "sha256")

    def seal(self, tenant: str, subject: str, field: str, plaintext: str) -> Sealed:
        """Raises FieldTooLong."""
        words = plaintext.encode()
        if len(words) > PLAINTEXT_BYTES_MAX:
            raise FieldTooLong(f"{field}: {len(words):,} bytes, and {PLAINTEXT_BYTES_MAX:,} fit")
        box = self.cipher.encrypt(words, _belongs_to(tenant, subject, field))
        return Sealed(subject=subject, box=b64encode(box).decode())

    def open(self, tenant: str, field: str, sealed: Sealed) -> str:
        """Raises SealBroken."""
        try:
            box = b64decode(sealed.box, validate=True)
            words = self.cipher.decrypt(box, _belongs_to(tenant, sealed.subject, field))
        except (ValueError, InvalidTag):
            raise SealBroken(f"{field} of {sealed.subject}") from None
        return words.decode()

    def blind(self, tenant: str, kind: str, value: str) -> str:
        """A keyed hash to look a value up by: the same for the same value, and nothing readable.

        40 hex digits. The caller brings the value into one form first (letter case, spaces).
        """
        return hmac.digest(self.blind_key, _joined(tenant, kind, value), "sha256").hex()[:40]


def _belongs_to(tenant: str, subject: str, field: str) -> list[bytes]:
    """AES-SIV takes them as separate strings, so none can run into the next."""
    return [tenant.encode(), subject.encode(), field.encode()]


def _joined(*parts: str) -> bytes:
    """Each with its length before it, so that none can run into the next."""
    return b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
