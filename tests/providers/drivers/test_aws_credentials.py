"""Credentials and regions are found where AWS's own tools find them, and errors say what to do."""

from __future__ import annotations

import ast
import http.server
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest

from skyward.providers.drivers import aws_credentials
from skyward.providers.drivers.aws_credentials import Credentials, CredentialsError, resolve, resolve_region
from tests.lab.clouds.ec2 import EC2

LATER = (datetime.now(UTC) + timedelta(hours=6)).replace(microsecond=0)
EXPIRES = f"{LATER:%Y-%m-%dT%H:%M:%SZ}"
SSO = {"accessKeyId": "S", "secretAccessKey": "O", "sessionToken": "N"}
KEYS = "aws_access_key_id = A\naws_secret_access_key = B\n"


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


def write_files(home: Path, shared: str, config: str = "") -> None:
    process = home / "process.py"
    answer = {"Version": 1, "AccessKeyId": "P", "SecretAccessKey": "Q", "SessionToken": "R", "Expiration": EXPIRES}
    process.write_text(f"import json, sys; print(json.dumps({answer!r} | {{'SecretAccessKey': sys.argv[1]}}))")
    (home / ".aws/credentials").write_text(shared.replace("PROCESS", f"{sys.executable} {process}"))
    (home / ".aws/config").write_text(config.replace("PROCESS", f"{sys.executable} {process}"))


@pytest.mark.parametrize(
    ("shared", "config", "expected"),
    [
        (f"[default]\n{KEYS}", "", ("A", "B", None)),
        (f"[default]\n{KEYS}aws_session_token = T\n", "", ("A", "B", "T")),
        ("", f"[default]\n{KEYS}", ("A", "B", None)),
        (f"[default]\n{KEYS}", "[default]\naws_access_key_id=C\naws_secret_access_key=D\n", ("A", "B", None)),
        ("[default]\naws_access_key_id = A\naws_secret_access_key = B%s%%/+=\n", "", ("A", "B%s%%/+=", None)),
        ("", "[default]\ncredential_process = PROCESS 'two words'\n", ("P", "two words", "R")),
        (f"[default]\n{KEYS}", "[default]\ncredential_process = PROCESS x\n", ("A", "B", None)),
    ],
    ids=["shared", "token", "config", "shared before config", "percent", "process", "keys before a process"],
)
def test_files(home: Path, shared: str, config: str, expected: tuple[str, str, str | None]):
    write_files(home, shared, config)
    assert resolve() == Credentials(*expected)


@pytest.mark.parametrize("how", ["argument", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"])
def test_profiles(home: Path, monkeypatch: pytest.MonkeyPatch, how: str):
    """A profile that is asked for counts more than keys in the environment; one in the environment counts less."""
    write_files(home, "[one]\naws_access_key_id=A1\naws_secret_access_key=B1\n", "[profile one]\nregion=eu-west-1\n")
    if how != "argument":
        monkeypatch.setenv(how, "one")
    profile = "one" if how == "argument" else None
    assert resolve(profile=profile) == Credentials("A1", "B1")
    assert resolve_region(profile) == "eu-west-1"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "E")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "F")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "G")
    assert resolve(profile=profile) == (Credentials("A1", "B1") if profile else Credentials("E", "F", "G"))


def test_files_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch):
    (home / "elsewhere").write_text(f"[default]\n{KEYS}region = eu-west-3\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "~/elsewhere")
    assert resolve() == Credentials("A", "B")
    assert resolve_region() == "eu-west-3"


def test_regions_come_from_the_environment_first(home: Path, monkeypatch: pytest.MonkeyPatch):
    assert resolve_region() is None
    write_files(home, "", "[default]\nregion = ap-south-1\n[profile three]\nregion = eu-west-1\n")
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


@pytest.mark.slow
def test_botocore_is_not_imported_where_it_is_not_asked():
    """Nor does a provider hold anything of it, which would go into pickles."""
    code = """
        import sys, pickle, skyward as sky, skyward.providers.aws, skyward.cli
        with sky.Compute(provider=sky.Local(), console=False) as pool:
            assert pool.submit(abs, -1).result() == 1
        pickle.dumps(sky.AWS(region="eu-west-1", access_key="A", secret_key="B").make_driver)
        assert not any(name.startswith("boto") for name in sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_the_error_says_where_it_looked(home: Path):
    with pytest.raises(CredentialsError) as failure:
        resolve()
    for part in (
        "aws configure",
        "AWS_ACCESS_KEY_ID is not set",
        f"{home}/.aws/credentials (no such file) or {home}/.aws/config (no such file)",
        "credential_process",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "disabled by AWS_EC2_METADATA_DISABLED",
    ):
        assert part in str(failure.value)
    write_files(home, "[one]\n[two words]\n", "[profile three]\n[profile 'four 4']\n")
    with pytest.raises(CredentialsError, match=r"environment: ignored, since profile 'one'"):
        resolve(profile="one")
    with pytest.raises(CredentialsError, match=r"no AWS profile 'nine'.*four 4, one, three, two words"):
        resolve(profile="nine")


def test_a_process_that_hangs_is_not_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(aws_credentials, "_LIMIT", 0.5)
    write_files(home, f"[default]\ncredential_process = {sys.executable} -c 'import time; time.sleep(5)'\n")
    with pytest.raises(CredentialsError, match="does the credential_process of 'default' hang"):
        resolve()


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ("[default]\naws_access_key_id = A\n", "missing: aws_secret_access_key"),
        ("no section\n", "Unable to parse config file: .*/.aws/credentials"),
        ("[default]\n[default]\n", "Unable to parse config file"),
        ("[default]\ncredential_process = /no/such/program\n", "FileNotFoundError.*/no/such/program"),
        ("[default]\ncredential_process = 'open\n", "ValueError: No closing quotation"),
        (f"[default]\ncredential_process = {sys.executable} -c 'exit(\"no card\")'\n", "custom-process: no card"),
        (f"[default]\ncredential_process = {sys.executable} -c print(1)\n", "AttributeError"),
        (f"[default]\ncredential_process = {sys.executable} -c \"print('oops')\"\n", "JSONDecodeError"),
        (f"[default]\ncredential_process = {sys.executable} -c 'print(\"{{}}\")'\n", "Version"),
    ],
)
def test_broken_files_are_errors_with_a_next_step(home: Path, shared: str, message: str):
    write_files(home, shared)
    with pytest.raises(CredentialsError, match=rf"profile 'default' can't be used: .*{message}.*; 'aws sts get-caller"):
        resolve()


def test_keys_that_have_expired(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    with pytest.raises(CredentialsError, match="missing: AWS_SECRET_ACCESS_KEY"):
        resolve()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "B")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", EXPIRES)
    assert resolve() == Credentials("A", "B")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2020-01-01T00:00:00Z")
    with pytest.raises(CredentialsError, match="still expired"):
        resolve()
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "soon")
    with pytest.raises(CredentialsError, match="soon"):
        resolve()


# --- services that give credentials ---


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
        elif self.path.startswith("/federation/credentials?") and self.server.role:
            self._reply(200, json.dumps({"roleCredentials": {**SSO, "expiration": int(LATER.timestamp() * 1000)}}))
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


def test_containers(home: Path, monkeypatch: pytest.MonkeyPatch, service: Service):
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{service.url}/container")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "Basic abc")
    assert resolve() == Credentials("I", "J", "K")
    assert [headers["Authorization"] for _, _, headers in service.seen] == ["Basic abc"]
    write_files(home, f"[default]\n{KEYS}")
    assert resolve() == Credentials("A", "B")


@pytest.mark.slow
def test_containers_that_are_none_of_ours(monkeypatch: pytest.MonkeyPatch, service: Service):
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://evil.example/x")
    with pytest.raises(CredentialsError, match=r"evil\.example"):
        resolve()
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{service.url}/other")
    with pytest.raises(CredentialsError, match=r"404 from container metadata"):
        resolve()


def test_instances(monkeypatch: pytest.MonkeyPatch, service: Service):
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
    assert resolve() == Credentials("I", "J", "K")
    service.answer = {"Code": "AssumeRoleUnauthorizedAccess", "Message": "EC2 cannot assume the role"}
    with pytest.raises(CredentialsError, match="no role belongs to this instance"):
        resolve()


@pytest.mark.slow
def test_metadata_that_never_answer_do_not_hold_up(monkeypatch: pytest.MonkeyPatch):
    """Outside EC2 the address may lead nowhere; the limit is botocore's second for each of two calls."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(CredentialsError, match="instance metadata: no answer"):
            resolve()
        assert time.monotonic() - start < 10


@pytest.mark.slow
def test_single_sign_on(home: Path, monkeypatch: pytest.MonkeyPatch, service: Service):
    """With the token that ``aws sso login`` leaves; without one, that is the advice."""

    def resolve_x() -> str:
        # botocore looks once where the home is.
        code = (
            "from skyward.providers.drivers.aws_credentials import *\nfound = resolve(profile='x')\nprint(vars(found))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        return done.stdout or done.stderr.strip().splitlines()[-1]

    monkeypatch.setenv("AWS_ENDPOINT_URL_SSO", service.url)
    session = "[sso-session s]\nsso_start_url = https://x.awsapps.com/start\nsso_region = us-east-1\n"
    write_files(home, "", f"[profile x]\nsso_session = s\nsso_account_id = 1\nsso_role_name = r\n{session}")
    assert resolve_x().endswith("run 'aws sso login --profile x'")
    cache = home / ".aws/sso/cache"
    cache.mkdir(parents=True)
    token = {"accessToken": "topsecret", "expiresAt": EXPIRES, "startUrl": "https://x.awsapps.com/start"}
    (cache / f"{sha1(b's', usedforsecurity=False).hexdigest()}.json").write_text(json.dumps(token))
    assert ast.literal_eval(resolve_x()) == {"access_key": "S", "secret_key": "O", "token": "N"}
    assert "x-amz-sso_bearer_token" in service.seen[-1][2]
    service.role = ""
    refused = resolve_x()
    assert "profile 'x' can't be used: An error occurred" in refused
    assert "topsecret" not in refused


ROLE = "role_arn = arn:aws:iam::123456789012:role/runner\n"


@pytest.mark.slow
def test_roles(home: Path, monkeypatch: pytest.MonkeyPatch):
    with EC2() as cloud:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", cloud.url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        keys = f"[keys]\naws_access_key_id={cloud.access_key}\naws_secret_access_key={cloud.secret_key}\n"
        write_files(home, keys, f"[profile x]\n{ROLE}source_profile = keys\n")
        found = resolve(profile="x")
        assert found.access_key.startswith("ASIA")
        assert found.token
        cloud.faults.on("bad_credentials")
        with pytest.raises(CredentialsError, match=r"profile 'x' can't be used: .*AuthFailure"):
            resolve(profile="x")
