"""What a node's installers are told."""

from __future__ import annotations

from dataclasses import replace

from skyward.core.image import Image
from skyward.core.nodes.environment_lists import environment_key, plain_hosts, requirement_lists, with_paths
from skyward.core.packages.lists import PackageLists, Wheel


def test_a_new_password_of_an_index_needs_no_new_environment():
    keys = {
        environment_key(image, requirement_lists(image, PackageLists()), "")
        for image in (
            Image(index="https://index.example/simple"),
            Image(index="https://me:one@index.example/simple"),
            Image(index="https://me:two@index.example/simple"),
        )
    }
    assert len(keys) == 1


def test_exact_versions_have_a_list_of_their_own() -> None:
    """Nothing is resolved for it; the rest is resolved within it."""
    lists = PackageLists(("numpy==2.0",), ("pandas>=2", "six==1.0 --hash=sha256:00"))
    lines = requirement_lists(Image(constraints=["scipy<2"]), lists).decode().splitlines()
    assert lines == [
        "exact numpy==2.0",
        "hashed six==1.0 --hash=sha256:00",
        "plain pandas>=2",
        "constraints numpy==2.0",
        "constraints scipy<2",
    ]


def test_wheels_that_are_sent() -> None:
    """Their content is a part of the key; where they are is known later."""
    wheel = Wheel("mine", "0.1", "/here/mine-0.1-py3-none-any.whl", 32 * "ab", pure=True)
    lists = PackageLists(("six==1.0",), wheels=(wheel,))
    lines = requirement_lists(Image(), lists)
    assert lines.startswith(b"wheels mine==0.1 abab")
    other = requirement_lists(Image(), replace(lists, wheels=(replace(wheel, content=32 * "cd"),)))
    assert environment_key(Image(), lines, "") != environment_key(Image(), other, "")
    found = with_paths(lines, lists, "/root/my cache").decode().splitlines()
    assert found[0] == "wheels mine @ file:///root/my%20cache/abababababababababab/mine-0.1-py3-none-any.whl"
    assert found[1] == "exact six==1.0"


def test_no_index_is_asked_for_what_is_sent_instead() -> None:
    """Its version still limits what is resolved."""
    sent = tuple(Wheel(name, "1.0", "/here/x.whl", 32 * "ab", pure=True) for name in ("My.Own", "torch"))
    lists = PackageLists(("my-own==1.0",), ("torch==1.0", "pandas>=2", "--no-binary x"), wheels=sent)
    lines = requirement_lists(Image(), lists).decode().splitlines()
    assert lines == [
        f"wheels My.Own==1.0 {32 * 'ab'}",
        f"wheels torch==1.0 {32 * 'ab'}",
        "plain --no-binary x",
        "plain pandas>=2",
        "constraints my-own==1.0",
    ]


def test_hosts_without_tls() -> None:
    """Those that pip wants named."""
    assert plain_hosts(Image(index="http://me:pw@one:81/simple", extra_index=["https://two/simple"])) == ["one:81"]
