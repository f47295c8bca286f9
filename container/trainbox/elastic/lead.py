"""From the contract to a running agent of torch elastic, and from its end to an exit code and a verdict."""

import contextlib
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.rendezvous import RendezvousError

from trainbox.contract.job import Job, add_to_environment
from trainbox.contract.verdict import Verdict, write_verdict
from trainbox.elastic import causes
from trainbox.elastic.agent import RESTART_GRACE_SECONDS, Agent
from trainbox.elastic.council import BEAT_SECONDS, Council, HostLost
from trainbox.elastic.ranks import Ranks
from trainbox.elastic.rendezvous import meeting, open_store
from trainbox.elastic.variables import hang_directory
from trainbox.errors import PeerError, Stopped, TrainboxError
from trainbox.launch.relay import Sink
from trainbox.say import say

_ROLE = "rank"
#: Elastic's rendezvous shall not make a store for the ranks, which would be the same for all attempts.
_OWN_STORES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def lead(job: Job, processes: int, scratch: Path, channel: socket.socket, env: Mapping[str, str]) -> int:
    """Run the ranks of this host to their end.

    Args:
        job: The contract.
        processes: How many ranks this host has.
        scratch: Where the verdict is left for the supervisor.
        channel: To the fork server.
        env: The environment of this process, which the ranks have, too.

    Returns:
        0; the exit code of the rank that failed first, if it was one of this host; else that of `PeerError`.
    """
    ranks = Ranks(channel, (Sink(1), Sink(2)))
    leading = _Leading(job, ranks, env)
    try:
        verdict = leading.run(processes, scratch)
    except HostLost as lost:
        verdict = Verdict(None, causes.lost_reason(lost.hosts), lost=lost.hosts)
    except TrainboxError as error:
        verdict = Verdict(None, error.cause, code=error.exit_code)
    finally:
        with contextlib.suppress(TrainboxError):  # said above, where it is why the agent ends
            ranks.end(RESTART_GRACE_SECONDS)
    if verdict is None:
        return 0
    write_verdict(scratch, verdict)
    failure = verdict.failure
    own = failure.code if failure is not None and failure.host == job.current_host else 0
    return verdict.code or own or PeerError.exit_code


class _Leading:
    """What the signal handler and the agent share."""

    def __init__(self, job: Job, ranks: Ranks, env: Mapping[str, str]) -> None:
        self.job = job
        self.env = env
        self.ranks = ranks
        self.agent: Agent | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)

    def note(self, text: str) -> None:
        """Say a line between those of the ranks."""
        self.ranks.sinks[1].end_line()
        say(text, hidden=self.job.secrets)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self.ranks.stop(number)
        if self.agent is None or self.agent.is_meeting:
            self.check()

    def check(self) -> None:
        """End a wait for other hosts if a stop was asked for."""
        if self.ranks.stop_signal:
            name = signal.Signals(self.ranks.stop_signal).name
            raise Stopped(f"stopped by {name} before the ranks were started")

    def run(self, processes: int, scratch: Path) -> Verdict | None:
        """Meet the other hosts, and let elastic run; None where all went well."""
        job = self.job
        add_to_environment(_OWN_STORES)
        if any(Path("/dev").glob("nvidia[0-9]*")):  # NCCL's flight recorder makes no directory
            hang_directory(job).mkdir(parents=True, exist_ok=True)
        patience = job.settings.start_seconds
        store = open_store(job.hosts, job.host_rank, job.port, timeout=patience, check=self.check)
        with contextlib.closing(Council(store, job.hosts, job.host_rank)) as council:
            rendezvous = meeting(store, job.hosts, job.host_rank, run_id=job.name or "trainbox", first_join=patience)
            spec = WorkerSpec(
                role=_ROLE,
                local_world_size=processes,
                rdzv_handler=rendezvous,
                entrypoint=_ROLE,
                max_restarts=job.settings.max_restarts,
                monitor_interval=1e-6,  # the agent itself waits, for whatever comes first
            )
            self.agent = Agent(spec, job, self.ranks, council, scratch=scratch, note=self.note, env=self.env)
            try:
                result = self.agent.run()
            except RendezvousError as error:
                raise _who_did_not_come(council, error) from error
        if result is not None and not result.is_failed():
            return None
        self.agent.leave()
        return self.agent.verdict or Verdict(None, "the ranks were ended")


def _who_did_not_come(council: Council, error: RendezvousError) -> HostLost | PeerError:
    """Hosts that have stopped counting have not come."""
    council.silent()
    time.sleep(3 * BEAT_SECONDS)
    missing = council.silent(2 * BEAT_SECONDS)
    if missing:
        return HostLost(*missing)
    return PeerError(f"the hosts of the job did not meet: {error}")
