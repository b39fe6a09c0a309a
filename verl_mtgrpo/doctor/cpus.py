"""Check that Ray has enough CPUs for the actors that hold one; otherwise verl waits indefinitely (verl #7656).

Ray's CPUs are tickets: an actor that asks for one holds it, even while it is idle. In verl 0.9.1 with TransferQueue
0.1.11, these are taken before the first rollout and never given back:

- TransferQueue's controller and each of its storage units: 1 (``transfer_queue/controller.py:943``,
  ``storage/simple_storage.py:722``: ``num_cpus=1``);
- each slot (GPU) of the trainer and of a reward model with separate GPUs: 3 (``max_colocate_count`` of
  ``verl/single_controller/ray/base.py:192``), taken as one placement group per node;
- each slot of standalone rollout servers (``separate_async``): 2 (``verl/workers/rollout/replica.py:205``).

verl's other actors take none (Ray's default for actors that do not ask).
"""

from __future__ import annotations

from collections.abc import Iterator

from verl_mtgrpo.doctor.findings import Finding
from verl_mtgrpo.doctor.setup import ROLLOUT, Setup

CHECK = "cpus"
UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"
GIVEN = "ray_kwargs.ray_init.num_cpus"
PER_SLOT, PER_STANDALONE_SLOT = 3, 2


def cpus(setup: Setup) -> Iterator[Finding]:
    """Yield whether Ray has a CPU for every process that holds one."""
    given = setup.get(GIVEN)
    there = int(given) if given is not None else _of_this_machine()
    units, slots = storage_units(setup), held_by_slots(setup)
    need = 1 + units + slots
    if there is None:
        yield Finding(CHECK, "skip", f"the number of Ray's CPUs is unknown here; verl holds {need} from the start")
        return
    if there >= need:
        yield Finding(
            CHECK, "ok", f"{there} CPUs of Ray, {need} of them held: 1 + {units} TransferQueue, {slots} slots"
        )
        return
    of = GIVEN if given is not None else f"{GIVEN} is not set, so those of this machine"
    message = (
        f"Ray has {there} CPUs ({of}), but {need} are held from the start (1 by TransferQueue's controller, {units} by "
        f"its storage units, {slots} by the slots of workers): verl would wait indefinitely without a message"
    )
    room = there - 1 - slots
    fewer = f"set {UNITS}={min(room, 2)}, or " if units and room >= 1 else ""
    fix = f"{fewer}set {GIVEN}={need} or more (Ray only counts them; more than the machine has is fine)"
    yield setup.absent(CHECK, message, fix) if given is not None else setup.of_machine(CHECK, message, fix)


def storage_units(setup: Setup) -> int:
    """Return how many storage units TransferQueue starts."""
    simple = setup.get("transfer_queue.backend.storage_backend") in (None, "SimpleStorage")
    return int(setup.get(UNITS) or 0) if simple else 0


def held_by_slots(setup: Setup) -> int:
    """Return the CPUs of the placement groups of all workers, on all nodes."""
    trained = int(setup.get("trainer.n_gpus_per_node") or 0) * int(setup.get("trainer.nnodes") or 1)
    held = PER_SLOT * trained
    model = setup.get("reward.reward_model") or {}
    if model.get("enable") and model.get("enable_resource_pool"):
        held += PER_SLOT * int(model.get("n_gpus_per_node") or 0) * int(model.get("nnodes") or 0)
    if str(setup.get("trainer.v1.trainer_mode")).endswith("separate_async"):
        slots = int(setup.get(f"{ROLLOUT}.n_gpus_per_node") or 0) * int(setup.get(f"{ROLLOUT}.nnodes") or 0)
        held += PER_STANDALONE_SLOT * slots
    return held


def _of_this_machine() -> int | None:
    """Return the number of CPUs that Ray would count here; None if the run joins a cluster, or if Ray cannot tell."""
    try:
        from ray._private.utils import get_num_cpus, read_ray_address
    except ImportError:  # no public function counts as Ray does (cgroups of containers)
        return None
    if read_ray_address():  # without an address, ray.init() joins the last cluster that was started on this machine
        return None
    return int(get_num_cpus(override_docker_cpu_warning=True))
