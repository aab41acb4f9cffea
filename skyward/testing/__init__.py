"""Suites of tests for providers, transports and services, ours and others'."""

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in ("account", "provider", "service", "transport")))
