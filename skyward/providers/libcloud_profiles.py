"""Describes how each driver of Apache Libcloud takes what a machine needs: values, no code.

Libcloud's drivers agree on `create_node`, but on few of its arguments. What they share is in the adapter (libcloud.py);
what differs is a `Profile`. Those in this file were written against the drivers of Libcloud 3.9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from skyward.core.billing import BY_THE_SECOND, Billing

__all__ = ["PROFILES", "Profile"]


@dataclass(frozen=True)
class Profile:
    """What the adapter must know about a driver.

    Arguments of ``create_node`` have the driver's names; ``"ex_create_attr.tags"`` is the entry ``"tags"`` of a
    dictionary. Paths into what the driver returns are written likewise: ``"extra.vcpus"``.

    Attributes
    ----------
    user_data
        Argument for cloud-init's user data, which contains our host key. A driver without it can't be used.
    key, key_as
        Argument for the public key, and its form: "line" (a list of key lines), "id" or "ids" (of a key that is added
        to the account), "name" (of such a key) or "auth" (a `NodeAuthSSHKey`). None where user data suffices; some
        clouds set a root password on machines without a key, which has to be changed at the first login.
    add_key
        Method that adds a key to the account; it takes a name and the key's line.
    tags, tags_as
        Argument for tags, and its form: "list", "dict" or "text".
    tags_in
        Path to a node's tags; None: a machine is identified by its name alone.
    size, vcpus, price
        Paths to a size's name and cores; the time that its price is for, None if it has no price.
    accelerator
        Pattern of the names of sizes with accelerators, with the groups "model", and optionally "count" and "memory"
        (GB).
    image, images
        The image to use unless the user names one, and how: "id" (as it is) or "listed" (a pattern; the alphabetically
        last of the matching names).
    image_argument
        Argument for the image; any other than ``"image"`` takes the name itself.
    location, locations
        Argument for the location, None if there is none; path to a size's locations, None: it is available in all.
    user
        Login name; if not root, the image's default user.
    password
        Argument that requires a password; it gets a random one that is not kept.
    addresses
        Path to a node's addresses.
    create, list_sizes, list_nodes, destroy
        Further arguments of these calls.
    named
        Arguments for which the driver takes objects with a name and an id; users write names.
    billing
        The minimum time billed, the billing unit, and the minimum charge.
    others
        US dollars per hour for the disk and the public address, if the size's price does not include them.
    quota, capacity
        Patterns of errors that mean: the account may not have more; there is none at the moment. Not applied to a 5xx,
        which may be a gateway's.
    key_env, secret_env, options, options_env
        Environment variables that the vendor's own tools read; further arguments of the driver, and the variables that
        set them.
    """

    user_data: str
    key: str | None = None
    key_as: Literal["line", "id", "ids", "name", "auth"] = "line"
    add_key: str = "import_key_pair_from_string"
    tags: str | None = None
    tags_as: Literal["list", "dict", "text"] = "list"
    tags_in: str | None = None
    size: str = "id"
    vcpus: str = "extra.vcpus"
    price: Literal["hour", "month"] | None = "hour"
    accelerator: str | None = None
    image: str | None = None
    images: Literal["id", "listed"] = "listed"
    image_argument: str = "image"
    location: str | None = "location"
    locations: str | None = None
    user: str = "root"
    password: str | None = None
    addresses: str = "public_ips"
    create: Mapping[str, object] = field(default_factory=dict)
    list_sizes: Mapping[str, object] = field(default_factory=dict)
    list_nodes: Mapping[str, object] = field(default_factory=dict)
    destroy: Mapping[str, object] = field(default_factory=dict)
    named: Sequence[str] = ()
    billing: Billing = BY_THE_SECOND
    others: float = 0.0
    quota: str | None = None
    capacity: str | None = None
    key_env: Sequence[str] = ()
    secret_env: Sequence[str] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    options_env: Mapping[str, str] = field(default_factory=dict)


PROFILES: dict[str, Profile] = {
    "digitalocean": Profile(
        user_data="ex_user_data",
        key="ex_create_attr.ssh_keys",  # without one it mails a password to be changed at the first login
        key_as="ids",
        add_key="create_key_pair",
        tags="ex_create_attr.tags",
        tags_in="extra.tags",
        accelerator=r"gpu-(?P<model>[a-z]+\d+\w*?)x(?P<count>\d+)-(?P<memory>\d+)gb",
        image="ubuntu-24-04-x64",
        images="id",
        locations="extra.regions",
        # Per second since January 2026, "with a minimum charge of 60 seconds or $0.01 (whichever is higher)"
        # (DigitalOcean in www.digitalocean.com/community/questions/how-billing-works-for-1-hour).
        billing=Billing(minimum=60.0, minimum_cost=0.01),
        quota=r"exceed your droplet limit",
        capacity=r"not available in this region|currently unavailable|capacity",
        key_env=("DIGITALOCEAN_ACCESS_TOKEN", "DIGITALOCEAN_TOKEN"),
    ),
    "gce": Profile(
        user_data="ex_metadata.user-data",
        tags="ex_labels",
        tags_as="dict",
        tags_in="extra.labels",
        size="name",
        vcpus="extra.guestCpus",
        image="ubuntu-2404-lts-amd64",
        images="id",
        image_argument="ex_image_family",
        locations="extra.zone",
        user="ubuntu",
        create={"image": None},  # has no default, and excludes an image family
        destroy={"destroy_boot_disk": False},  # it is deleted with its machine
        # "charged a minimum of 1 minute", then "in 1 second increments" (cloud.google.com/compute/vm-instance-pricing)
        billing=Billing(minimum=60.0),
        others=0.0055,  # 10 GB, and an address
        quota=r"QUOTA_EXCEEDED|quotaExceeded|Quota '",
        capacity=r"RESOURCE_POOL_EXHAUSTED|does not have enough resources",
        key_env=("GCE_CLIENT_EMAIL",),
        secret_env=("GOOGLE_APPLICATION_CREDENTIALS",),
        options_env={"project": "GOOGLE_CLOUD_PROJECT"},
    ),
    "linode": Profile(
        user_data="ex_userdata",
        key="ex_authorized_keys",
        tags="ex_tags",
        tags_in="extra.tags",
        accelerator=r"gpu-(?P<model>rtx\d+(?:-?ada)?)\w*?[a-]?(?P<count>\d)?(?:-\w+)?$",
        image="linode/ubuntu24.04",
        images="id",
        password="root_pass",  # noqa: S106  the argument's name
        billing=Billing(unit=3600.0),  # "rounded up to the nearest hour" (linode.com/community/questions/23981)
        quota=r"[Ll]imit reached",
        capacity=r"not available|capacity|sold out",
        key_env=("LINODE_CLI_TOKEN", "LINODE_TOKEN"),
    ),
    "openstack": Profile(
        user_data="ex_userdata",
        tags="ex_metadata",
        tags_as="dict",
        tags_in="extra.metadata",
        size="name",
        vcpus="vcpus",
        price=None,
        image=r"(?i)ubuntu.*24\.04",
        location=None,
        user="ubuntu",
        named=("ex_security_groups", "networks"),
        quota=r"Quota exceeded",
        capacity=r"No valid host|not enough hosts",
        key_env=("OS_USERNAME",),
        secret_env=("OS_PASSWORD",),
        options={"ex_force_auth_version": "3.x_password"},
        options_env={
            "ex_force_auth_url": "OS_AUTH_URL",
            "ex_tenant_name": "OS_PROJECT_NAME",
            "ex_domain_name": "OS_USER_DOMAIN_NAME",
            "ex_force_service_region": "OS_REGION_NAME",
        },
    ),
    "vultr": Profile(
        user_data="ex_userdata",
        tags="ex_tag",
        tags_as="text",
        vcpus="extra.vcpu_count",
        price="month",
        image=r"^Ubuntu 24\.04 LTS x64$",
        locations="extra.locations",
        list_sizes={"ex_list_bare_metals": False},
        list_nodes={"ex_list_bare_metals": False},
        billing=Billing(unit=3600.0),  # an hour that has begun is one (how-am-i-billed-for-my-servers in their docs)
        quota=r"limit|maximum",
        capacity=r"not available|unavailable|sold out",
        key_env=("VULTR_API_KEY",),
    ),
}
