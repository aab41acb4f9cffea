"""EC2's answers on machine types, zones and spot prices: paged, filtered and priced, which moto's are not."""

from __future__ import annotations

import fnmatch
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from .aws import Refusal
from .ec2_catalogue import spot_price, usage_classes, zones
from .ec2_shape import reply

__all__ = ["filters", "listed", "offerings", "paged", "spot_history", "type_names"]

T = TypeVar("T")

_PRODUCT = "Linux/UNIX"
_TYPES_PAGE = 100


def listed(fields: Mapping[str, str], name: str) -> list[str]:
    """The values of ``Name.1``, ``Name.2``, …"""
    return [value for key, value in fields.items() if key.startswith(f"{name}.") and key[len(name) + 1 :].isdigit()]


def filters(fields: Mapping[str, str]) -> dict[str, list[str]]:
    """The filters of a request."""
    names = {
        key.split(".")[1]: value for key, value in fields.items() if key.startswith("Filter.") and key[-4:] == "Name"
    }
    return {name: listed(fields, f"Filter.{number}.Value") for number, name in names.items()}


def fits(value: str, patterns: Sequence[str] | None) -> bool:
    """Whether a value matches one of a filter's; no filter, no limit."""
    return patterns is None or any(fnmatch.fnmatchcase(value, pattern) for pattern in patterns)


def paged(fields: Mapping[str, str], items: Sequence[T], usual: int, most: int = 1000) -> tuple[Sequence[T], str]:
    """A page of the items, and the element with the token of the next."""
    size = int(fields.get("MaxResults") or usual)
    if not 5 <= size <= most:
        raise Refusal(400, "InvalidMaxResults", f"The specified value for MaxResults is not valid. Use 5 to {most}.")
    token = fields.get("NextToken") or "page-0"
    if not token.removeprefix("page-").isdigit():
        raise Refusal(400, "InvalidNextToken", f"The token '{token}' is invalid")
    start = int(token.removeprefix("page-"))
    following = f"page-{start + size}" if start + size < len(items) else ""
    return items[start : start + size], f"<nextToken>{following}</nextToken>"


def type_names(fields: Mapping[str, str], region: str, backend: Any) -> tuple[Sequence[str], str]:
    """Names of a page of the machine types asked for, and the next page's token."""
    names, here = listed(fields, "InstanceType"), zones(region)
    unknown = [name for name in names if name not in here]
    if unknown:
        message = f"The following supplied instance types do not exist: [{', '.join(unknown)}]"
        raise Refusal(400, "InvalidInstanceType", message)
    if len(names) > _TYPES_PAGE:
        raise Refusal(400, "InvalidParameterValue", "InstanceType: at most 100")
    found = backend.describe_instance_types(names or None, filters(fields))
    known = sorted(name for item in found if (name := item["InstanceType"]) in here)
    return paged(fields, known, _TYPES_PAGE, _TYPES_PAGE)


def offerings(fields: Mapping[str, str], region: str) -> bytes:
    """Answer DescribeInstanceTypeOfferings."""
    kind, wanted = fields.get("LocationType") or "region", filters(fields)
    pairs = [
        (name, place)
        for name, places in zones(region).items()
        for place in (places if kind == "availability-zone" else [region])
        if fits(name, wanted.get("instance-type")) and fits(place, wanted.get("location"))
    ]
    page, token = paged(fields, pairs, 1000)
    items = _items(page, lambda pair: {"instanceType": pair[0], "locationType": kind, "location": pair[1]})
    return reply("DescribeInstanceTypeOfferings", f"<instanceTypeOfferingSet>{items}</instanceTypeOfferingSet>{token}")


def spot_history(fields: Mapping[str, str], region: str, surge: float) -> bytes:
    """Answer DescribeSpotPriceHistory: the price since lately, and the one before if the time asked for is long ago."""
    wanted = filters(fields)
    types = listed(fields, "InstanceType") or wanted.get("instance-type")
    places = [fields["AvailabilityZone"]] if "AvailabilityZone" in fields else wanted.get("availability-zone")
    products = listed(fields, "ProductDescription") or wanted.get("product-description")
    since = datetime.fromisoformat(fields["StartTime"]) if "StartTime" in fields else datetime(1970, 1, 1, tzinfo=UTC)
    prices = [
        price
        for name, offered in zones(region).items()
        if fits(name, types) and "spot" in usage_classes(name) and fits(_PRODUCT, products)
        for place in offered
        if fits(place, places)
        for price in _prices(name, place, since, surge)
    ]
    page, token = paged(fields, sorted(prices, key=lambda price: price["timestamp"], reverse=True), 1000)
    items = _items(page, lambda price: price)
    return reply("DescribeSpotPriceHistory", f"<spotPriceHistorySet>{items}</spotPriceHistorySet>{token}")


def _prices(name: str, place: str, since: datetime, surge: float) -> Iterator[dict[str, str]]:
    price, age = spot_price(name, place) * surge, timedelta(minutes=zlib.crc32(f"{place} {name}".encode()) % 300)
    changed = datetime.now(UTC) - age
    times = [(changed, price), (changed - timedelta(hours=7), round(price * 1.3, 6))]
    # The price that holds at the start counts too.
    for time, value in times if since < changed else times[:1]:
        yield {
            "instanceType": name,
            "productDescription": _PRODUCT,
            "spotPrice": f"{value:.6f}",
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "availabilityZone": place,
        }


def _items(values: Iterable[T], describe: Callable[[T], Mapping[str, str]]) -> str:
    told = ("".join(f"<{key}>{text}</{key}>" for key, text in describe(value).items()) for value in values)
    return "".join(f"<item>{text}</item>" for text in told)
