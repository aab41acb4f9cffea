"""What can be bought, at several providers at once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyward.cli.sources import named
from skyward.core.errors import ConfigError, NoOffer
from tests.core.folder_cloud import FolderCloud
from tests.lab.clouds.verda import Verda

from .conftest import Run


@pytest.fixture
def one(cloud: FolderCloud) -> str:
    return f"folder:folder={cloud.folder}"


@pytest.fixture
def other(tmp_path: Path) -> str:
    (tmp_path / "other").mkdir()
    return f"folder:folder={tmp_path / 'other'},price=0.2"


def offered(result: object) -> list[tuple[str, bool, float | None]]:
    assert result.exit_code == 0, result.output  # type: ignore[attr-defined]
    return [(offer["machine"], offer["spot"], offer["price"]) for offer in json.loads(result.stdout)]  # type: ignore[attr-defined]


ALL = [("small", True, 0.12), ("small", False, 0.36), ("large", False, 3.6), ("dear", False, None)]


def test_the_cheapest_come_first_and_unknown_prices_last(run: Run, one: str) -> None:
    assert offered(run("offers", "--provider", one, "--json")) == ALL


def test_several_providers_are_one_list(run: Run, one: str, other: str) -> None:
    found = [price for _, _, price in offered(run("offers", "-p", one, "-p", other, "--json"))]
    assert found == [0.12, 0.12, 0.2, 0.36, 3.6, 3.6, None, None]


def test_what_a_pool_would_not_buy_unasked_is_shown_too(run: Run, cloud: FolderCloud) -> None:
    """A hundred times the price of the cheapest, say."""
    result = run("offers", "-p", f"folder:folder={cloud.folder},price=0.01", "--on-demand", "--json")
    assert [price for _, _, price in offered(result)] == [0.01, 3.6, None]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--gpu", "A100"], ALL[2:3]),
        (["--accelerator", "a100:2"], ALL[2:3]),
        (["--vcpus", "8"], ALL[2:]),
        (["--memory", "32GiB"], ALL[2:]),
        (["--machine", "small"], ALL[:2]),
        (["--spot"], ALL[:1]),
        (["--on-demand"], ALL[1:]),
        (["--max-price", "2"], ALL[:2]),
        (["--limit", "2"], ALL[:2]),
        (["--limit", "0"], ALL),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value[0], str) else "",
)
def test_filters(run: Run, one: str, arguments: list[str], found: object) -> None:
    assert offered(run("offers", "-p", one, "--json", *arguments)) == found


def test_a_table_for_people(run: Run, one: str) -> None:
    result = run("offers", "-p", one)
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["provider", "machine", "vcpus", "memory", "accelerator", "region", "market", "$/h"]
    assert lines[1].split() == ["folder", "small", "1", "1", "GiB", "-", "drawer", "spot", "$0.1200"]
    assert lines[3].split() == [
        "folder",
        "large",
        "8",
        "32",
        "GiB",
        "2",
        "x",
        "A100",
        "shelf",
        "on",
        "demand",
        "$3.6000",
    ]
    assert lines[4].split()[-1] == "?"


def test_what_a_limit_hides_is_reported(run: Run, one: str) -> None:
    result = run("offers", "-p", one, "--limit", "1")
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr == "skyward: 3 more; use --limit 0 to show all\n"


def test_one_that_fails_does_not_hide_the_others(run: Run, one: str, other: str, tmp_path: Path) -> None:
    (tmp_path / "other" / "down").touch()
    result = run("offers", "-p", one, "-p", other, "-p", "narnia", "--json")
    assert offered(result) == ALL
    assert "skyward: folder: the API is down\n" in result.stderr
    assert "skyward: narnia: no provider is named 'narnia'" in result.stderr


def test_if_all_fail_so_does_the_command(run: Run, one: str, cloud: FolderCloud) -> None:
    (Path(cloud.folder) / "locked").touch()
    result = run("offers", "-p", one)
    assert result.exit_code == 1
    assert result.stderr == "skyward: folder: the key was refused\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu", "B200"], "no offer has accelerator='B200'; the closest are 'A100'"),
        (["--max-price", "0.01"], r"no offer costs \$0\.01/h or less \(max_price=0\.01\); the cheapest is small spot"),
        (["--machine", "smal"], "the closest names are 'small'"),
        (["--machine", "dear", "--spot"], "none of the 1 matching offers is for a spot machine; leave out --spot$"),
        (["--machine", "dear", "--spot", "--max-price", "9"], "is for a spot machine; leave out --spot$"),
        (["--gpu", "A100", "--spot", "--max-price", "9"], "is for a spot machine; leave out --spot$"),
    ],
)
def test_what_nobody_offers_is_an_error_with_the_nearest(run: Run, one: str, arguments: list[str], said: str) -> None:
    result = run("offers", "-p", one, *arguments)
    assert result.exit_code == 1
    with pytest.raises(NoOffer, match=said):
        raise result.exception


@pytest.mark.parametrize(
    "arguments",
    [["--vcpus", "0"], ["--memory", "lots"], ["--gpu", "A100:x"], ["--max-price", "-1"], ["--max-price", "nan"]],
)
def test_wrong_values_are_reported_before_any_query(run: Run, one: str, arguments: list[str]) -> None:
    result = run("offers", "-p", one, *arguments)
    assert result.exit_code == 2
    assert "Error: Invalid value: " in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "folder:=x"],
        ["-p", "folder:9=1"],
        ["-p", "folder:folder=a,b"],
        ["-p", "folder:a,b"],
        ["--limit", "-1"],
        ["x"],
    ],
)
def test_bad_usage(run: Run, arguments: list[str]) -> None:
    assert run("offers", *arguments).exit_code == 2


def test_settings_that_a_provider_does_not_have(run: Run) -> None:
    result = run("offers", "-p", "folder:door=1")
    assert result.exit_code == 1
    assert result.stderr == "skyward: folder has no setting 'door'; it has folder, price\n"


def test_settings_may_be_json() -> None:
    """Numbers, lists; a text with a comma is quoted, lest a list become one text."""
    sources = named(
        [
            "folder:folder=/x,price=0.5",
            'folder:folder="a,b",price=null',
            "folder:/y",
            'folder:folder=["p","q"]',
            "folder:folder=[p, q],price=2",
        ]
    )
    assert [source.provider for source in sources] == [
        FolderCloud("/x", 0.5),
        FolderCloud("a,b", None),
        FolderCloud("/y"),
        FolderCloud(("p", "q")),  # type: ignore[arg-type]
        FolderCloud(("p", "q"), 2),  # type: ignore[arg-type]
    ]


def test_without_credentials_anywhere_the_doctor_is_named(run: Run) -> None:
    result = run("offers")
    with pytest.raises(ConfigError, match="no provider has credentials here; run `skyward doctor`"):
        raise result.exception


# --- a cloud's API ---


@pytest.fixture
def verda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Verda]:
    with Verda() as running:
        monkeypatch.setenv("VERDA_BASE_URL", running.base_url)
        monkeypatch.setenv("VERDA_CLIENT_ID", running.client_id)
        monkeypatch.setenv("VERDA_CLIENT_SECRET", running.client_secret)
        yield running


def test_all_with_credentials_are_asked(verda: Verda, run: Run) -> None:
    """Those that have none are not, and nobody speaks of them."""
    result = run("offers", "--json", "--vcpus", "4", "--limit", "3")
    found = json.loads(result.stdout)
    assert {offer["provider"] for offer in found} == {"verda"}
    assert len(found) == 3
    assert [offer["price"] for offer in found] == sorted(offer["price"] for offer in found)
    assert result.stderr == ""


@pytest.mark.slow
def test_as_a_process(
    verda: Verda, cloud: FolderCloud, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = command(
        *("offers", "-p", "verda:region=FIN-01", "-p", f"folder:folder={cloud.folder}"),
        *("--gpu", "A100", "--max-price", "20", "--json"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert {offer["provider"] for offer in found} == {"folder", "verda"}
    assert all("A100" in offer["accelerator"] and offer["price"] <= 20 for offer in found)


@pytest.mark.slow
def test_rejected_credentials_are_reported_in_one_line(
    verda: Verda, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = command("offers", VERDA_CLIENT_SECRET="geheim")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("skyward: verda: ")
    assert "geheim" not in done.stderr
