"""Run the search service as a Ray Serve application, on the cluster that training uses anyway.

This is the only file of ``mtgrpo serve`` that imports Ray; it does not import verl. Each replica opens the index by its
path and runs the same app as a single process does, so the limits apply per replica.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from verl_mtgrpo.errors import CompatibilityError, ConfigError
from verl_mtgrpo.retrieval import BM25Index, DenseIndex, open_index
from verl_mtgrpo.retrieval.server import ServerSettings, create_app

APPLICATION = "mtgrpo-search"
DEPLOYMENT = "search"


@dataclass(frozen=True)
class Scale:
    """Number and size of the replicas.

    Attributes:
        replicas: Number of replicas if ``max_replicas`` is None.
        min_replicas: Smallest number when scaling with the load; None for 1.
        max_replicas: Largest number when scaling with the load; None for a fixed number.
        cpus: CPUs that Ray reserves for each replica.
    """

    replicas: int = 1
    min_replicas: int | None = None
    max_replicas: int | None = None
    cpus: float = 1.0

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ConfigError(f"--replicas is {self.replicas}", expected="at least 1")
        if self.min_replicas is not None and self.max_replicas is None:
            raise ConfigError(
                "--min-replicas without --max-replicas",
                fix="set both, or --replicas for a fixed number",
            )
        if self.max_replicas is not None and not 1 <= (self.min_replicas or 1) <= self.max_replicas:
            raise ConfigError(
                f"--min-replicas is {self.min_replicas} and --max-replicas {self.max_replicas}",
                expected="1 <= min <= max",
            )
        if self.cpus < 0:
            raise ConfigError(f"--replica-cpus is {self.cpus}", expected="0 or more")

    def options(self) -> dict[str, Any]:
        """Return Ray Serve's options for this number of replicas."""
        if self.max_replicas is None:
            return {"num_replicas": self.replicas}
        return {"autoscaling_config": {"min_replicas": self.min_replicas or 1, "max_replicas": self.max_replicas}}


def build_application(index: Path, settings: ServerSettings, scale: Scale) -> serve.Application:
    """Return the application, ready for ``serve.run``; ``index`` has to exist on every node with a replica."""

    class Replica:
        def check_health(self) -> None:
            """Raise if the index is gone or was replaced by another; Ray Serve then replaces the replica."""
            opened.search(["test"], 1)

    # Open the index here, so that a wrong path stops the command and not a replica. It is pickled as path and checksum,
    # so a replica that later finds another index at this path refuses to start instead of giving other answers.
    opened = open_index(index)
    deployment = serve.deployment(
        name=DEPLOYMENT,
        # The app refuses with 429 and Retry-After when its queue is full; Ray's own queue would only hide that.
        max_ongoing_requests=settings.thread_count + settings.queue + 64,
        health_check_period_s=5,
        health_check_timeout_s=15,
        graceful_shutdown_timeout_s=settings.timeout_s + 5,
        ray_actor_options={"num_cpus": scale.cpus},
        **scale.options(),
    )(serve.ingress(_builder(opened, settings))(Replica))
    return deployment.bind()


def _builder(index: BM25Index | DenseIndex, settings: ServerSettings) -> Any:
    # Replicas read the token from their environment, as the single process does. It travels with the code and not in a
    # runtime_env, because Ray writes the variables of a runtime_env into a log.
    token = {name: os.environ.get(name, "") for name in [settings.token_env] if name}

    # Ray makes the app on the replica by calling this; it accepts plain functions only.
    def build() -> FastAPI:
        os.environ.update(token)
        return create_app(index, settings)

    return build


@contextmanager
def running(
    index: Path, settings: ServerSettings, scale: Scale, *, host: str, port: int, ray_address: str | None = None
) -> Generator[None]:
    """Run the application inside a ``with`` block: it answers requests when the block begins, and is gone afterwards.

    Joins the cluster at ``ray_address`` or RAY_ADDRESS and leaves its other applications alone. Without either, starts
    a Ray on this machine and stops it afterwards.

    Raises:
        CompatibilityError: Ray cannot be reached or started, or the application does not come up.
    """
    address = ray_address or os.environ.get("RAY_ADDRESS") or "local"
    application = build_application(index, settings, scale)
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CompatibilityError(
            f"Ray at {address!r} cannot be used ({error})",
            fix="choose another --ray-address, or none for a private Ray",
        ) from error
    try:
        with _told_apart():
            # The same address on every node, so that workers can ask the service on their own node.
            serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
        try:
            with _told_apart():
                serve.run(application, name=APPLICATION, route_prefix="/")
            yield
        finally:
            serve.delete(APPLICATION)
            if not serve.status().applications:
                serve.shutdown()
    finally:
        ray.shutdown()


@contextmanager
def _told_apart() -> Generator[None]:
    """Shorten an error of Ray to its last line; the traceback before it comes from another process."""
    try:
        yield
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise CompatibilityError(
            f"the search service did not come up on Ray: {last}",
            fix="check that the address is free, and see Serve's logs in the Ray session's folder logs/serve",
        ) from error
