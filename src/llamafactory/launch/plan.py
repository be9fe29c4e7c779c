"""Read the launch environment and write the launcher's command: an argument list, never a shell string.

Knows the environment variables and torch's launcher options; starts nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamafactory import env
from llamafactory.errors import ConfigError

LOOPBACK = "127.0.0.1"
_IN_GROUP = ("TORCHELASTIC_RUN_ID", "LLAMAFACTORY_REPORT_FOLDER")


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """How many processes to start and where they meet.

    min_nodes < max_nodes only in the elastic form. port 0: the launcher takes a free one. rendezvous_id is None in the
    static form.
    """

    processes_per_node: int
    min_nodes: int = 1
    max_nodes: int = 1
    node_rank: int = 0
    address: str = LOOPBACK
    port: int = 0
    rendezvous_id: str | None = None
    max_restarts: int = 0

    @property
    def is_elastic(self) -> bool:
        """True when nodes find each other by a rendezvous id; on a single node there is nobody to find."""
        return self.rendezvous_id is not None and self.max_nodes > 1

    def __str__(self) -> str:
        nodes = f"{self.min_nodes}-{self.max_nodes}" if self.min_nodes != self.max_nodes else str(self.max_nodes)
        where = f"{self.address}:{self.port}" if self.port else f"{self.address}, a free port"
        return f"{self.processes_per_node} process(es) per node on {nodes} node(s), meeting at {where}"


def read_plan(environ: Mapping[str, str], *, count_devices: Callable[[], int]) -> LaunchPlan | None:
    """Decide whether to start a group of processes; None means this process trains alone.

    count_devices is called only when the environment leaves the question open. Raises ConfigError naming the variable.
    """
    if _is_in_group(environ):
        return None
    if env.is_enabled("USE_RAY"):
        raise ConfigError(
            "USE_RAY: starting through Ray is not available in this version; unset it and set NNODES, NODE_RANK, "
            "MASTER_ADDR and MASTER_PORT to train on several machines"
        )
    forced = env.is_enabled("FORCE_TORCHRUN")
    nodes = _nodes(environ)
    processes = _whole(environ, "NPROC_PER_NODE", minimum=1)
    if processes is None:
        processes = max(1, count_devices())
    if not forced and processes == 1 and nodes[1] == 1:
        return None
    address, port = _meeting_point(environ, nodes[1])
    return LaunchPlan(
        processes_per_node=processes,
        min_nodes=nodes[0],
        max_nodes=nodes[1],
        node_rank=_node_rank(environ, nodes[1]),
        address=address,
        port=port,
        rendezvous_id=environ.get("RDZV_ID") or None,
        max_restarts=_whole(environ, "MAX_RESTARTS", minimum=0) or 0,
    )


def build_command(plan: LaunchPlan, argv: Sequence[str], *, worker: str, log_dir: Path) -> list[str]:
    """The argument list that runs the module `worker` with `argv` in every process.

    The output of local ranks above 0 goes to files below `log_dir`.
    """
    nodes = str(plan.max_nodes) if plan.min_nodes == plan.max_nodes else f"{plan.min_nodes}:{plan.max_nodes}"
    options = ["--nnodes", nodes, "--nproc-per-node", str(plan.processes_per_node)]
    options += ["--rdzv-endpoint", f"{plan.address}:{plan.port}", "--max-restarts", str(plan.max_restarts)]
    if plan.is_elastic:
        options += ["--rdzv-backend", "c10d", "--rdzv-id", str(plan.rendezvous_id)]
    else:
        options += ["--rdzv-backend", "bound", "--rdzv-conf", f"rank={plan.node_rank}"]
        options += ["--rdzv-id", plan.rendezvous_id or "llamafactory"]
    if plan.processes_per_node > 1:
        files = ",".join(f"{rank}:3" for rank in range(1, plan.processes_per_node))
        options += ["--log-dir", str(log_dir), "--redirects", files]
    agent = [sys.executable, "-m", "llamafactory.launch.agent"]
    return [*agent, *options, "-m", worker, *argv]


def build_environment(plan: LaunchPlan, environ: Mapping[str, str]) -> dict[str, str]:
    """The children's environment; what the user has set wins over our defaults."""
    defaults: dict[str, str] = {}
    if env.is_enabled("OPTIM_TORCH", default=True):
        defaults |= {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "TORCH_NCCL_AVOID_RECORD_STREAMS": "1"}
    if plan.max_nodes == 1 and sys.platform == "linux":
        defaults |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    if plan.processes_per_node > 1:
        threads = max(1, (os.cpu_count() or 1) // plan.processes_per_node)
        defaults["OMP_NUM_THREADS"] = str(threads)
    return {**defaults, **environ}


def _is_in_group(environ: Mapping[str, str]) -> bool:
    return any(name in environ for name in _IN_GROUP) or {"RANK", "WORLD_SIZE"} <= environ.keys()


def _nodes(environ: Mapping[str, str]) -> tuple[int, int]:
    least, most = (_whole(environ, name, minimum=1) for name in ("MIN_NNODES", "MAX_NNODES"))
    fixed = _whole(environ, "NNODES", minimum=1) or 1
    if least is None and most is None:
        return fixed, fixed
    if least is None or most is None:
        raise ConfigError("MIN_NNODES and MAX_NNODES: one of them is missing; set both, or NNODES alone")
    if least > most:
        raise ConfigError(f"MIN_NNODES: {least} is more than MAX_NNODES ({most}); lower MIN_NNODES")
    if not environ.get("RDZV_ID"):
        raise ConfigError(
            "MIN_NNODES and MAX_NNODES: a changing number of nodes needs RDZV_ID, the same name on every node; "
            "set RDZV_ID, or NNODES for a fixed number"
        )
    return least, most


def _node_rank(environ: Mapping[str, str], nodes: int) -> int:
    rank = _whole(environ, "NODE_RANK", minimum=0) or 0
    if rank >= nodes:
        raise ConfigError(f"NODE_RANK: {rank} is too high for {nodes} node(s); number the nodes from 0 to {nodes - 1}")
    return rank


def _meeting_point(environ: Mapping[str, str], nodes: int) -> tuple[str, int]:
    address, port = environ.get("MASTER_ADDR"), _whole(environ, "MASTER_PORT", minimum=1)
    missing = [name for name, value in (("MASTER_ADDR", address), ("MASTER_PORT", port)) if not value]
    if nodes > 1 and missing:
        raise ConfigError(
            f"{' and '.join(missing)}: not set, but {nodes} nodes must meet at one address; "
            "set MASTER_ADDR and MASTER_PORT to the address and a free port of node 0, the same on every node"
        )
    return address or LOOPBACK, port or 0


def _whole(environ: Mapping[str, str], name: str, *, minimum: int) -> int | None:
    value = environ.get(name, "").strip()
    if not value:
        return None
    if not value.isdecimal() or int(value) < minimum:
        raise ConfigError(f"{name}: got {value!r} in the environment; give a whole number of at least {minimum}")
    return int(value)
