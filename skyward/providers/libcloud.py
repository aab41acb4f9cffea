"""Any compute driver of Apache Libcloud, given a `Profile` that describes its arguments."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import inspect
import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

import requests
from libcloud.common.exceptions import BaseHTTPError
from libcloud.common.types import MalformedResponseError
from libcloud.compute.base import NodeAuthSSHKey, NodeImage
from libcloud.compute.providers import DRIVERS, get_driver
from libcloud.compute.types import NodeState

from skyward.core.errors import (
    AuthFailed,
    CloudError,
    ConfigError,
    NoCapacity,
    NotFound,
    ProvisioningError,
    QuotaExceeded,
    RateLimited,
    SkywardError,
)
from skyward.core.interfaces import Trait
from skyward.core.spec import Endpoint, Machine, MachineId, MachineState, Offer, Order, Resources
from skyward.providers import first_boot
from skyward.providers.base import SECRET, CloudProvider
from skyward.providers.libcloud_profiles import PROFILES, Profile
from skyward.providers.names import pool_of

__all__ = ["PROFILES", "Libcloud", "Profile"]

_MARK = "skyward"  # the tag of everything of ours; some clouds keep a list of tags when everything else is gone
_STATUS = re.compile(r"(?i)(?:status code|http|code)\W{1,3}([45]\d\d)\b")
_MONTH = 672.0  # hours for which Vultr bills in a month at most, so that an hour costs this part of a month
_NO_ANSWER = (MalformedResponseError, requests.exceptions.RequestException, OSError)
_STATES = {
    NodeState.RUNNING: MachineState.RUNNING,
    NodeState.TERMINATED: MachineState.GONE,
    NodeState.ERROR: MachineState.FAILED,
    NodeState.STOPPED: MachineState.FAILED,
    NodeState.STOPPING: MachineState.FAILED,
    NodeState.SUSPENDED: MachineState.FAILED,
    NodeState.PAUSED: MachineState.FAILED,
}


@dataclass(frozen=True, eq=False, init=False)
class Libcloud(CloudProvider):
    """Machines of a cloud that Apache Libcloud has a driver for.

    There are profiles for DigitalOcean, Google Compute Engine, Linode, OpenStack and Vultr; other clouds need one, and
    the error shows how to write it. Machines cost money until they are deleted; if your program dies, a background
    process deletes them.

    Parameters
    ----------
    driver
        Libcloud's name of the cloud, such as ``"digitalocean"``.
    key, secret
        Credentials, as the driver takes them. Default: the environment variables that the vendor's own tools read.
    location
        Region or zone, as the driver calls it; None: all.
    image
        Id or name of an image with cloud-init; None: Ubuntu 24.04.
    create
        Further arguments of the driver's ``create_node``, such as ``{"ex_security_groups": ["ssh"]}`` on OpenStack.
    profile
        Describes the driver's arguments, if skyward has no profile for it or yours must differ.
    url
        Address of the API, if not the driver's default.
    options
        Further arguments of the driver itself, such as ``project="mine"``. They are recorded, so no secrets.

    Raises
    ------
    ConfigError
        There is no such driver, or no profile for it, or the profile has no user data.
    """

    name: ClassVar[str] = "libcloud"
    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.DESTROYS, Trait.RENTED})

    driver: str = field(metadata={"example": "digitalocean"})
    key: str | None = field(default=None, repr=False, metadata=SECRET)
    secret: str | None = field(default=None, repr=False, metadata=SECRET)
    location: str | None = None
    image: str | None = None
    create_arguments: Mapping[str, object] = field(default_factory=dict)
    profile: Profile | None = None
    url: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    def __init__(
        self,
        driver: str,
        key: str | None = None,
        secret: str | None = None,
        *,
        location: str | None = None,
        image: str | None = None,
        create: Mapping[str, object] | None = None,
        profile: Profile | Mapping[str, Any] | None = None,
        url: str | None = None,
        **options: object,
    ) -> None:
        known = Profile(**profile) if isinstance(profile, Mapping) else profile
        values = {
            "name": f"{self.name}:{driver}",  # as in `provider=` and on the command line: an account of its own
            "driver": driver,
            "key": key,
            "secret": secret,
            "location": location,
            "image": image,
            "create_arguments": dict(create or {}),
            "profile": known,
            "url": url,
            "options": options,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        _check(driver, self._profile)
        try:
            json.dumps(self.settings())
        except TypeError as error:
            raise ConfigError(
                f"Libcloud({driver!r}): {error}; skyward records arguments, to clean up after a crash, so they must "
                "be strings, numbers, lists and dictionaries"
            ) from None

    @property
    def _profile(self) -> Profile | None:
        return self.profile or PROFILES.get(self.driver)

    @property
    def _known_profile(self) -> Profile:
        assert self._profile is not None
        return self._profile

    def settings(self) -> dict[str, object]:
        """See `Rental.settings`."""
        values: dict[str, object] = super().settings()
        values |= dict(self.options)
        values.pop("options", None)
        if create := values.pop("create_arguments", None):
            values["create"] = create
        if self.profile is not None:
            values["profile"] = json.loads(
                json.dumps(dataclasses.asdict(self.profile))
            )  # with lists, as it is read back
        return values

    @classmethod
    def found(cls) -> list[Self]:
        """See `Inspectable.found`: one for each cloud whose key is in the environment."""
        clouds = PROFILES.items()
        return [cls(cloud) for cloud, profile in clouds if any(os.environ.get(name) for name in profile.key_env)]

    def resolved(self) -> dict[str, object]:
        """Return options that the vendor's own tools take from the environment."""
        names = self._known_profile.options_env.items()
        return {option: os.environ[name] for option, name in names if os.environ.get(name)}

    def make_driver(self) -> Any:
        """Create a driver with the credentials that are found."""
        profile, env = self._known_profile, os.environ
        key = self.key or next((env[name] for name in profile.key_env if env.get(name)), None)
        secret = self.secret or next((env[name] for name in profile.secret_env if env.get(name)), None)
        if not key or (profile.secret_env and not secret):
            sought = " and ".join(
                " or ".join(names) or f"{what}=..."
                for what, names in (("key", profile.key_env), ("secret", profile.secret_env))
                if names or what == "key"
            )
            raise AuthFailed(
                f"{self.name}: no credentials: neither Libcloud({self.driver!r}, key=...) nor {sought} in "
                "the environment"
            )
        options = {**profile.options, **self.resolved(), **self.options}
        try:
            made = get_driver(self.driver)(*(text for text in (key, secret) if text is not None), **options)
        except TypeError as error:
            raise ConfigError(
                f"Libcloud({self.driver!r}): the driver does not take {' and '.join(self.options) or 'this'}: {error}. "
                "Set a region or zone with location="
            ) from error
        if self.url is not None:
            _redirect(made, self.url)
        return made

    # --- offers ---

    def list_offers(self, driver: Any, resources: Resources) -> Iterator[Offer]:
        """List every size in every location that has it."""
        profile = self._known_profile
        places = {} if profile.location is None else {str(place.id): place for place in driver.list_locations()}
        ids = {*places, *(_id(place) for place in places.values())}
        if self.location is not None and self.location not in ids:
            names = ", ".join(sorted(ids)) or "none"
            raise NotFound(f"{self.name}: there is no location {self.location!r}; available: {names}")
        for size in driver.list_sizes(**profile.list_sizes):
            for place in _places_of(size, profile, places):
                if place is None or self.location in (None, place.id, _id(place)):
                    yield self._offer(size, place)

    def _offer(self, size: Any, place: Any) -> Offer:
        profile = self._known_profile
        machine, vcpus, price = str(_get(size, profile.size)), _get(size, profile.vcpus), size.price
        hourly = {"hour": 1.0, "month": _MONTH}.get(profile.price or "")
        gpu = re.search(profile.accelerator, machine) if profile.accelerator else None
        groups = {} if gpu is None else gpu.groupdict()
        return Offer(
            machine=machine,
            vcpus=math.ceil(float(vcpus)) if vcpus else None,
            memory=int(size.ram) * 2**20 if size.ram else None,
            accelerator=groups["model"].upper() if gpu else None,
            accelerators=int(groups.get("count") or 1) if gpu else 0,
            accelerator_memory=int(groups["memory"]) * 10**9 if groups.get("memory") else None,
            region=None if place is None else _id(place),
            price=float(price) / hourly + profile.others if price and hourly else None,
            extra={"size": size, "location": place},
            billing=profile.billing,
        )

    # --- machines ---

    def create_machines(self, driver: Any, order: Order) -> Sequence[Machine]:
        """Create one machine, named like its order."""
        arguments = self.arguments(driver, order)
        try:
            node = driver.create_node(**arguments)
        except Exception as error:  # drivers raise all kinds of errors
            raise self._refusal(error) from error
        return [self._machine(node)]

    def arguments(self, driver: Any, order: Order) -> dict[str, Any]:
        """Return the arguments of the driver's ``create_node``; adds the pool's key to the account if needed."""
        profile, offer = self._known_profile, order.offer
        assert offer is not None
        size, place = offer.extra.get("size"), offer.extra.get("location")
        if size is None or str(_get(size, profile.size)) != offer.machine:
            raise NotFound(f"{self.name}: there is no size {offer.machine!r}")
        given: dict[str, Any] = {"name": order.name, "size": size}
        for path, value in (*profile.create.items(), *self.create_arguments.items()):
            names = value if path in profile.named and isinstance(value, (list, tuple)) else None
            # A copy, since more may be put into a dictionary.
            each = copy.deepcopy(value) if names is None else [SimpleNamespace(id=name, name=name) for name in names]
            _put(given, path, each)
        self._put_image(driver, given)
        if profile.location is not None:
            _put(given, profile.location, place)
        user = "root" if profile.user == "root" else None
        _put(given, profile.user_data, first_boot.cloud_config(order, end=None, user=user))
        if profile.key is not None:
            _put(given, profile.key, self._key(driver, order))
        if profile.tags is not None:
            marks = {"list": [_MARK], "dict": {_MARK: order.tag}, "text": _MARK}
            _put(given, profile.tags, marks[profile.tags_as])
        if profile.password is not None:
            _put(
                given, profile.password, secrets.token_urlsafe(32) + "aA1!"
            )  # all kinds of characters, as some require
        return given

    def _put_image(self, driver: Any, given: dict[str, Any]) -> None:
        profile, wanted = self._known_profile, self.image or self._known_profile.image
        if wanted is None:
            raise ConfigError(f"Libcloud({self.driver!r}): the profile names no image; set one with image=...")
        if profile.image_argument != "image":
            _put(given, profile.image_argument, wanted)
        elif profile.images == "id":
            given["image"] = NodeImage(wanted, wanted, driver)
        else:
            images = driver.list_images()
            exact = [image for image in images if wanted in (str(image.id), image.name)]
            if not exact and self.image is None:
                exact = sorted((i for i in images if re.search(wanted, i.name)), key=lambda image: str(image.name))
            if not exact:
                close = difflib.get_close_matches(wanted, [str(image.name) for image in images], 5, 0.3)
                raise NotFound(f"{self.name}: there is no image {wanted!r}; set one with image=, such as {close}")
            given["image"] = exact[-1]

    def _key(self, driver: Any, order: Order) -> Any:
        """Return the user's key in the form that the driver takes."""
        profile = self._known_profile
        if profile.key_as == "auth":
            return NodeAuthSSHKey(order.user_key)
        if profile.key_as == "line":
            return [order.user_key]
        found = _keys(driver, order.tag)
        if not found:
            try:
                found = [getattr(driver, profile.add_key)(order.tag, order.user_key)]
            except Exception:  # another order of the pool may have added it just now
                found = _keys(driver, order.tag)
                if not found:
                    raise
        key = found[0]
        if profile.key_as == "name":
            return key.name
        return [key.extra["id"]] if profile.key_as == "ids" else key.extra["id"]

    def list_machines(self, driver: Any, tag: str | None) -> Sequence[Machine]:
        """List machines with our tag and the name of an order of the pool."""
        nodes = driver.list_nodes(**self._known_profile.list_nodes)
        ours = (self._machine(node) for node in nodes if self._is_ours(node))
        return [machine for machine in ours if tag in (None, machine.tag)]

    def _is_ours(self, node: Any) -> bool:
        place = self._known_profile.tags_in
        tags = None if place is None else _get(node, place)
        return bool(pool_of(str(node.name))) and (place is None or _MARK in (tags or ()))

    def _machine(self, node: Any) -> Machine:
        """Convert libcloud's node to our machine."""
        profile = self._known_profile
        state = _STATES.get(node.state, MachineState.STARTING)
        shown: Sequence[str] = _get(node, profile.addresses) or ()
        addresses = [text for text in shown if text and text != "0.0.0.0"]  # noqa: S104  not yet known
        host = next((text for text in addresses if ":" not in text), addresses[0] if addresses else None)
        if state is MachineState.RUNNING and host is None:
            state = MachineState.STARTING
        return Machine(
            id=str(node.id),
            endpoint=None if host is None else Endpoint("ssh", host, 22, profile.user),
            name=str(node.name),
            state=state,
            order=str(node.name),
            tag=pool_of(str(node.name)),
            detail=f"{self.driver} says {node.state!r}",
        )

    def destroy_machine(self, driver: Any, id: MachineId) -> None:
        """Destroy a machine, which drivers can only do with a node that they have listed."""
        for node in driver.list_nodes(**self._known_profile.list_nodes):
            if str(node.id) == id and node.state != NodeState.TERMINATED:
                if not driver.destroy_node(node, **self._known_profile.destroy):
                    raise CloudError(f"{self.name}: {id} could not be destroyed, and its driver gives no reason")
                return
        raise NotFound(f"{self.name}: there is no machine {id}")

    def clear_leftovers(self, driver: Any, tag: str) -> None:
        """Delete the pool's key from the account."""
        if self._known_profile.key is not None and self._known_profile.key_as in ("id", "ids", "name"):
            for key in _keys(driver, tag):
                driver.delete_key_pair(key)

    # --- errors ---

    def map_error(self, error: Exception) -> SkywardError | None:
        """Map a driver's own error types by the HTTP status in them."""
        status = None if isinstance(error, BaseHTTPError) else _status(error)
        if status is None:
            return None
        return self._mapped(BaseHTTPError(status, str(error)))  # type: ignore[no-untyped-call]

    def _refusal(self, error: Exception) -> SkywardError:
        """Map an error of ``create_node``: why there is no machine, or that it is unknown whether there is one."""
        profile = self._known_profile
        text = f"{self.name}: {' '.join(str(error).split())[:500]}"
        said = f"{getattr(error, 'code', '')} {error}"
        mapped = self.map_error(error) or self._mapped(error)
        # A 5xx, whatever its text, may come from a gateway after the machine was created.
        failed = (_status(error) or 0) >= 500
        if failed or isinstance(error, _NO_ANSWER) or isinstance(mapped, RateLimited):
            return mapped
        for pattern, kind in ((profile.quota, QuotaExceeded), (profile.capacity, NoCapacity)):
            if pattern and re.search(pattern, said):
                return kind(text)
        if type(mapped) is ProvisioningError and not isinstance(error, BaseHTTPError) and _status(error) is None:
            return CloudError(f"{text} ({type(error).__name__})")  # the driver may have failed on the reply
        return mapped


def _check(driver: str, profile: Profile | None) -> None:
    names = sorted(str(name) for name in DRIVERS)
    if driver not in names:
        close = difflib.get_close_matches(str(driver), names, 5, 0.4) or names
        raise ConfigError(f"Libcloud({driver!r}): libcloud has no such driver; it has {', '.join(close)}")
    if profile is not None and profile.user_data:
        return
    try:
        call = f"{driver}.create_node{inspect.signature(get_driver(driver).create_node)}"
    except (ImportError, ValueError) as error:  # some need a package of their own
        call = f"can't be loaded: {error}"
    raise ConfigError(
        f"Libcloud({driver!r}): skyward has no profile for this driver with its argument for user data. Write one:\n"
        f"    from skyward.providers.libcloud import Libcloud, Profile\n"
        f"    profile = Profile(user_data='ex_userdata', tags='ex_tags', tags_in='extra.tags', vcpus='extra.vcpus',\n"
        f"                      price='hour', image='Ubuntu 24.04', user='root')\n"
        f"    Libcloud({driver!r}, key=..., profile=profile)\n"
        f"with the names of its own arguments, which are: {call}\n"
        "help(Profile) describes each field. A driver that takes no user data can't be used: its machines would show "
        "unknown host keys. There are profiles for: " + ", ".join(PROFILES)
    )


def _redirect(driver: Any, url: str) -> None:
    """Make a driver call another address, even if it takes no such argument."""
    parts, connection = urlsplit(url), driver.connection
    secure = parts.scheme == "https"
    connection.host, connection.port, connection.secure = parts.hostname, parts.port or (443 if secure else 80), secure
    connection.connect()


def _places_of(size: Any, profile: Profile, known: Mapping[str, Any]) -> Sequence[Any]:
    """Return the locations that offer a size, as libcloud's objects; [None] where there are no locations."""
    if profile.location is None:
        return [None]
    if profile.locations is None:
        return list(known.values())
    found = _get(size, profile.locations)
    each = found if isinstance(found, (list, tuple)) else [found]
    return [place for item in each if (place := known.get(item) if isinstance(item, str) else item) is not None]


def _id(place: Any) -> str:
    """Return what people call a location: its id, or its name where the id is only a number."""
    return str(place.name if str(place.id).isdecimal() else place.id)


def _keys(driver: Any, name: str) -> list[Any]:
    return [key for key in driver.list_key_pairs() if key.name == name]


def _get(thing: Any, path: str) -> Any:
    """Return the value at a path of attributes and keys; None if there is none."""
    for word in path.split("."):
        thing = thing.get(word) if isinstance(thing, Mapping) else getattr(thing, word, None)
    return thing


def _put(given: dict[str, Any], path: str, value: Any) -> None:
    """Set an argument, or an entry of an argument that is a dictionary."""
    *outer, last = path.split(".")
    for word in outer:
        given = given.setdefault(word, {})
    given[last] = value


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an error, from an attribute or only from its text."""
    for name in ("http_code", "code", "status"):
        value = getattr(error, name, None)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    match = _STATUS.search(str(error))
    return int(match[1]) if match else None
