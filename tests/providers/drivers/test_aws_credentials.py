"""Credentials as botocore finds them: wherever it can be asked, it is."""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError
from botocore.session import Session

from skyward.providers.drivers.aws_credentials import Credentials, CredentialsError, resolve, resolve_region
from tests.lab.clouds.ec2 import EC2

LATER = (datetime.now(UTC) + timedelta(hours=6)).replace(microsecond=0)
EXPIRES = f"{LATER:%Y-%m-%dT%H:%M:%SZ}"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without credentials, on a machine that is no instance."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / ".aws").mkdir()
    return tmp_path


def ours(profile: str | None = None) -> tuple[str, str, str | None]:
    found = resolve(profile=profile)
    return found.access_key, found.secret_key, found.token


def botocores(profile: str | None = None) -> tuple[str, str, str | None] | None:
    found = Session(profile=profile).get_credentials()
    return tuple(found.get_frozen_credentials())[:3] if found is not None else None


FILES: dict[str, tuple[str, str]] = {
    "shared": ("[default]\naws_access_key_id = A\naws_secret_access_key = B\n", ""),
    "shared with a token": ("[default]\naws_access_key_id=A\naws_secret_access_key=B\naws_session_token=T\n", ""),
    "both kinds of tokens": (
        "[default]\naws_access_key_id=A\naws_secret_access_key=B\naws_session_token=T\naws_security_token=S\n",
        "",
    ),
    "config only": ("", "[default]\naws_access_key_id = A\naws_secret_access_key = B\n"),
    "shared before config": (
        "[default]\naws_access_key_id=A\naws_secret_access_key=B\n",
        "[default]\naws_access_key_id=C\naws_secret_access_key=D\n",
    ),
    "names in capitals": ("[default]\nAWS_ACCESS_KEY_ID = A\naws_Secret_Access_Key = B\n", ""),
    "a percent sign": ("[default]\naws_access_key_id = A\naws_secret_access_key = B%s%%/+=\n", ""),
    "comments and colons": ("# mine\n[default]\naws_access_key_id: A\n; old\naws_secret_access_key: B\n", ""),
    "no value from default": ("[default]\naws_secret_access_key=B\n[other]\naws_access_key_id=A\n", ""),
    "process in config": ("", f'[default]\ncredential_process = {sys.executable} PROCESS "two words"\n'),
    "process in shared": (f"[default]\ncredential_process = {sys.executable} PROCESS 'two words'\n", ""),
    "keys before a process": (
        "[default]\naws_access_key_id=A\naws_secret_access_key=B\n",
        f"[default]\ncredential_process = {sys.executable} PROCESS x\n",
    ),
    "nested": ("", "[default]\naws_access_key_id=A\naws_secret_access_key=B\ns3 =\n  max_concurrent_requests = 2\n"),
    "nothing": ("", ""),
}


def write_files(home: Path, shared: str, config: str) -> None:
    process = home / "process.py"
    answer = {"Version": 1, "AccessKeyId": "P", "SecretAccessKey": "Q", "SessionToken": "R", "Expiration": EXPIRES}
    process.write_text(f"import json, sys; print(json.dumps({answer!r} | {{'SecretAccessKey': sys.argv[1]}}))")
    (home / ".aws/credentials").write_text(shared.replace("PROCESS", str(process)))
    (home / ".aws/config").write_text(config.replace("PROCESS", str(process)))


@pytest.mark.parametrize("case", FILES)
def test_files_as_botocore_reads_them(home: Path, case: str):
    write_files(home, *FILES[case])
    expected = botocores()
    if expected is None:
        with pytest.raises(CredentialsError, match="Found no AWS credentials"):
            ours()
    else:
        assert ours() == expected


PROFILES = (
    "[one]\naws_access_key_id=A1\naws_secret_access_key=B1\n"
    "[two words]\naws_access_key_id=A2\naws_secret_access_key=B2\n",
    "[profile three]\naws_access_key_id=A3\naws_secret_access_key=B3\nregion=eu-west-1\n"
    '[profile "four 4"]\naws_access_key_id=A4\naws_secret_access_key=B4\n'
    "[five]\naws_access_key_id=A5\naws_secret_access_key=B5\n"
    "[profile 'open]\naws_access_key_id=A6\naws_secret_access_key=B6\n"
    "[profile one]\nregion=us-west-2\n[default]\nregion=ap-south-1\n",
)


@pytest.mark.parametrize("profile", ["one", "two words", "three", "four 4", "five", "default", "open", "'open"])
@pytest.mark.parametrize("how", ["argument", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"])
@pytest.mark.parametrize("keys", [True, False])
def test_profiles_as_botocore_takes_them(
    home: Path, monkeypatch: pytest.MonkeyPatch, profile: str, how: str, *, keys: bool
):
    write_files(home, *PROFILES)
    argument = profile if how == "argument" else None
    if argument is None:
        monkeypatch.setenv(how, profile)
        monkeypatch.setenv("AWS_PROFILE" if how == "AWS_DEFAULT_PROFILE" else "AWS_UNUSED", "three")
    if keys:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "E")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "F")
    try:
        expected = botocores(argument)
        region = Session(profile=argument).get_config_variable("region")
    except BotoCoreError:
        with pytest.raises(CredentialsError, match="no AWS profile"):
            ours(argument)
        return
    assert resolve_region(argument) == region
    if expected is None:
        with pytest.raises(CredentialsError, match="Found no AWS credentials"):
            ours(argument)
    else:
        assert ours(argument) == expected


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "B"},
        {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "B", "AWS_SESSION_TOKEN": "T"},
        {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "B", "AWS_SESSION_TOKEN": "T", "AWS_SECURITY_TOKEN": "S"},
        {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "B", "AWS_CREDENTIAL_EXPIRATION": EXPIRES},
        {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": ""},
        {"AWS_ACCESS_KEY_ID": "A"},
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "B"},
        {"AWS_SHARED_CREDENTIALS_FILE": "~/elsewhere"},
        {"AWS_CONFIG_FILE": "~/elsewhere"},
        {"AWS_SHARED_CREDENTIALS_FILE": "~/nowhere", "AWS_CONFIG_FILE": "~/nowhere"},
    ],
)
def test_the_environment_as_botocore_takes_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]
):
    write_files(home, *FILES["shared before config"])
    (home / "elsewhere").write_text("[default]\naws_access_key_id=X\naws_secret_access_key=Y\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    try:
        expected = botocores()
    except BotoCoreError:
        with pytest.raises(CredentialsError, match="AWS_SECRET_ACCESS_KEY is not"):
            ours()
        return
    if expected is None:
        with pytest.raises(CredentialsError, match="Found no AWS credentials"):
            ours()
    else:
        assert ours() == expected


def test_regions_come_from_the_environment_first(home: Path, monkeypatch: pytest.MonkeyPatch):
    assert resolve_region() is None
    write_files(home, *PROFILES)
    assert resolve_region() == "ap-south-1"
    assert resolve_region("three") == "eu-west-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-2")
    assert resolve_region("three") == "us-east-2"
    monkeypatch.setenv("AWS_REGION", "us-west-1")
    assert resolve_region("three") == "us-west-1"


def test_arguments_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_PROFILE", "missing")
    assert resolve(access_key="A", secret_key="B", token="T") == Credentials("A", "B", "T")
    for half in ({"access_key": "A"}, {"secret_key": "B"}):
        with pytest.raises(CredentialsError, match="both"):
            resolve(**half)


def test_secrets_are_not_shown():
    shown = repr(resolve(access_key="A", secret_key="topsecret", token="hidden"))
    assert "topsecret" not in shown
    assert "hidden" not in shown


def test_the_error_says_where_it_looked(home: Path):
    with pytest.raises(CredentialsError) as failure:
        resolve()
    told = str(failure.value)
    for part in (
        "aws configure",
        "AWS_ACCESS_KEY_ID is not set",
        f"{home}/.aws/credentials: no such file",
        "credential_process",
        f"{home}/.aws/config: no such file",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "switched off by AWS_EC2_METADATA_DISABLED",
    ):
        assert part in told
    write_files(home, *PROFILES)
    with pytest.raises(CredentialsError, match=r"no AWS profile 'nine'.*four 4, one, three, two words"):
        resolve(profile="nine")


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ("[default]\naws_access_key_id = A\n", "but no aws_secret_access_key"),
        ("no section\n", "Can't read"),
        ("[default]\n[default]\n", "Can't read"),
        ("[default]\ncredential_process = /no/such/program\n", "did not run"),
        ("[default]\ncredential_process = 'open\n", "did not run"),
        (f"[default]\ncredential_process = {sys.executable} -c exit(3)\n", "status 3"),
        (f"[default]\ncredential_process = {sys.executable} -c print(1)\n", "not a JSON object"),
        (f"[default]\ncredential_process = {sys.executable} -c \"print('oops')\"\n", "not JSON"),
        (f"[default]\ncredential_process = {sys.executable} -c 'print(\"{{}}\")'\n", "version None"),
        (
            f'[default]\ncredential_process = {sys.executable} -c \'print("{{\\"Version\\": 1}}")\'\n',
            "no AccessKeyId and no SecretAccessKey",
        ),
    ],
)
def test_broken_files_are_errors(home: Path, shared: str, message: str):
    write_files(home, shared, "")
    with pytest.raises(CredentialsError, match=message):
        resolve()


def test_expiry(home: Path, monkeypatch: pytest.MonkeyPatch):
    write_files(home, *FILES["process in config"])
    found = resolve()
    assert found.expires == LATER
    assert not found.expired()
    assert found.expired(margin=7 * 3600)
    assert found.expired(LATER)
    assert not Credentials("A", "B").expired()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "B")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2020-01-01T00:00:00Z")
    with pytest.raises(CredentialsError, match="expired at 2020-01-01"):
        resolve()
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "soon")
    with pytest.raises(CredentialsError, match="'soon' is not a time"):
        resolve()


# Services that give credentials


class Service(http.server.ThreadingHTTPServer):
    """Container credentials at /container, instance metadata below /latest, version 2 only."""

    daemon_threads = True
    role = "node"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.answer: dict[str, Any] = {
            "Code": "Success",
            "AccessKeyId": "I",
            "SecretAccessKey": "J",
            "Token": "K",
            "Expiration": EXPIRES,
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Service

    def log_message(self, *_: Any) -> None:
        pass

    def do_PUT(self) -> None:
        self._reply(200, "pass" if self.headers.get("X-aws-ec2-metadata-token-ttl-seconds") else "")

    def do_GET(self) -> None:
        roles = "/latest/meta-data/iam/security-credentials/"
        if self.path.startswith("/latest/") and self.headers.get("X-aws-ec2-metadata-token") != "pass":
            self._reply(401, "")
        elif self.path == roles and self.server.role:
            self._reply(200, self.server.role)
        elif self.path in {"/container", roles + self.server.role} and self.server.role:
            self._reply(200, json.dumps(self.server.answer))
        else:
            self._reply(404, "")

    def _reply(self, status: int, body: str) -> None:
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_containers_as_botocore_asks_them(home: Path, monkeypatch: pytest.MonkeyPatch, service: Service):
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{service.url}/container")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "Basic abc")
    assert ours() == botocores() == ("I", "J", "K")
    (home / "token").write_text("Basic file")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(home / "token"))
    assert resolve().expires == LATER
    assert ours() == botocores()
    assert [headers["Authorization"] for _, _, headers in service.seen] == ["Basic abc"] * 2 + ["Basic file"] * 3
    write_files(home, *FILES["shared"])
    assert ours() == botocores() == ("A", "B", None)


def test_containers_that_are_none_of_ours(home: Path, monkeypatch: pytest.MonkeyPatch, service: Service):
    for url in ("http://evil.example/x", "http://10.0.0.1/x", "file:///etc/passwd", "ftp://127.0.0.1/x"):
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
        with pytest.raises(CredentialsError, match="must be https"):
            resolve()
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{service.url}/other")
    with pytest.raises(CredentialsError, match="can't be had: HTTP Error 404"):
        resolve()
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "a\nHost: b")
    with pytest.raises(CredentialsError, match="line break"):
        resolve()
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(home / "missing"))
    with pytest.raises(CredentialsError, match="Can't read"):
        resolve()


def test_instances_as_botocore_asks_them(monkeypatch: pytest.MonkeyPatch, service: Service):
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
    assert ours() == botocores() == ("I", "J", "K")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # not asked, unlike by botocore
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    found = resolve(metadata_url=service.url + "/")
    assert (found.source, found.expires) == ("instance metadata (role node)", LATER)
    with pytest.raises(CredentialsError, match=r"instance metadata at http://127.0.0.1:9: no answer"):
        resolve()


def test_instances_without_a_role(monkeypatch: pytest.MonkeyPatch, service: Service):
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    service.answer = {"Code": "AssumeRoleUnauthorizedAccess", "Message": "EC2 cannot assume the role"}
    with pytest.raises(CredentialsError, match="EC2 cannot assume the role"):
        resolve(metadata_url=service.url)
    service.role = ""
    with pytest.raises(CredentialsError, match="no role belongs to this instance"):
        resolve(metadata_url=service.url)
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "x")
    with pytest.raises(CredentialsError, match="not a number of seconds"):
        resolve(metadata_url=service.url)


# What botocore does for us

ROLE = "role_arn = arn:aws:iam::123456789012:role/runner\n"
DELEGATED = {
    "role": (f"[profile x]\n{ROLE}source_profile = keys\n", "a role"),
    "web identity": (f"[profile x]\n{ROLE}web_identity_token_file = /token\n", "web identity"),
    "single sign-on": ("[profile x]\nsso_session = s\nsso_account_id = 1\nsso_role_name = r\n", "single sign-on"),
    "console login": ("[profile x]\nlogin_session = arn:aws:iam::1:user/me\n", "console login"),
}


@pytest.mark.parametrize("case", DELEGATED)
def test_without_botocore_the_error_names_it(home: Path, monkeypatch: pytest.MonkeyPatch, case: str):
    config, what = DELEGATED[case]
    write_files(home, "", config)
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(CredentialsError, match=rf"profile 'x' uses {what}.*pip install botocore.*export-credentials"):
        resolve(profile="x")


def test_a_role_is_assumed_through_botocore(home: Path, monkeypatch: pytest.MonkeyPatch):
    with EC2() as cloud:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", cloud.url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        keys = f"[keys]\naws_access_key_id={cloud.access_key}\naws_secret_access_key={cloud.secret_key}\n"
        write_files(home, keys, DELEGATED["role"][0])
        found = resolve(profile="x")
        assert found.access_key.startswith("ASIA")
        assert found.token
        assert found.expires is not None
        assert found.expires > datetime.now(UTC)
        assert found.source == "profile 'x' (a role (role_arn), through botocore)"
        cloud.faults.on("bad_credentials")
        with pytest.raises(CredentialsError, match=r"profile 'x'.*gave no credentials.*AuthFailure"):
            resolve(profile="x")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "E")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "F")
        monkeypatch.setenv("AWS_PROFILE", "x")
        assert ours() == botocores() == ("E", "F", None)
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        (home / "token").write_text("a.b.c")
        monkeypatch.setenv("AWS_PROFILE", "keys")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(home / "token"))
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/runner")
        assert "web identity" in resolve_source()


def resolve_source() -> str:
    """Where they come from, or what went wrong."""
    try:
        return resolve().source
    except CredentialsError as error:
        return str(error)
