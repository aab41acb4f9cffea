"""Certificates of a pool's nodes."""

from __future__ import annotations

from cryptography import x509

from skyward.core.nodes.certificates import Authority


def test_each_node_has_a_certificate_of_its_own() -> None:
    """Signed by the authority, for the node's name, and of no use for signing others."""
    authority = Authority("sky-1")
    above = x509.load_pem_x509_certificate(authority.certificate.encode())
    pems = [authority.issue(name) for name in ("node-1", "node-2")]
    assert all("PRIVATE KEY" in pem for pem in pems)
    assert "PRIVATE KEY" not in authority.certificate
    first, second = (x509.load_pem_x509_certificate(pem.encode()) for pem in pems)
    first.verify_directly_issued_by(above)
    names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node-1"]
    assert not first.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert first.public_key() != second.public_key()
