"""AWS's signatures of requests, version 4, from the server's side."""

from __future__ import annotations

import hashlib
import hmac
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

__all__ = ["Signature", "age", "parse"]

_HEADER = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<day>\d{8})/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request, *"
    r"SignedHeaders=(?P<headers>[^,]+), *Signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass(frozen=True)
class Signature:
    """What an Authorization header says."""

    key: str
    day: str
    region: str
    service: str
    headers: tuple[str, ...]
    signature: str

    def fits(self, secret: str, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether the request was signed with `secret`, just as it is."""
        if "host" not in self.headers or "x-amz-date" not in self.headers:
            return False
        pairs = sorted(urllib.parse.parse_qsl(query, keep_blank_values=True))
        canonical = "\n".join(
            [
                method,
                path,
                "&".join(f"{_quote(name)}={_quote(value)}" for name, value in pairs),
                *(f"{name}:{' '.join(headers.get(name, '').split())}" for name in self.headers),
                "",
                ";".join(self.headers),
                hashlib.sha256(body).hexdigest(),
            ]
        )
        scope = f"{self.day}/{self.region}/{self.service}/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = "\n".join(["AWS4-HMAC-SHA256", headers.get("x-amz-date", ""), scope, digest])
        key = f"AWS4{secret}".encode()
        for part in (self.day, self.region, self.service, "aws4_request", text):
            key = hmac.digest(key, part.encode(), "sha256")
        return hmac.compare_digest(key.hex(), self.signature)


def parse(header: str) -> Signature | None:
    """Read an Authorization header; None if it is no signature of version 4."""
    found = _HEADER.fullmatch(header)
    if found is None:
        return None
    names = tuple(found["headers"].split(";"))
    return Signature(found["key"], found["day"], found["region"], found["service"], names, found["signature"])


def age(date: str) -> float:
    """Seconds since an X-Amz-Date; infinite if it is none."""
    try:
        signed = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return float("inf")
    return (datetime.now(UTC) - signed).total_seconds()


def _quote(text: str) -> str:
    return urllib.parse.quote(text, safe="-_.~")
