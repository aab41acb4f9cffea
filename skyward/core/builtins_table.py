"""A table of our own providers, transports, stores and so on, so that finding them needs no scan.

They are entry points in pyproject.toml too, which is how third parties' are found.
"""

from __future__ import annotations

__all__ = ["OURS"]

OURS: dict[str, dict[str, str]] = {
    "skyward.dashboards": {"page": "skyward.dashboard.serving:Page"},
    "skyward.frontends": {"joblib": "skyward.joblib_ext.active_pool:entered"},
    "skyward.listeners": {"console": "skyward.console:Console"},
    "skyward.plugins": {
        "joblib": "skyward.joblib_ext.plugin:JoblibPlugin",
        "sklearn": "skyward.joblib_ext.plugin:SklearnPlugin",
    },
    "skyward.providers": {
        "aws": "skyward.providers.aws:AWS",
        "libcloud": "skyward.providers.libcloud:Libcloud",
        "local": "skyward.providers.local:Local",
        "ssh": "skyward.providers.ssh:SSH",
        "vastai": "skyward.providers.vastai:VastAI",
        "verda": "skyward.providers.verda:Verda",
    },
    "skyward.stores": {"s3": "skyward.providers.s3:S3Store"},
    "skyward.transports": {
        "memory": "skyward.transport.memory:MemoryTransport",
        "ssh": "skyward.transport.ssh:SSHTransport",
        "tcp": "skyward.transport.tcp:TCPTransport",
    },
}
