"""joblib's `Parallel` on machines anywhere: this computer, SSH hosts, or clouds.

::

    import skyward as sky
    from joblib import Parallel, delayed

    with sky.Compute(nodes=2, worker=sky.Worker(concurrency=2), plugins=[sky.plugins.joblib()]):
        results = Parallel(n_jobs=-1)(delayed(pow)(i, 2) for i in range(100))

The public API is what `__all__` lists. Names are imported on first use (PEP 562), so that neither a node nor a short
script pays for parts it does not need: `import skyward` loads nothing else.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("skyward does not run on Windows itself; install it in WSL and run it there")

if TYPE_CHECKING:
    from skyward import integrations as integrations
    from skyward import plugins as plugins
    from skyward.core.errors import AuthFailed as AuthFailed
    from skyward.core.errors import BootstrapFailed as BootstrapFailed
    from skyward.core.errors import BudgetExceeded as BudgetExceeded
    from skyward.core.errors import CloudError as CloudError
    from skyward.core.errors import ConfigError as ConfigError
    from skyward.core.errors import DownloadFailed as DownloadFailed
    from skyward.core.errors import HostKeyError as HostKeyError
    from skyward.core.errors import HostUnreachable as HostUnreachable
    from skyward.core.errors import LinkError as LinkError
    from skyward.core.errors import LoginRefused as LoginRefused
    from skyward.core.errors import NestedPool as NestedPool
    from skyward.core.errors import NoCapacity as NoCapacity
    from skyward.core.errors import NodeLost as NodeLost
    from skyward.core.errors import NoFailure as NoFailure
    from skyward.core.errors import NoInput as NoInput
    from skyward.core.errors import NoOffer as NoOffer
    from skyward.core.errors import NoTerminal as NoTerminal
    from skyward.core.errors import NotFound as NotFound
    from skyward.core.errors import PackagesFailed as PackagesFailed
    from skyward.core.errors import PayloadError as PayloadError
    from skyward.core.errors import PluginNotFound as PluginNotFound
    from skyward.core.errors import PoolNotActive as PoolNotActive
    from skyward.core.errors import ProtocolError as ProtocolError
    from skyward.core.errors import ProvisioningError as ProvisioningError
    from skyward.core.errors import PythonNotFound as PythonNotFound
    from skyward.core.errors import QuotaExceeded as QuotaExceeded
    from skyward.core.errors import RateLimited as RateLimited
    from skyward.core.errors import ResumeFileError as ResumeFileError
    from skyward.core.errors import SkywardError as SkywardError
    from skyward.core.errors import TaskError as TaskError
    from skyward.core.errors import TaskFailed as TaskFailed
    from skyward.core.errors import TaskTimeout as TaskTimeout
    from skyward.core.errors import VolumeFailed as VolumeFailed
    from skyward.core.errors import WorkerCrashed as WorkerCrashed
    from skyward.core.function import compute as compute
    from skyward.core.function import gather as gather
    from skyward.core.image import Image as Image
    from skyward.core.interfaces import OpenPool as OpenPool
    from skyward.core.interfaces import Plugin as Plugin
    from skyward.core.pool import Compute as Compute
    from skyward.core.pool import Compute as ComputePool
    from skyward.core.spec import Worker as Worker
    from skyward.core.tasks.last_failure import last_failure as last_failure
    from skyward.core.volumes import LocalVolume as LocalVolume
    from skyward.core.volumes import S3Volume as S3Volume
    from skyward.core.volumes import Volume as Volume
    from skyward.core.whoami import current_worker as current_worker
    from skyward.joblib_ext.explaining import explain as explain
    from skyward.providers.aws import AWS as AWS
    from skyward.providers.libcloud import Libcloud as Libcloud
    from skyward.providers.local import Local as Local
    from skyward.providers.ssh import SSH as SSH
    from skyward.providers.vastai import VastAI as VastAI
    from skyward.providers.verda import Verda as Verda

__all__ = [
    "AWS",
    "SSH",
    "AuthFailed",
    "BootstrapFailed",
    "BudgetExceeded",
    "CloudError",
    "Compute",
    "ComputePool",
    "ConfigError",
    "DownloadFailed",
    "HostKeyError",
    "HostUnreachable",
    "Image",
    "Libcloud",
    "LinkError",
    "Local",
    "LocalVolume",
    "LoginRefused",
    "NestedPool",
    "NoCapacity",
    "NoFailure",
    "NoInput",
    "NoOffer",
    "NoTerminal",
    "NodeLost",
    "NotFound",
    "OpenPool",
    "PackagesFailed",
    "PayloadError",
    "Plugin",
    "PluginNotFound",
    "PoolNotActive",
    "ProtocolError",
    "ProvisioningError",
    "PythonNotFound",
    "QuotaExceeded",
    "RateLimited",
    "ResumeFileError",
    "S3Volume",
    "SkywardError",
    "TaskError",
    "TaskFailed",
    "TaskTimeout",
    "VastAI",
    "Verda",
    "Volume",
    "VolumeFailed",
    "Worker",
    "WorkerCrashed",
    "__version__",
    "compute",
    "current_worker",
    "explain",
    "gather",
    "integrations",
    "last_failure",
    "plugins",
]

__version__ = "0.1.0"

# Where each public name lives: "module:attribute", or a module itself. The imports above say the same to type checkers,
# and tests/test_exports.py compares them.
_HOME = {
    **dict.fromkeys(("Compute", "ComputePool"), "skyward.core.pool:Compute"),
    "AWS": "skyward.providers.aws:AWS",
    "Image": "skyward.core.image:Image",
    "Libcloud": "skyward.providers.libcloud:Libcloud",
    "Local": "skyward.providers.local:Local",
    "LocalVolume": "skyward.core.volumes:LocalVolume",
    "OpenPool": "skyward.core.interfaces:OpenPool",
    "Plugin": "skyward.core.interfaces:Plugin",
    "S3Volume": "skyward.core.volumes:S3Volume",
    "SSH": "skyward.providers.ssh:SSH",
    "VastAI": "skyward.providers.vastai:VastAI",
    "Verda": "skyward.providers.verda:Verda",
    "Volume": "skyward.core.volumes:Volume",
    "Worker": "skyward.core.spec:Worker",
    "compute": "skyward.core.function:compute",
    "current_worker": "skyward.core.whoami:current_worker",
    "explain": "skyward.joblib_ext.explaining:explain",
    "gather": "skyward.core.function:gather",
    "integrations": "skyward.integrations",
    "last_failure": "skyward.core.tasks.last_failure:last_failure",
    "plugins": "skyward.plugins",
    **{
        name: f"skyward.core.errors:{name}"
        for name in (
            *("AuthFailed", "CloudError", "NoCapacity", "NoOffer", "NotFound", "QuotaExceeded", "RateLimited"),
            "BudgetExceeded",
            *("BootstrapFailed", "ConfigError", "HostKeyError", "HostUnreachable", "LinkError", "LoginRefused"),
            "NestedPool",
            *("NoFailure", "NoInput", "NoTerminal"),
            "DownloadFailed",
            *("NodeLost", "PackagesFailed", "PayloadError", "PluginNotFound", "PoolNotActive", "ProtocolError"),
            *(
                "ProvisioningError",
                "PythonNotFound",
                "ResumeFileError",
                "SkywardError",
                "TaskError",
                "TaskFailed",
                "TaskTimeout",
                "VolumeFailed",
                "WorkerCrashed",
            ),
        )
    },
}


def _look_up(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = home.partition(":")
    value = import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value  # cached: the next lookup does not call this function
    return value


def load_ipython_extension(shell: Any) -> None:
    """Add ``%skyward`` to a notebook: ``%load_ext skyward``."""
    import_module("skyward.cli.magic").load(shell)


if not TYPE_CHECKING:  # a type checker that saw it would accept any name
    __getattr__ = _look_up


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
