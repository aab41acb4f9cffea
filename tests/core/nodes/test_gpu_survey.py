"""What a node says of its GPUs reaches whoever asked."""

from __future__ import annotations

import asyncio

from skyward.core.gpus import Gpu
from skyward.core.nodes.gpu_survey import GpuSurvey
from skyward.core.protocol.messages import Gpus, Survey


def test_every_caller_is_answered_once() -> None:
    async def live() -> None:
        sent: list[Survey] = []
        survey = GpuSurvey(sent.append)
        survey.heard(Gpus([["GPU-1", "T4\x07", 100, 1]], None))  # before anybody asks
        assert survey.found == (Gpu("GPU-1", r"T4\x07", 100, 1),)  # it may belong to a stranger
        first, second, hasty = (asyncio.ensure_future(survey.ask()) for _ in range(3))
        await asyncio.sleep(0)
        assert sent == [Survey()] * 3
        hasty.cancel()
        await asyncio.wait([hasty])
        survey.heard(Gpus([["GPU-1", "T4", 100, 2]], None))
        assert await asyncio.gather(first, second) == [None, None]
        assert survey.found[0].used == 2

    asyncio.run(live())


def test_an_error_leaves_what_was_known() -> None:
    async def live() -> None:
        survey = GpuSurvey(lambda _: None)
        survey.heard(Gpus([["GPU-1", "", None, None]], None))
        asked = asyncio.ensure_future(survey.ask())
        await asyncio.sleep(0)
        survey.heard(Gpus([], "the driver \x1b[31mhangs"))
        assert await asked == r"the driver \x1b[31mhangs"
        assert survey.found == (Gpu("GPU-1"),)

    asyncio.run(live())
