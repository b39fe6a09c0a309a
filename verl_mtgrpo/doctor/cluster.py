"""Ask the nodes of a running Ray cluster for their versions, with one task on each of them.

This runs as a program, in a separate process, with the cluster's address in RAY_ADDRESS::

    python -m verl_mtgrpo.doctor.cluster

The last line of its output is a JSON object. Its ``nodes`` is a list with an ``address`` and the ``versions`` by
package (null if it is not installed), or an ``error`` if the node did not answer.
"""

from __future__ import annotations

import json
import sys
from typing import Any

PACKAGES = ("verl-mtgrpo", "verl", "TransferQueue")
LIMIT_S = 60.0
"""Longest time in seconds for the answers of all nodes, each of which has to start a process."""


def _look() -> list[dict[str, Any]]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def versions(packages: tuple[str, ...]) -> dict[str, str | None]:
        """Return versions. Ray sends this nested function as code, so nodes do not need this package."""
        from importlib.metadata import PackageNotFoundError, version

        found: dict[str, str | None] = {}
        for name in packages:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = None
        return found

    ray.init(log_to_driver=False)  # joins the cluster of RAY_ADDRESS
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        task = ray.remote(num_cpus=0)(versions)
        asked = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                PACKAGES
            )
            for node in nodes
        ]
        ray.wait(asked, num_returns=len(asked), timeout=LIMIT_S)
        return [{"address": node["NodeManagerAddress"], **_answer(one)} for node, one in zip(nodes, asked, strict=True)]
    finally:
        ray.shutdown()


def _answer(asked: Any) -> dict[str, Any]:
    import ray

    try:
        return {"versions": ray.get(asked, timeout=0)}
    except Exception as error:  # a node may fail to start a worker for any reason
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


if __name__ == "__main__":
    print(json.dumps({"nodes": _look()}))
    sys.stdout.flush()
