"""The old fingerprint of SSH keys, which APIs of clouds still show."""

from __future__ import annotations

import base64
import binascii
import hashlib

__all__ = ["fingerprint"]


def fingerprint(public_key: str) -> str:
    """MD5 of a public key's line, in pairs of digits; ValueError if the line is none."""
    try:
        blob = base64.b64decode(public_key.split()[1], validate=True)
    except (IndexError, binascii.Error) as error:
        raise ValueError(f"not a line of a public key: {public_key!r}") from error
    return hashlib.md5(blob).digest().hex(":")
