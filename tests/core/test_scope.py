"""How far refusals reach: scopes combine, and an account's has nothing in it that offers need to share."""

from __future__ import annotations

from skyward.core.scope import Scope


def test_scopes_combine() -> None:
    assert Scope.SPOT in (Scope.SPOT | Scope.REGION)
    assert Scope.ZONE not in (Scope.SPOT | Scope.REGION)
    assert (Scope.TYPE | Scope.SPOT | Scope.ZONE | Scope.REGION) is Scope.OFFER
    assert not Scope.ACCOUNT
    assert (Scope.ACCOUNT | Scope.TYPE) is Scope.TYPE
