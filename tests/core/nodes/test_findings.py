"""What the look at a machine prints, as a value."""

from __future__ import annotations

from skyward.core.nodes.findings import Findings
from skyward.core.packages.fetch import Target

SAID = """root /root/.cache/skyward
system Linux aarch64
glibc glibc 2.31
uv /usr/local/bin/uv
python /usr/bin/python3.12
python /opt/bin/python3.12
python /usr/bin/python3.12
other python3.9
env /root/.cache/skyward/envs/key-aarch64-1
has_code yes
package git
end yes
"""


def test_what_is_printed_is_read() -> None:
    found = Findings.read(SAID, {"git=1:2": "git", "curl": "curl"})
    assert found is not None
    assert found.pythons == ("/usr/bin/python3.12", "/opt/bin/python3.12")
    assert (found.uv, found.other_pythons, found.missing_packages) == ("/usr/local/bin/uv", ("python3.9",), ("curl",))
    assert found.has_code
    assert not found.env_is_complete
    assert found.target("3.12") == Target("aarch64", 31, "3.12")


def test_half_of_it_is_none() -> None:
    assert Findings.read(SAID.replace("end yes\n", ""), {}) is None


def test_without_glibc_nothing_is_built_for_it() -> None:
    found = Findings.read("root /r\nenv /r/e\nsystem Linux x86_64\nglibc \nend yes\n", {})
    assert found is not None
    assert found.target("3.12").glibc == 0
    assert found.uv == ""
