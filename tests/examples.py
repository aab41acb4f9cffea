"""How many examples hypothesis tries: all in ``make test``, a tenth in ``make check``, whose profile says so."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is.
settings.register_profile("skyward", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("check", settings.get_profile("skyward"), max_examples=10)
settings.load_profile("skyward")


def examples(count: int, **options: Any) -> settings:
    """Settings of a test with another number of examples than 100."""
    return settings(max_examples=count * settings().max_examples // 100, **options)
