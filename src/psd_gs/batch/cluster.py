"""Workers as Ray actors, on one machine or many that share a file system."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from psd_gs.batch.tasks import Outcome, Task, Worker
from psd_gs.errors import BackendError, ConfigError

logger = logging.getLogger(__name__)


class RayPool:
    """A :class:`~psd_gs.batch.queue.Pool` of Ray actors: one per GPU of the cluster, or ``workers`` on CPUs.

    Args:
        address: of a cluster (``auto``, ``ray://HOST:10001``, ``HOST:6379``), or ``local`` for a new one here.
        workers: on CPUs; with GPUs, at most so many (0: all).
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: of each worker on a CPU; 0 leaves what there is.
        prepare: called first by every worker; a function of a module.

    Raises:
        BackendError: Ray does not start or answer, or has no GPU though one was asked for.
        ConfigError: Ray is not installed.
    """

    def __init__(
        self,
        address: str,
        workers: int = 0,
        device: str = "auto",
        threads: int = 0,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                '--ray: expected the package ray, received none. Install it with pip install "psd-gs[ray]".'
            ) from error
        self._ray, self._prepare = ray, prepare
        local = address == "local"
        try:
            ray.init(
                address=address,
                num_cpus=max(1, workers) if local else None,
                include_dashboard=False if local else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # ray raises ConnectionError, ValueError, RuntimeError and its own
            raise BackendError(f"no Ray at {address}: {error}. Start one with `ray start --head`.") from error
        gpus = 0 if device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        if device.startswith("cuda") and not gpus:
            ray.shutdown()
            raise BackendError(f"expected GPUs in the Ray cluster {address}, received none. Leave --device out.")
        self.size = min(gpus, workers or gpus) if gpus else max(1, workers)
        self._device, self._threads = ("cuda:0", 0) if gpus else ("cpu", threads)  # Ray shows each actor its own GPU
        self._actor = ray.remote(num_gpus=1 if gpus else 0, num_cpus=1, max_restarts=0)(Worker)
        self.actors: dict[int, Any] = {}
        self._running: dict[Any, int] = {}

    def start(self, slot: int, task: Task) -> None:
        if slot not in self.actors:
            self.actors[slot] = self._actor.remote(self._device, self._threads, self._prepare)
        self._running[self.actors[slot].run.remote(task)] = slot

    def wait(self, seconds: float) -> list[tuple[int, Outcome | None]]:
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        out: list[tuple[int, Outcome | None]] = []
        for reference in ready:
            slot = self._running.pop(reference)
            try:
                out.append((slot, self._ray.get(reference)))
            except self._ray.exceptions.RayError as error:  # the actor, its node or the way to it is gone
                logger.warning("worker %d is gone: %s", slot, error)
                self._ray.kill(self.actors.pop(slot))
                out.append((slot, None))
        return out

    def close(self) -> None:
        for actor in self.actors.values():
            self._ray.kill(actor)
        self._ray.shutdown()
