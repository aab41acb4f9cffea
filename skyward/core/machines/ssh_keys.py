"""Makes SSH keys, each for one pool or machine and never reused."""

from __future__ import annotations

from skyward.core.spec import KeyPair

__all__ = ["make_key"]


def make_key(comment: str) -> KeyPair:
    """Make an ed25519 key without a passphrase."""
    # Some 7 MB, not loaded by a pool that rents nothing.
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return KeyPair(private.decode(), f"{public.decode()} {comment}")
