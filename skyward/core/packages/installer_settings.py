"""Selects which of a host's own pip and uv settings apply to the environments made there. Runs on the host.

``python installer_settings.py pip|uv NAMES INDEX FILE [COMMAND ...]`` prints lines of sh: what to export and to unset.
Settings that say where packages come from and how the network is reached apply: indexes, proxies, certificates,
caches. Settings that change where packages go or what may be installed are not, since they were made for other work:
target, prefix, user, require-hashes, no-binary, constraints. NAMES are variables set by the pool's user, which are left
alone; a nonempty INDEX says that the pool has its own index, so that the host's are not used. If uv has no
settings for where packages come from, it gets pip's: most hosts were set up for pip. This imports nothing of skyward,
and only the standard library.
"""

from __future__ import annotations

import ast
import configparser
import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

__all__ = ["main", "of_pip"]

_PIP = {"cache-dir", "cert", "client-cert", "default-timeout", "keyring-provider", "no-cache-dir", "proxy", "retries"}
_PIP |= {"timeout", "trusted-host", "use-deprecated", "use-feature"}
_PIP_INDEX = {"extra-index-url", "find-links", "index-url", "no-index"}
_PIP_ALWAYS = {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

_UV = {"allow-insecure-host", "cache-dir", "http-proxy", "https-proxy", "keyring-provider", "link-mode", "native-tls"}
_UV |= {"no-cache", "no-proxy", "python-downloads-json-url", "python-install-mirror", "pypy-install-mirror"}
_UV |= {"concurrent-builds", "concurrent-downloads", "concurrent-installs", "http-timeout", "insecure-host"}
_UV |= {"http-connect-timeout", "http-retries", "python-install-dir", "request-timeout", "system-certs"}
_UV_INDEX = {"default-index", "extra-index-url", "find-links", "index", "index-strategy", "index-url", "no-index"}
_UV_INDEX |= {"offline"}

_AS_PIP = {  # pip's settings by uv's names; where either takes several values, uv wants them separated by this
    "index-url": ("UV_INDEX_URL", " "),
    "extra-index-url": ("UV_EXTRA_INDEX_URL", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
}


def main(arguments: Sequence[str]) -> None:
    """Print the lines of sh."""
    tool, names, index, file, *command = arguments
    own, keep = set(names.split()), not index
    if tool == "pip":
        lines = _pip(own, _PIP | _PIP_INDEX if keep else _PIP, command)
    else:
        lines = _uv(own, _UV | _UV_INDEX if keep else _UV, Path(file))
    print("\n".join(lines))  # noqa: T201


def _pip(own: set[str], kept: set[str], command: Sequence[str]) -> Iterator[str]:
    done = subprocess.run([*command, "config", "list"], stdout=subprocess.PIPE, text=True, check=False)
    values: dict[str, str] = {}
    found = [line.partition("=") for line in done.stdout.splitlines()]
    for section in ("global", "install", ":env:"):  # each overrides the one before
        for key, _, value in found:
            where, _, name = key.partition(".")
            if where == section and name in kept:
                values[name] = str(ast.literal_eval(value))
    exported = {f"PIP_{name.upper().replace('-', '_')}": value for name, value in values.items()}
    exported |= {**_PIP_ALWAYS, "PIP_CONFIG_FILE": os.devnull}
    yield from _lines("PIP_", own, exported)


def _uv(own: set[str], kept: set[str], file: Path) -> Iterator[str]:
    exported = {}
    for name, value in os.environ.items():
        known = name.removeprefix("UV_").lower().replace("_", "-")
        # The variables of a named index are its credentials.
        if name.startswith("UV_") and (known in kept or known.startswith("index-")):
            exported[name] = value
    settings = _uv_file(kept)
    file.write_text(_toml(settings), "utf-8")
    exported["UV_CONFIG_FILE"] = str(file)
    told = {*settings, *(name.removeprefix("UV_").lower().replace("_", "-") for name in (*exported, *own))}
    exported |= of_pip(os.environ, index=not told & _UV_INDEX and "index-url" in kept)
    # As with pip, the best version of all indexes counts, and not only those of the first that knows the name.
    if "index-strategy" not in told:
        exported["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    yield from _lines("UV_", own, exported)


def of_pip(environment: Mapping[str, str], *, index: bool) -> dict[str, str]:
    """pip's settings for indexes and the network here, as variables for uv; those that are already set are left alone.

    Parameters
    ----------
    environment
        The environment variables.
    index
        Whether indexes count, in addition to the way there.
    """
    values: dict[str, str] = {}
    for section in ("global", "install"):
        for file in _pip_files(environment):
            values |= _pip_section(file, section)
    for name, value in environment.items():
        if name.startswith("PIP_"):
            values[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    found = {}
    for name, (variable, separator) in _AS_PIP.items():
        if (index or name not in _PIP_INDEX) and name in values and variable not in environment:
            found[variable] = separator.join(values[name].split())
    return {name: value for name, value in found.items() if value}


def _pip_files(environment: Mapping[str, str]) -> list[Path]:
    """The files of pip's settings, those that count least first."""
    home = Path(environment.get("HOME") or "/")
    system = [folder for folder in environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":") if folder]
    user = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files = [*(Path(folder) / "pip/pip.conf" for folder in reversed(system)), Path("/etc/pip.conf")]
    files += [home / ".pip/pip.conf", user / "pip/pip.conf"]
    if named := environment.get("PIP_CONFIG_FILE"):
        files = [] if named == os.devnull else [*files, Path(named)]
    return files


def _pip_section(file: Path, section: str) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, configparser.Error):
        return {}  # it does not exist, or pip itself says what is wrong with it
    return (
        {name.replace("_", "-"): value for name, value in parser.items(section)} if parser.has_section(section) else {}
    )


def _uv_file(kept: set[str]) -> dict[str, object]:
    """Read the settings to keep from uv's files; the user's take precedence over the system's."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    system = [Path(folder) for folder in os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":") if folder]
    files = [home / "uv/uv.toml", *(folder / "uv/uv.toml" for folder in system), Path("/etc/uv/uv.toml")]
    if named := os.environ.get("UV_CONFIG_FILE"):
        files = [Path(named)]
    if os.environ.get("UV_NO_CONFIG"):
        files = []
    settings: dict[str, object] = {}
    for file in files:
        try:
            said = tomllib.loads(file.read_text("utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            print(f"{file} can't be read and is ignored: {error}", file=sys.stderr)  # noqa: T201
            continue
        inner = said.get("pip", {})
        for part in (inner if isinstance(inner, dict) else {}, said):
            settings = {**{name: value for name, value in part.items() if name in kept}, **settings}
    return settings


def _toml(settings: Mapping[str, object]) -> str:
    """Write the subset of TOML that these need: strings, numbers, lists of strings, and lists of tables of these."""
    lines: list[str] = []
    tables: list[str] = []
    for name, value in settings.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for table in value:
                tables += [f"[[{name}]]", *(f"{key} = {_value(item)}" for key, item in table.items())]
        else:
            lines.append(f"{name} = {_value(value)}")
    return "".join(f"{line}\n" for line in (*lines, *tables))


def _value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # a JSON string, number or list of strings is valid TOML, too


def _lines(prefix: str, own: set[str], exported: Mapping[str, str]) -> Iterator[str]:
    for name in os.environ:
        if name.startswith(prefix) and name not in own and name.isidentifier():
            yield f"unset {name}"
    for name, value in exported.items():
        if name not in own:
            yield f"export {name}={shlex.quote(value)}"


if __name__ == "__main__":
    main(sys.argv[1:])
