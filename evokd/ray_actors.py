"""Workers as Ray's actors, its only door: each holds teacher and data, on whatever node has room. For those who outgrow one machine.

Two nodes by hand, both with evokd and Ray installed, in one folder that both can read (code, data, runs), with one `~/.ray/auth_token`:

    node1$ ray start --head --port 6379
    node2$ ray start --address node1:6379
    node1$ python -m evokd.evolve distiller --engine ray -s ray_address=auto

By SLURM (`sbatch FILE`); with GPUs also `#SBATCH --gpus-per-node=1`, and `--device cuda -s ray_gpus=0.25` for four workers on each:

    #!/bin/bash
    #SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=8 --time=04:00:00 --signal=B:TERM@120
    export RAY_ADDRESS=$(hostname):6379 RAY_USAGE_STATS_ENABLED=0
    ray start --head --port=6379 --num-cpus=$SLURM_CPUS_PER_TASK
    srun --nodes=$((SLURM_NNODES - 1)) --exclude=$(hostname) ray start --address=$RAY_ADDRESS --num-cpus=$SLURM_CPUS_PER_TASK --block &
    sleep 30
    python -m evokd.evolve distiller --engine ray "$@" &
    trap "kill -TERM $!" TERM
    wait $!; wait $!
    ray stop

The end of the job comes as a SIGTERM two minutes before, at which the run is saved; `sbatch FILE --resume runs/RUN` goes on.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from evokd.errors import EvokdError
from evokd.genome.individual import Outcome
from evokd.worker import guarded, opened, resident

if TYPE_CHECKING:
    from evokd.executor import Terms

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # no telemetry, no advice


@final
class RayEngine:
    """A Ray cluster, or a Ray of this machine alone.

    Args:
        address: of the cluster, `auto` for the one that this machine belongs to; `RAY_ADDRESS` if None, and without that this machine.
        gpus: of one worker, also a part of one; each has one CPU.

    Raises:
        EvokdError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str | None, gpus: float = 0.0) -> None:
        self.ray, self.gpus = connected(address or os.environ.get("RAY_ADDRESS")), gpus
        self.holder = self.ray.remote(Holder)

    def count(self) -> int:
        """Workers that the cluster has room for.

        Raises:
            EvokdError: none.
        """
        has = self.ray.cluster_resources()
        room = int(min(has.get("CPU", 0), has.get("GPU", 0) / self.gpus if self.gpus else float("inf")))
        if room < 1:
            wanted = f"1 CPU and {self.gpus:g} GPUs" if self.gpus else "1 CPU"
            raise EvokdError(
                "--engine ray", f"a cluster with {wanted} for a worker", f"{has.get('CPU', 0):g} and {has.get('GPU', 0):g}"
            )
        return room

    def hire(self, open_evaluator: Callable[[Any], Callable], recipe: Any, terms: Terms) -> Actor:
        threads = 2 if terms.memory else 1  # the second one tells the memory while the first trains
        holder = self.holder.options(num_cpus=1, num_gpus=self.gpus, max_restarts=0, max_concurrency=threads)
        return Actor(self.ray, holder.remote(str(Path.cwd()), open_evaluator, recipe))

    def listen(self, workers: Sequence[Actor], seconds: float) -> list[Actor]:
        told, _ = self.ray.wait([worker.awaited for worker in workers], num_returns=1, timeout=seconds)
        return [worker for worker in workers if worker.awaited in told]


@final
class Actor:
    """One actor as the driver sees it. A job is sent once the actor has come up, which on a busy cluster may take its time."""

    def __init__(self, ray: Any, holder: Any) -> None:
        self.ray, self.holder, self.awaited = ray, holder, holder.is_up.remote()
        self.place: int | None = None
        self.ready, self.gone, self.since = False, False, time.perf_counter()
        self.exitcode = ""
        self._job: Any = None

    def take(self, place: int, job: Any) -> None:
        self.place, self._job = place, job
        if self.ready:
            self._send()

    def _send(self) -> None:
        self.since, self.awaited = time.perf_counter(), self.holder.outcome.remote(self._job)

    def news(self) -> Outcome | None:
        try:
            told = self.ray.get(self.awaited)
        except self.ray.exceptions.RayError as error:  # the actor, or its node
            self.gone, self.exitcode = True, type(error).__name__
            return None
        if not self.ready:
            self.ready = True
            self._send()
            return None
        self.place = None
        return told

    def resident(self) -> int:
        try:
            return self.ray.get(self.holder.resident.remote(), timeout=5.0) if self.ready else 0
        except self.ray.exceptions.RayError:
            return 0

    def end(self) -> None:
        self.ray.kill(self.holder)


class Holder:
    """What an actor is on its node: in the driver's folder, with teacher and data. Ray gives it as many threads as CPUs, one."""

    def __init__(self, folder: str, open_evaluator: Callable[[Any], Callable], recipe: Any) -> None:
        def open_there(recipe: Any) -> Callable:
            os.chdir(folder)
            return open_evaluator(recipe)

        self.evaluate = opened(open_there, recipe)

    def is_up(self) -> bool:
        return True

    def outcome(self, job: Any) -> Outcome:
        return guarded(self.evaluate, job)

    def resident(self) -> int:
        return resident(os.getpid())


def connected(address: str | None) -> Any:
    """Ray, connected once a process; one that is of this machine alone listens to this machine alone, and ends with the process.

    Raises:
        EvokdError: not installed, or no cluster answers.
    """
    os.environ |= {name: value for name, value in QUIET.items() if name not in os.environ}
    try:
        import ray
    except ImportError:
        raise EvokdError("--engine ray", "Ray", "none installed", "pip install 'evokd[ray]'") from None
    if ray.is_initialized():
        return ray
    logging.getLogger("ray").setLevel(logging.ERROR)
    own = {"address": "local", "_node_ip_address": "127.0.0.1", "include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**({"address": address} if address else own), log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise EvokdError("-s ray_address", "a Ray cluster that answers", f"{address}: {error}".splitlines()[0][:160]) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray would end the process by a handler of its own
    return ray
