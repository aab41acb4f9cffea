"""moto's EC2 in this process, answering in the shape that AWS has.

moto writes EC2's namespace without its last slash, and puts it on errors, which have none at AWS; clients that compare
names, as libcloud does, then see nothing at all. It takes a second to import, so nobody imports this module but when an
AWS starts.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from moto import settings
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID
from moto.core.base_backend import BackendDict
from moto.core.model_instances import reset_model_data
from moto.core.parse import default_timestamp_parser
from moto.ec2.models.amis import Ami
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.test import run_wsgi_app

from .ec2_catalogue import AMIS, DATA_DEVICES
from .ec2_shape import NAMESPACE

__all__ = ["Moto"]

_MOTOS = NAMESPACE[:-1].encode()


class _Image(Ami):
    """An image that may have data volumes, which outlive their instances unless a launch says otherwise."""

    data_devices: tuple[str, ...] = ()

    @property
    def block_device_mappings(self) -> list[dict[str, Any]]:
        root, *_ = super().block_device_mappings
        return [root, *({**root, "DeviceName": device} for device in self.data_devices)]


class Moto:
    """All of moto, empty. There is one in a process, as moto keeps its state in its modules."""

    def __init__(self) -> None:
        settings.ec2_load_default_amis = lambda: False  # 1,301 images, of which we want none
        BackendDict.reset()
        reset_model_data()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._furnished: set[str] = set()

    def backend(self, region: str) -> Any:
        """EC2's models of a region, with the lab's images."""
        backend = get_backend("ec2")[DEFAULT_ACCOUNT_ID][region]
        if region not in self._furnished:
            self._furnished.add(region)
            for ami in AMIS:
                created = default_timestamp_parser(ami["creation_date"])
                image = backend.amis[ami["ami_id"]] = _Image(backend, **{**ami, "creation_date": created})
                image.data_devices = DATA_DEVICES.get(image.id, ())
        return backend

    def call(self, environ: Mapping[str, Any], fields: Mapping[str, str]) -> tuple[int, bytes]:
        """Pass a request on, with these fields; status and body."""
        body = urlencode(fields).encode()
        changed = {
            **environ,
            "REQUEST_METHOD": "POST",
            "QUERY_STRING": "",
            "CONTENT_TYPE": "application/x-www-form-urlencoded; charset=utf-8",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
        # What this server's own framework left there is not moto's.
        changed = {name: value for name, value in changed.items() if not name.startswith(("flask.", "werkzeug."))}
        parts, status, _ = run_wsgi_app(self._app, changed, buffered=True)
        return int(status.split()[0]), _as_aws(b"".join(parts))


def _as_aws(body: bytes) -> bytes:
    if body.lstrip().startswith(b"<") and _MOTOS in body[:400]:
        body = body.replace(b'<Response xmlns="' + _MOTOS + b'">', b"<Response>")
        body = body.replace(b'xmlns="' + _MOTOS + b'"', b'xmlns="' + _MOTOS + b'/"')
    return body.replace(b">request-id<", f">{uuid.uuid4()}<".encode())
