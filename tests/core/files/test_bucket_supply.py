"""Keys of buckets are renewed at half-time; the pool's own tests bring buckets to nodes."""

from __future__ import annotations

import asyncio
import time

from skyward.core.errors import AuthFailed
from skyward.core.files.bucket_supply import BucketSupply
from skyward.core.files.requests import Requests
from skyward.core.protocol.buckets import Bucket, BucketKeys
from skyward.core.volumes import S3Volume


class Source:
    """Gives keys that end soon; the first time that it is asked, it can't."""

    def __init__(self) -> None:
        self.asked = 0
        self.again = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def check(self) -> Bucket:
        return Bucket("s3://bucket/", "bucket", {}, BucketKeys("keys", expires=time.time() + 0.1), 1, 1)

    def keys(self) -> BucketKeys:
        self.asked += 1
        if self.asked > 1:
            self.loop.call_soon_threadsafe(self.again.set)
        return BucketKeys("keys", expires=time.time() + 0.1)


def test_keys_are_renewed_again_and_again_until_the_pool_ends() -> None:
    async def run() -> None:
        source = Source()
        supply = BucketSupply(Requests(), [(S3Volume("data", "bucket"), source, source.check())], warn=str)
        supply.begin()
        await asyncio.wait_for(source.again.wait(), 20)
        supply.stop()

    asyncio.run(run())


def test_a_failure_is_said() -> None:
    class Broken(Source):
        def keys(self) -> BucketKeys:
            raise AuthFailed("no")

    async def run() -> None:
        source, said = Broken(), asyncio.Queue[str]()
        supply = BucketSupply(Requests(), [(S3Volume("data", "bucket"), source, source.check())], said.put_nowait)
        supply.begin()
        assert "s3://bucket/: no new keys" in await asyncio.wait_for(said.get(), 20)
        supply.stop()

    asyncio.run(run())
