"""AWS credentials and regions, as botocore and so AWS's own tools find them.

botocore is imported when it is first asked, since it takes 0.1 s. Only credentials and regions come from it: EC2 is
called by our own driver (ec2.py).
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Credentials", "CredentialsError", "resolve", "resolve_region"]

# Of calls to STS and to single sign-on, in seconds; the metadata of instances have botocore's own limit of one second.
_CONNECT_TIMEOUT, _READ_TIMEOUT, _ATTEMPTS = 5, 20, 3
_LIMIT = 120.0  # seconds for all of it: a credential_process may ask its user for a code, or hang
_PROFILE_VARIABLES = ("AWS_DEFAULT_PROFILE", "AWS_PROFILE")  # in botocore's order


class CredentialsError(Exception):
    """There are no usable credentials; says where they were looked for, or what is wrong with those that were found."""


@dataclass(frozen=True)
class Credentials:
    """A key pair as it is now; never shows its secrets. Keys that expire are renewed by `resolve`."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


def resolve(
    *,
    access_key: str | None = None,
    secret_key: str | None = None,
    token: str | None = None,
    profile: str | None = None,
) -> Credentials:
    """Find credentials.

    Parameters
    ----------
    access_key, secret_key, token
        Taken as they are.
    profile
        Name of a profile; then the keys in the environment do not count. Default: what AWS_PROFILE says.

    Raises
    ------
    CredentialsError
        There are none; or a place that should have some has them incomplete, expired or unreadable.
    """
    if access_key or secret_key:
        if not (access_key and secret_key):
            raise CredentialsError("Give both access_key and secret_key, or neither to have them looked up")
        return Credentials(access_key, secret_key, token)
    with _session(profile) as session:
        frozen = _limited(lambda: (found := session.get_credentials()) and found.get_frozen_credentials(), profile)
    if frozen is None:
        raise CredentialsError(
            "Found no AWS credentials. Run 'aws configure', set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a "
            f"profile (AWS_PROFILE). Searched:{_places(profile)}"
        )
    return Credentials(frozen.access_key, frozen.secret_key, frozen.token)


def resolve_region(profile: str | None = None) -> str | None:
    """The region that the user has chosen: AWS_REGION, AWS_DEFAULT_REGION or the profile's; None without any.

    Raises
    ------
    CredentialsError
        There is no such profile, or the files can't be read.
    """
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:  # botocore does not read AWS_REGION
        with _session(profile) as session:
            region = session.get_config_variable("region")
    return region


@contextlib.contextmanager
def _session(profile: str | None) -> Iterator[Any]:
    """A session of botocore, whose errors are ours."""
    from botocore import exceptions  # noqa: PLC0415 (see above)
    from botocore.config import Config  # noqa: PLC0415
    from botocore.session import Session  # noqa: PLC0415

    session = Session(profile=profile)
    limits = Config(
        connect_timeout=_CONNECT_TIMEOUT, read_timeout=_READ_TIMEOUT, retries={"total_max_attempts": _ATTEMPTS}
    )
    session.set_default_client_config(limits)
    name = _profile(profile)
    try:
        yield session
    except exceptions.ProfileNotFound as error:
        known = ", ".join(sorted(session.available_profiles)) or "none"
        raise CredentialsError(f"There is no AWS profile {name!r} in {_files()}; there are: {known}") from error
    except Exception as error:  # of any kind: botocore lets out what a broken file or answer leads to
        said = " ".join(str(error).split()).rstrip(": ")
        if not isinstance(error, exceptions.BotoCoreError | exceptions.ClientError):
            said = f"{type(error).__name__}: {said}"
        next_step = f"'aws sts get-caller-identity --profile {name}' shows whether they work"
        if isinstance(error, exceptions.SSOError | exceptions.TokenRetrievalError):
            next_step = f"run 'aws sso login --profile {name}'"
        raise CredentialsError(f"The AWS credentials of profile {name!r} can't be used: {said}; {next_step}") from error


def _limited(ask: Callable[[], Any], profile: str | None) -> Any:
    """Call a function that may hang, in a thread which is left behind then; botocore has no limit of its own."""
    answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def call() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=call, name="skyward-aws-credentials", daemon=True).start()
    try:
        answer, error = answers.get(timeout=_LIMIT)
    except queue.Empty:
        name = _profile(profile)
        raise TimeoutError(f"no answer within {_LIMIT:g} s; does the credential_process of {name!r} hang?") from None
    if error is not None:
        raise error
    return answer


def _profile(profile: str | None) -> str:
    named = next((os.environ[name] for name in _PROFILE_VARIABLES if os.environ.get(name)), "default")
    return profile or named


def _files() -> str:
    """The paths of both files, with what is missing."""
    shared = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    config = Path(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()
    return " or ".join(f"{path}{'' if path.exists() else ' (no such file)'}" for path in (shared, config))


def _places(profile: str | None) -> str:
    """Where nothing was found, a line each."""
    disabled = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
    places = (
        f"environment: ignored, since profile {profile!r} was given"
        if profile
        else "environment: AWS_ACCESS_KEY_ID is not set",
        f"profile {_profile(profile)!r} in {_files()}: it has no keys, role, single sign-on or credential_process",
        "container: AWS_CONTAINER_CREDENTIALS_RELATIVE_URI and AWS_CONTAINER_CREDENTIALS_FULL_URI are not set",
        "instance metadata: "
        + ("disabled by AWS_EC2_METADATA_DISABLED" if disabled else "no answer, or no role belongs to this instance"),
    )
    return "".join(f"\n  - {place}" for place in places)
