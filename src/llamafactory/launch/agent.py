"""The launcher process: torch's own launcher, with a meeting point that listens on one address only.

torch's store listens on every interface; here the listening socket is bound to the meeting address (loopback on a
single node) and handed to the store. Knows torch's launcher, not what the workers run.
"""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.run import parse_args, run

from llamafactory import failure
from llamafactory.errors import ConfigError, LlamaFactoryError
from llamafactory.launch.supervise import die_with_parent

_TIMEOUT = timedelta(minutes=10)


class BoundRendezvous(RendezvousHandler):
    """A fixed group of nodes meeting at a store that node 0 opens on `address`; port 0 takes a free one."""

    def __init__(self, address: str, port: int, *, node_rank: int, num_nodes: int, run_id: str) -> None:
        self._address, self._port, self._run_id = address, port, run_id
        self._node_rank, self._num_nodes = node_rank, num_nodes
        self._store: TCPStore | None = None

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return "bound"

    def next_rendezvous(self) -> RendezvousInfo:
        if self._store is None:
            self._store = self._connect() if self._node_rank else self._listen()
            self._port = self._store.port
        meeting = RendezvousStoreInfo(self._address, self._port)
        return RendezvousInfo(PrefixStore(self._run_id, self._store), self._node_rank, self._num_nodes, meeting)

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        return

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True

    def _listen(self) -> TCPStore:
        try:
            listener = socket.create_server((self._address, self._port))
        except OSError as error:
            raise ConfigError(
                f"MASTER_ADDR and MASTER_PORT: node 0 cannot listen on {self._address}:{self._port} "
                f"({error.strerror}); give an address of this machine and a port that is free"
            ) from error
        port = listener.getsockname()[1]
        return TCPStore(
            self._address,
            port,
            is_master=True,
            timeout=_TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )

    def _connect(self) -> TCPStore:
        return TCPStore(self._address, self._port, is_master=False, timeout=_TIMEOUT, wait_for_workers=False)


def main(argv: Sequence[str]) -> int:
    """Run torch's launcher. Which worker failed, and why, is in the workers' own reports."""
    die_with_parent(signal.SIGTERM)
    rendezvous_handler_registry.register("bound", _build)
    try:
        run(parse_args(list(argv)))
    except LlamaFactoryError as error:
        failure.record(None, error)
        return failure.USER_ERROR_CODE
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        failed = ", ".join(f"rank {rank} (exit code {one.exitcode})" for rank, one in error.failures.items())
        sys.stderr.write(f"Ended: {failed}\n")
        return 1
    return 0


def _build(params: RendezvousParameters) -> RendezvousHandler:
    address, _, port = params.endpoint.rpartition(":")
    node_rank = params.get_as_int("rank", 0) or 0
    return BoundRendezvous(
        address.strip("[]"), int(port), node_rank=node_rank, num_nodes=params.max_nodes, run_id=params.run_id
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
