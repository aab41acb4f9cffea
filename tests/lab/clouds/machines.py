"""The machines of a cloud: hosts of the lab, booted in the background as a cloud's are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.lab import Host, Lab

__all__ = ["Boot", "Machines"]


class Boot:
    """One machine from its order to its end.

    Attributes
    ----------
    host
        The host, once it is switched on; None before, after its end, and without a lab.
    state
        "booting", "up", "failed" (its set-up raised `error`) or "ended".
    address
        Where it is or will be reached.
    """

    def __init__(self, address: str) -> None:
        self.host: Host | None = None
        self.state = "booting"
        self.address = address
        self.error: BaseException | None = None
        self._ended = threading.Event()
        self._placed = threading.Event()  # `address` is what it will stay
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Boot {self.state} {self.address}>"

    def wait_for_address(self, timeout: float = 30.0) -> str:
        """Where it will be reached; many clouds know as soon as they take the order."""
        if not self._placed.wait(timeout):
            raise TimeoutError(f"no host within {timeout:g} s: {self!r}")
        return self.address


class Machines:
    """Boots hosts of a lab.

    Parameters
    ----------
    lab
        None: no host is booted; each machine is "up" at once at an address of TEST-NET where nobody is.
    options
        For every host, as `Lab.up` takes them (e.g. ``pythons``). The lab's own key may not log in.
    """

    def __init__(self, lab: Lab | None, **options: Any) -> None:
        self.lab = lab
        self.gateway = lab.gateway if lab is not None else "127.0.0.1"
        self.options = {"authorized": False, **options}
        self._boots: list[Boot] = []
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Machines {sum(boot.state != 'ended' for boot in self._boots)} of {len(self._boots)} live>"

    def boot(
        self,
        set_up: Callable[[Host], None] = lambda _: None,
        *,
        delay: float = 0.0,
        silent: bool = False,
        on_up: Callable[[Boot], None] = lambda _: None,
        **options: Any,
    ) -> Boot:
        """Start a machine and return at once.

        Parameters
        ----------
        set_up
            Runs in the host after its start, before anybody is told that it is up: what cloud-init or a start-up script
            would do. Its line is cut meanwhile, as sshd comes after cloud-init, unless the set-up mends it earlier.
        delay
            Seconds that it takes longer, after it has its address.
        silent
            It comes up, and its line stays cut.
        on_up
            Called, in the machine's own thread, when `state` has become "up" or "failed".
        """
        boot = Boot(f"192.0.2.{len(self._boots) % 254 + 1}")
        with self._lock:
            self._boots.append(boot)

        def run() -> None:
            try:
                host = self._switch_on(boot, options)
                if boot._ended.wait(delay):
                    return
                if host is not None:
                    set_up(host)
                    if not silent:
                        host.mend()
                boot.state = "up"
            except Exception as error:
                if not boot._ended.is_set():
                    boot.state, boot.error = "failed", error
            finally:
                boot._placed.set()
            if not boot._ended.is_set():
                on_up(boot)

        boot._thread = threading.Thread(target=run, name=f"boot-{len(self._boots)}")
        boot._thread.start()
        return boot

    def _switch_on(self, boot: Boot, options: dict[str, Any]) -> Host | None:
        """Start the host, cut off as yet; None without a lab, or if it was ended meanwhile."""
        host = None
        if self.lab is not None and not boot._ended.is_set():
            host = self.lab.up(1, **{**self.options, **options})[0]
            boot.host, boot.address = host, host.address
            if boot._ended.is_set():  # ended while it was being started
                self._remove(boot)
                return None
            host.cut()
        boot._placed.set()
        return host

    def end(self, boot: Boot) -> None:
        """Pull the plug of a machine and forget it; may be repeated, and called by its own thread."""
        boot._ended.set()
        boot.state = "ended"
        self._remove(boot)

    def _remove(self, boot: Boot) -> None:
        host, boot.host = boot.host, None
        if host is not None and self.lab is not None:
            self.lab.remove(host)

    def close(self) -> None:
        """End all."""
        for boot in self._boots:
            self.end(boot)
        for boot in self._boots:
            if boot._thread is not None:
                boot._thread.join()
                self._remove(boot)
