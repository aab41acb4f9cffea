"""AWS credentials as botocore finds them, without botocore.

The places, in botocore's order: arguments, environment, roles and single sign-on of the profile, shared credentials
file, ``credential_process``, config file, container, instance metadata. Roles, single sign-on and web identity need
calls to AWS with caches of their own; those are left to botocore where it is installed, and an error says so where it
is not. Not looked at: the files of boto 2 (``~/.boto``, ``AWS_CREDENTIAL_FILE``).
"""

from __future__ import annotations

import configparser
import contextlib
import importlib
import ipaddress
import json
import os
import shlex
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["Credentials", "CredentialsError", "resolve", "resolve_region"]

_METADATA = "http://169.254.169.254"
_METADATA_TIMEOUT = 1.0
_ROLES = "/latest/meta-data/iam/security-credentials/"
_CONTAINER = "http://169.254.170.2"
_CONTAINER_HOSTS = ("169.254.170.2", "169.254.170.23", "fd00:ec2::23", "localhost")
_CONTAINER_TIMEOUT = 2.0
_PROCESS_TIMEOUT = 120.0  # it may ask its user for a code
_TOKENS = ("aws_security_token", "aws_session_token")  # botocore looks at the older name first


class CredentialsError(Exception):
    """There are no usable credentials; says where they were sought, or what is wrong with those that were found."""


@dataclass(frozen=True)
class Credentials:
    """A key pair with its origin in words; never shows its secrets."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    expires: datetime | None = None
    """None: they do not expire. Otherwise `resolve` again in time."""
    source: str = "arguments"

    def expired(self, now: datetime | None = None, margin: float = 0.0) -> bool:
        """Whether they are of no use in `margin` seconds from now."""
        return self.expires is not None and (self.expires - (now or datetime.now(UTC))).total_seconds() <= margin


def resolve(
    *,
    access_key: str | None = None,
    secret_key: str | None = None,
    token: str | None = None,
    profile: str | None = None,
    metadata_url: str | None = None,
) -> Credentials:
    """Find credentials.

    Parameters
    ----------
    access_key, secret_key, token
        Taken as they are.
    profile
        Name of a profile; then the keys in the environment do not count. By default what AWS_PROFILE says.
    metadata_url
        Where the instance metadata are, instead of AWS_EC2_METADATA_SERVICE_ENDPOINT or the usual address.

    Raises
    ------
    CredentialsError
        There are none; or a place that should have some has them incomplete, expired or unreadable.
    """
    if access_key or secret_key:
        if not (access_key and secret_key):
            raise CredentialsError("Give both access_key and secret_key, or neither to have them looked up")
        return Credentials(access_key, secret_key, token)
    place = _Places(profile, metadata_url)
    tried = []
    for look in (
        place.environment,
        place.delegated,
        place.credentials_file,
        place.process,
        place.config_file,
        place.container,
        place.metadata,
    ):
        found = look()
        if isinstance(found, Credentials):
            if found.expired():
                raise CredentialsError(
                    f"The AWS credentials from {found.source} expired at {found.expires}; renew them"
                )
            return found
        tried.append(found)
    lines = "".join(f"\n  - {line}" for line in tried)
    raise CredentialsError(
        "Found no AWS credentials. Run 'aws configure', set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a "
        f"profile (AWS_PROFILE). Looked at:{lines}"
    )


def resolve_region(profile: str | None = None) -> str | None:
    """The region that the user has chosen: AWS_REGION, AWS_DEFAULT_REGION or the profile's; None without any."""
    for variable in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        if os.environ.get(variable):
            return os.environ[variable]
    return _Places(profile, None).merged.get("region")


class _Places:
    """Where credentials may be. Each place returns them, or a line that says why it has none."""

    def __init__(self, profile: str | None, metadata_url: str | None) -> None:
        environment = os.environ
        self.explicit = profile
        named = profile or environment.get("AWS_DEFAULT_PROFILE") or environment.get("AWS_PROFILE")
        self.profile = named or "default"
        self.metadata_url = metadata_url or environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _METADATA
        self.shared = _path("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
        self.config = _path("AWS_CONFIG_FILE", "~/.aws/config")
        shared, config = _read(self.shared), _profiles(_read(self.config))
        self.in_shared = shared.get(self.profile, {})
        self.in_config = config.get(self.profile, {})
        self.merged = {**self.in_config, **self.in_shared}
        if named and self.profile not in shared and self.profile not in config:
            known = ", ".join(sorted({*shared, *config})) or "none"
            raise CredentialsError(
                f"There is no AWS profile {self.profile!r} in {self.shared} or {self.config}; there are: {known}"
            )

    def environment(self) -> Credentials | str:
        if self.explicit:
            return f"environment: left out, as profile {self.explicit!r} was asked for"
        access_key = os.environ.get("AWS_ACCESS_KEY_ID")
        if not access_key:
            return "environment: AWS_ACCESS_KEY_ID is not set"
        secret_key = os.environ.get("AWS_SECRET_ACCESS_KEY")
        if not secret_key:
            raise CredentialsError("AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not")
        token = os.environ.get("AWS_SECURITY_TOKEN") or os.environ.get("AWS_SESSION_TOKEN")
        expires = _time(os.environ.get("AWS_CREDENTIAL_EXPIRATION"), "AWS_CREDENTIAL_EXPIRATION")
        return Credentials(access_key, secret_key, token or None, expires, "environment")

    def delegated(self) -> Credentials | str:
        kind = self._botocore_only()
        if kind is None:
            return f"profile {self.profile!r}: has no role, single sign-on or web identity"
        try:
            session = importlib.import_module("botocore.session")
            errors = importlib.import_module("botocore.exceptions")
        except ImportError as error:
            raise CredentialsError(
                f"The AWS profile {self.profile!r} uses {kind}, which needs botocore: pip install botocore. Or put the "
                f"keys into the environment: aws configure export-credentials --profile {self.profile} --format env"
            ) from error
        source = f"profile {self.profile!r} ({kind}, through botocore)"
        try:
            found = session.Session(profile=self.explicit).get_credentials()
            frozen = found.get_frozen_credentials() if found is not None else None
        except (errors.BotoCoreError, errors.ClientError) as error:
            raise CredentialsError(f"The AWS {source} gave no credentials: {error}") from error
        if frozen is None:
            raise CredentialsError(f"The AWS {source} gave no credentials")
        # botocore renews credentials by itself, so it shows nobody when they expire.
        expires = getattr(found, "_expiry_time", None)
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token, expires, source)

    def _botocore_only(self) -> str | None:
        """What this profile or environment uses that only botocore can do, in words."""
        if "role_arn" in self.merged and "web_identity_token_file" not in self.merged:
            return "a role (role_arn)"
        in_environment = not self.explicit and os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")
        if "web_identity_token_file" in self.merged or in_environment:
            return "web identity (web_identity_token_file)"
        if "sso_account_id" in self.merged or "sso_role_name" in self.merged:
            return "single sign-on (sso_account_id)"
        # Later in botocore's order than the shared credentials file.
        if "login_session" in self.merged and "aws_access_key_id" not in self.in_shared:
            return "console login (login_session)"
        return None

    def credentials_file(self) -> Credentials | str:
        return self._from_section(self.in_shared, self.shared)

    def config_file(self) -> Credentials | str:
        return self._from_section(self.in_config, self.config)

    def _from_section(self, section: Mapping[str, str], path: Path) -> Credentials | str:
        if "aws_access_key_id" not in section:
            return f"{path}: " + (f"no keys in profile {self.profile!r}" if path.exists() else "no such file")
        if "aws_secret_access_key" not in section:
            raise CredentialsError(
                f"{path}: profile {self.profile!r} has aws_access_key_id but no aws_secret_access_key"
            )
        token = next((section[name] for name in _TOKENS if name in section), None)
        keys = section["aws_access_key_id"], section["aws_secret_access_key"]
        return Credentials(*keys, token, None, f"profile {self.profile!r} in {path}")

    def process(self) -> Credentials | str:
        command = self.merged.get("credential_process")
        if not command:
            return f"profile {self.profile!r}: has no credential_process"
        what = f"credential_process of profile {self.profile!r} ({command})"
        try:
            words = shlex.split(command) if os.name == "posix" else command
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_PROCESS_TIMEOUT)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise CredentialsError(f"The {what} did not run: {error}") from error
        if done.returncode:
            raise CredentialsError(f"The {what} ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
        answer = _json(done.stdout, what)
        if answer.get("Version") != 1:
            raise CredentialsError(f"The {what} answered in version {answer.get('Version')!r}; version 1 is known")
        return _from_answer(answer, what, "SessionToken")

    def container(self) -> Credentials | str:
        relative = os.environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        url = f"{_CONTAINER}{relative}" if relative else os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        if not url:
            return "container: AWS_CONTAINER_CREDENTIALS_RELATIVE_URI and _FULL_URI are not set"
        _check_container(url)
        what = f"container credentials at {url}"
        headers = {"Accept": "application/json", **_container_token()}
        try:
            body = _fetch(url, headers, timeout=_CONTAINER_TIMEOUT)
        except OSError as error:
            raise CredentialsError(f"The {what} can't be had: {error}") from error
        return _from_answer(_json(body, what), what, "Token")

    def metadata(self) -> Credentials | str:
        if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            return "instance metadata: switched off by AWS_EC2_METADATA_DISABLED"
        base = self.metadata_url.rstrip("/")
        timeout = _number("AWS_METADATA_SERVICE_TIMEOUT", _METADATA_TIMEOUT)
        try:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
            pass_ = {"X-aws-ec2-metadata-token": _fetch(f"{base}/latest/api/token", lifetime, "PUT", timeout=timeout)}
            role = _fetch(f"{base}{_ROLES}", pass_, timeout=timeout).split("\n")[0].strip()
            answer = _json(_fetch(f"{base}{_ROLES}{role}", pass_, timeout=timeout), "instance metadata") if role else {}
        except urllib.error.HTTPError as error:
            return f"instance metadata at {base}: {error.code} {error.reason} (no role belongs to this instance)"
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            return f"instance metadata at {base}: no answer ({reason})"
        if "AccessKeyId" not in answer:
            return f"instance metadata at {base}: {answer.get('Message') or 'no role belongs to this instance'}"
        return _from_answer(answer, f"instance metadata (role {role})", "Token")


def _path(variable: str, usual: str) -> Path:
    return Path(os.environ.get(variable) or usual).expanduser()


def _read(path: Path) -> dict[str, dict[str, str]]:
    """Sections of a file, none if there is no such file; names of options in small letters."""
    # No section is special to AWS, and "default" may not lend its values to the others.
    parser = configparser.RawConfigParser(default_section="")
    try:
        parser.read_string(path.read_text(encoding="utf-8"), source=str(path))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise CredentialsError(f"Can't read {path}: {error}") from error
    return {name: dict(parser[name]) for name in parser.sections()}


def _profiles(sections: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The profiles of a config file, whose sections are called "default" or "profile NAME"."""
    found = {}
    for name, values in sections.items():
        if name == "default":
            found[name] = values
        elif name.startswith("profile"):
            with contextlib.suppress(ValueError):  # an open quote; botocore leaves it out as well
                words = shlex.split(name)
                if len(words) == 2:
                    found[words[1]] = values
    return found


def _from_answer(answer: Mapping[str, Any], what: str, token: str) -> Credentials:
    """Credentials from the JSON that processes, containers and instances give."""
    missing = [name for name in ("AccessKeyId", "SecretAccessKey") if not answer.get(name)]
    if missing:
        raise CredentialsError(f"The answer of the {what} has no {' and no '.join(missing)}")
    expires = _time(answer.get("Expiration"), what)
    return Credentials(answer["AccessKeyId"], answer["SecretAccessKey"], answer.get(token), expires, what)


def _json(text: str, what: str) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise CredentialsError(f"The answer of the {what} is not JSON") from error
    if not isinstance(answer, dict):
        raise CredentialsError(f"The answer of the {what} is not a JSON object")
    return answer


def _time(text: str | None, what: str) -> datetime | None:
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise CredentialsError(f"{what}: {text!r} is not a time such as 2030-01-31T12:00:00Z") from error
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _number(variable: str, usual: float) -> float:
    try:
        return float(os.environ.get(variable) or usual)
    except ValueError as error:
        raise CredentialsError(f"{variable}={os.environ[variable]!r} is not a number of seconds") from error


def _check_container(url: str) -> None:
    """Refuse to take credentials in the clear from anywhere but this machine and AWS's own addresses."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    loopback = False
    with contextlib.suppress(ValueError):
        loopback = ipaddress.ip_address(host).is_loopback
    if parts.scheme != "https" and not (parts.scheme == "http" and (loopback or host in _CONTAINER_HOSTS)):
        raise CredentialsError(
            f"AWS_CONTAINER_CREDENTIALS_FULL_URI={url!r} must be https, or at a loopback address or one of "
            f"{', '.join(_CONTAINER_HOSTS)}"
        )


def _container_token() -> dict[str, str]:
    path = os.environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
    token = os.environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
    if path:
        try:
            token = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise CredentialsError(f"Can't read AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: {error}") from error
    if token and ("\r" in token or "\n" in token):
        raise CredentialsError("The container's authorization token has a line break, which no header may have")
    return {"Authorization": token} if token else {}


def _fetch(url: str, headers: Mapping[str, str], method: str = "GET", *, timeout: float) -> str:
    # These services are next door; a proxy would be asked for addresses that mean something else to it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310 (schemes are checked)
    with opener.open(request, timeout=timeout) as reply:
        body: bytes = reply.read()
    return body.decode("utf-8", "replace")
