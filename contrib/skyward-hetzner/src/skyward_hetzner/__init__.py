"""Hetzner Cloud for skyward: servers by the hour in Germany, Finland, the United States and Singapore."""

from __future__ import annotations

from skyward_hetzner.provider import Hetzner

__all__ = ["Hetzner"]
