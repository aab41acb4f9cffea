"""Every exception that skyward raises, and nothing else.

Foreign errors are mapped to this tree once, at the edge where they appear, `from` the cause. Whether something is
retried depends on the type, never on the text. A message says what happened, where, and what to do next.

::

    SkywardError
    ├── ConfigError (ValueError)            an argument is wrong; nothing was started
    │   ├── PluginNotFound (LookupError)    no such provider, transport or plugin, or it can't be imported
    │   └── ResumeFileError                 the file given as resume= is in use, damaged, or not a resume file
    ├── NestedPool (RuntimeError)           a pool in a task that might nest forever, or rent machines unasked
    ├── PoolNotActive (RuntimeError)        the pool was not entered, is closed, or belongs to another process
    ├── ProvisioningError                   a node could not be provisioned
    │   ├── NoOffer                         no provider offers what was asked for
    │   ├── NoCapacity                      the provider has no such machine now; other types or regions may have
    │   ├── QuotaExceeded                   the account's quota allows no more such machines
    │   ├── AuthFailed                      no credentials, or the provider rejects them
    │   ├── NotFound                        the provider knows no such thing
    │   ├── CloudError                      the provider's API failed; whether the request took effect is unknown
    │   │   └── RateLimited                 too many requests; this one had no effect and can be retried later
    │   ├── HostUnreachable                 no answer in time
    │   ├── HostKeyError                    the host's key is unknown, or not the expected one
    │   ├── LoginRefused                    the host rejected the user or the key
    │   ├── VolumeFailed                    a folder can't be copied to the node: it changed, or the disk is full
    │   └── BootstrapFailed                 a step of preparing the node failed
    │       ├── PackagesFailed              the image's packages can't be installed, on this node or any other
    │       └── PythonNotFound              the node has no Python of the driver's minor version
    ├── NoFailure (LookupError)             `sky.last_failure` has nothing to show
    ├── DownloadFailed                      files of the nodes can't be fetched; nothing was overwritten
    ├── LinkError (ConnectionError)         the connection to a node failed
    │   └── ProtocolError                   a message, received or to be sent, violates the protocol
    └── TaskError                           a task failed for a reason other than an exception of its own
        ├── PayloadError (PicklingError)    something can't be pickled, or can't be loaded on the other side
        ├── TaskTimeout (TimeoutError)      the task exceeded its time limit
        ├── WorkerCrashed                   the task's process died, `attempts` times, or can't be started
        ├── NoTerminal                      the task has called breakpoint(), or a debugger
        │   └── NoInput (EOFError)          the task has called input()
        ├── BudgetExceeded                  the pool's budget is used up, or too small; also a ProvisioningError
        ├── NodeLost                        the task's node was lost, and it may not or can't run on another
        └── TaskFailed                      the task raised an exception that can't be rebuilt here; text only
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

from skyward.core.visible import shown

if TYPE_CHECKING:
    from skyward.core.scope import Scope

__all__ = [
    "AuthFailed",
    "BootstrapFailed",
    "BudgetExceeded",
    "CloudError",
    "ConfigError",
    "DownloadFailed",
    "HostKeyError",
    "HostUnreachable",
    "LinkError",
    "LoginRefused",
    "NestedPool",
    "NoCapacity",
    "NoFailure",
    "NoInput",
    "NoOffer",
    "NoTerminal",
    "NodeLost",
    "NotFound",
    "PackagesFailed",
    "PayloadError",
    "PluginNotFound",
    "PoolNotActive",
    "ProtocolError",
    "ProvisioningError",
    "PythonNotFound",
    "QuotaExceeded",
    "RateLimited",
    "ResumeFileError",
    "SkywardError",
    "TaskError",
    "TaskFailed",
    "TaskTimeout",
    "VolumeFailed",
    "WorkerCrashed",
]


class SkywardError(Exception):
    """Base of every error that skyward raises.

    The message may quote clouds, hosts and tasks; control characters in it are escaped by `str`.
    """

    def __str__(self) -> str:
        return shown(super().__str__())


class ConfigError(SkywardError, ValueError):
    """An argument is wrong. Raised before anything is started."""


class PluginNotFound(ConfigError, LookupError):
    """No provider, transport or plugin has this name, or the one that has it can't be imported."""


class ResumeFileError(ConfigError):
    """The file given as ``resume=`` is in use, is damaged, is not a resume file, or is not safe to read."""


class NestedPool(SkywardError, RuntimeError):
    """A task's import opens a pool, pools in tasks nest too deeply, or a pool would rent machines from a task."""


class PoolNotActive(SkywardError, RuntimeError):
    """The pool was not entered, is closed, or was inherited by a forked process."""


class ProvisioningError(SkywardError):
    """A node could not be provisioned.

    Attributes
    ----------
    scope
        Which other offers would be refused too, if the provider says so. None leaves that to the type of the error: a
        region without capacity says nothing about other regions, but a rejected key will be rejected again.
    """

    scope: Scope | None

    def __init__(self, message: str = "", *, scope: Scope | None = None) -> None:
        super().__init__(message)
        self.scope = scope


class NoOffer(ProvisioningError):
    """No provider offers a machine that meets the requirements; the message names the closest match."""


class NoCapacity(ProvisioningError):
    """The provider has no machine of this type in this place now. Another type or place may be available."""


class QuotaExceeded(ProvisioningError):
    """The account's quota allows no more machines of this kind."""


class AuthFailed(ProvisioningError):
    """There are no credentials, or the provider rejects them, or they lack a permission."""


class NotFound(ProvisioningError):
    """The provider knows no such machine, image, region or other thing."""


class CloudError(ProvisioningError):
    """The provider's API failed, or its reply was lost. The request may have taken effect; a retry may help."""


class RateLimited(CloudError):
    """The provider rejected a request because there were too many; it had no effect.

    Attributes
    ----------
    wait
        Seconds to wait before a retry, if the provider says so.
    """

    wait: float | None

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class HostUnreachable(ProvisioningError):
    """A host did not answer in time."""


class HostKeyError(ProvisioningError):
    """A host presented a key that is unknown, or not the expected one."""


class LoginRefused(ProvisioningError):
    """A host rejected the user, or every key that was offered."""


class VolumeFailed(ProvisioningError):
    """A volume can't be copied to a node, or what tasks wrote there can't be saved to its bucket.

    A folder has changed, a file can't be read, a disk is full, or the bucket's store refuses it.

    Attributes
    ----------
    everywhere
        Whether the reason is the driver's folder itself, so that no other node could get it either.
    """

    everywhere: bool

    def __init__(self, message: str = "", *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class BootstrapFailed(ProvisioningError):
    """A step of preparing a node failed; the message ends with the last lines of the step's output."""


class PackagesFailed(BootstrapFailed):
    """An image's packages can't be installed: a name is wrong, or an index unreachable. Other nodes would fail too.

    Attributes
    ----------
    unavailable
        Requirements that the node's package index can't serve, as far as that was found out.
    """

    unavailable: tuple[str, ...] = ()


class PythonNotFound(BootstrapFailed):
    """A node has no Python of the driver's minor version, and none could be installed."""


class NoFailure(SkywardError, LookupError):
    """`sky.last_failure` has nothing to show: no task has failed yet, or its call was not kept."""


class DownloadFailed(SkywardError):
    """Files can't be downloaded: none matches, names clash, or a disk is full. Nothing was overwritten."""


class LinkError(SkywardError, ConnectionError):
    """The connection to a node broke or could not be made."""


class ProtocolError(LinkError):
    """Bytes or a call that the protocol does not allow. The connection can't be used afterwards."""


class TaskError(SkywardError):
    """A task failed for a reason other than an exception of its own."""


class BudgetExceeded(TaskError, ProvisioningError):
    """The pool's budget is used up, or is too small for the machines that it asks for."""


class PayloadError(TaskError, pickle.PicklingError):
    """A function, argument, result or exception can't be pickled, or can't be loaded on the other side."""


class TaskTimeout(TaskError, TimeoutError):
    """A task exceeded its time limit and was stopped."""


class WorkerCrashed(TaskError):
    """A task's process died (exit, signal, out of memory) on every permitted attempt, or can't be started."""


class NoTerminal(TaskError):
    """A task called `breakpoint` or a debugger, but has no terminal; the message says what to do instead."""


class NoInput(NoTerminal, EOFError):
    """A task called `input`, but has no terminal."""


class NodeLost(TaskError):
    """The node of a task was lost, and the task may not, or can't, run on another."""


class TaskFailed(TaskError):
    """A task raised an exception that can't be rebuilt in this process; the message has its text and traceback."""
