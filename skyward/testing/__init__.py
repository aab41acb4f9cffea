"""Conformance test suites for providers and transports, ours and third parties'."""

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in ("account", "provider", "service", "transport")))
