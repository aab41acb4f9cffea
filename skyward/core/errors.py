"""Every exception that skyward raises, and nothing else.

Foreign errors are mapped to this tree once, at the edge where they appear, `from` the cause. Whether something is
tried again follows from the type, never from the text. A message says what happened, where, and what to do next.

::

    SkywardError
    ├── ConfigError (ValueError)            an argument is wrong; nothing was started
    │   └── PluginNotFound (LookupError)    no such provider, transport or plug-in, or it cannot be imported
    ├── NestedPool (RuntimeError)           a pool in a task that could go on without end, or rent machines unasked
    ├── PoolNotActive (RuntimeError)        the pool was not entered, is closed, or belongs to another process
    ├── ProvisioningError                   a node could not be had or prepared
    │   ├── NoOffer                         no provider offers what is asked for
    │   ├── NoCapacity                      the provider has none of this kind now; another kind or place may be had
    │   ├── QuotaExceeded                   the account may not have more of this kind
    │   ├── AuthFailed                      no credentials, or the provider refuses them
    │   ├── NotFound                        the provider knows no such thing
    │   ├── CloudError                      the provider's API failed; whether it did what was asked is not known
    │   │   └── RateLimited                 it was asked too often and did nothing; ask again later
    │   ├── HostUnreachable                 nobody answered in time
    │   ├── HostKeyError                    the host's key is unknown, or is not the one that was expected
    │   ├── LoginRefused                    the host refused the user or the key
    │   └── BootstrapFailed                 a step of preparing the node failed
    │       ├── PackagesFailed              the image's packages can't be installed; other nodes can't either
    │       └── PythonNotFound              the node has no Python of the driver's minor version
    ├── LinkError (ConnectionError)         bytes can't be exchanged with a node
    │   └── ProtocolError                   what arrived, or what was to be sent, breaks the protocol
    └── TaskError                           one task failed for a reason that is not its own exception
        ├── PayloadError (PicklingError)    something can't be pickled, or can't be loaded on the other side
        ├── TaskTimeout (TimeoutError)      the task ran longer than its time limit
        ├── WorkerCrashed                   the process that ran the task died, `attempts` times, or can't be made
        ├── NodeLost                        the task's node went away, and it may not or can't run elsewhere
        └── TaskFailed                      the task raised something that can't be carried here; text only
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
    "CloudError",
    "ConfigError",
    "HostKeyError",
    "HostUnreachable",
    "LinkError",
    "LoginRefused",
    "NestedPool",
    "NoCapacity",
    "NoOffer",
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
    "SkywardError",
    "TaskError",
    "TaskFailed",
    "TaskTimeout",
    "WorkerCrashed",
]


class SkywardError(Exception):
    """Base of every error that skyward raises by itself.

    Its text may quote clouds, hosts and tasks; as text it has no control characters.
    """

    def __str__(self) -> str:
        return shown(super().__str__())


class ConfigError(SkywardError, ValueError):
    """An argument is wrong. Raised before anything is started."""


class PluginNotFound(ConfigError, LookupError):
    """No provider, transport or plug-in has this name, or the one that has it cannot be imported."""


class NestedPool(SkywardError, RuntimeError):
    """A pool is opened by an import in a task, too deep in tasks, or would rent machines from a task."""


class PoolNotActive(SkywardError, RuntimeError):
    """The pool was not entered, is closed, or was inherited by a forked process."""


class ProvisioningError(SkywardError):
    """A node could not be had or could not be prepared.

    Attributes
    ----------
    scope
        Which other offers would be refused too, where the provider says so. None leaves that to the type of the error:
        a place without a machine says nothing of other places, a refused key will be refused again.
    """

    scope: Scope | None

    def __init__(self, message: str = "", *, scope: Scope | None = None) -> None:
        super().__init__(message)
        self.scope = scope


class NoOffer(ProvisioningError):
    """No provider offers a machine as it was asked for; the message says what is nearest."""


class NoCapacity(ProvisioningError):
    """The provider has no machine of this kind in this place now. Another kind or place may be had."""


class QuotaExceeded(ProvisioningError):
    """The account may not have more machines of this kind."""


class AuthFailed(ProvisioningError):
    """There are no credentials, or the provider refuses them or what they may do."""


class NotFound(ProvisioningError):
    """The provider knows no such machine, image, region or other thing."""


class CloudError(ProvisioningError):
    """The provider's API failed, or its reply was lost. It may have done what was asked; asking again may help."""


class RateLimited(CloudError):
    """The provider was asked too often and did nothing.

    Attributes
    ----------
    wait
        Seconds after which it may be asked again, where it says so.
    """

    wait: float | None

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class HostUnreachable(ProvisioningError):
    """A host did not answer within the time allowed."""


class HostKeyError(ProvisioningError):
    """A host showed a key that is unknown, or not the one that was expected."""


class LoginRefused(ProvisioningError):
    """A host refused the user or every key that was offered."""


class BootstrapFailed(ProvisioningError):
    """A step of preparing a node failed; the message ends with the step's last lines of output."""


class PackagesFailed(BootstrapFailed):
    """What an image names can't be installed: a name is wrong, or an index not reached. Other nodes do no better."""


class PythonNotFound(BootstrapFailed):
    """A node has no Python of the driver's minor version, and it could not be installed."""


class LinkError(SkywardError, ConnectionError):
    """The connection to a node broke or could not be made."""


class ProtocolError(LinkError):
    """Bytes or a call that the protocol does not allow. After it the connection is of no further use."""


class TaskError(SkywardError):
    """A task failed for a reason that is not an exception of its own."""


class PayloadError(TaskError, pickle.PicklingError):
    """A function, argument, result or exception can't be pickled, or can't be loaded on the other side."""


class TaskTimeout(TaskError, TimeoutError):
    """A task ran longer than its time limit and was stopped."""


class WorkerCrashed(TaskError):
    """The process that ran a task died (exit, signal, out of memory) as often as it may be tried, or can't be made."""


class NodeLost(TaskError):
    """The node of a task went away, and the task may not, or can't, run on another."""


class TaskFailed(TaskError):
    """A task raised an exception that can't be carried to this process; its text and traceback are in the message."""
