"""Hetzner Cloud for skyward: servers by the hour in Germany, Finland, the United States and Singapore."""

from __future__ import annotations

__all__: list[str] = []
