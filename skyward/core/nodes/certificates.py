"""Certificates by which the nodes of a pool recognize each other, signed by an authority that the pool makes.

Node and driver authenticate each other by the pool's secret and by SSH; this is for nodes among themselves. The
authority's key never leaves the driver's memory, and no other pool accepts what it signed.
"""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Authority"]

# A node's clock may be wrong when it boots, and certificates are useless after the pool's end anyway.
_FROM, _UNTIL = datetime.datetime(2000, 1, 1), datetime.datetime(2999, 1, 1)  # noqa: DTZ001 - x509 takes these as UTC


class Authority:
    """Signs the certificates of one pool.

    Parameters
    ----------
    pool
        The pool's name.
    """

    def __init__(self, pool: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, pool[:64])])
        own = self._draft(self._name, self._key.public_key(), x509.BasicConstraints(ca=True, path_length=0))
        self.certificate = _pem(own.sign(self._key, hashes.SHA256()))
        """The authority's own certificate, in PEM."""

    def __repr__(self) -> str:
        return f"<Authority {self._name.rfc4514_string()}>"

    def issue(self, node: str) -> str:
        """Issue a certificate for a node; returned in PEM, with its new private key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
        draft = self._draft(name, key.public_key(), x509.BasicConstraints(ca=False, path_length=None))
        draft = draft.add_extension(x509.SubjectAlternativeName([x509.DNSName(node)]), critical=False)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return _pem(draft.sign(self._key, hashes.SHA256())) + private.decode()

    def _draft(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, constraints: x509.BasicConstraints
    ) -> x509.CertificateBuilder:
        draft = x509.CertificateBuilder(self._name, name, key, x509.random_serial_number(), _FROM, _UNTIL)
        return draft.add_extension(constraints, critical=True)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
