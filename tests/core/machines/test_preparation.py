from __future__ import annotations

import skyward as sky
from skyward.core.machines.preparation import discard, prepare
from skyward.core.spec import Order, Resources


class Eager:
    def __init__(self):
        self.calls = []

    def prepare(self, order):
        self.calls.append(("prepare", order.tag))

    def discard(self, tag):
        self.calls.append(("discard", tag))


def test_only_the_provider_that_is_asked_first_begins():
    first, second = Eager(), Eager()
    order = Order("tag", 1, Resources())
    prepare([first, second], order)
    assert (first.calls, second.calls) == ([("prepare", "tag")], [])


def test_all_end_what_they_have_begun():
    eager = Eager()
    discard([sky.SSH(hosts=["host"]), eager], "tag")
    assert eager.calls == [("discard", "tag")]


def test_a_provider_that_can_not_is_left_alone():
    prepare([sky.SSH(hosts=["host"])], Order("tag", 1, Resources()))
