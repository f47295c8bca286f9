"""Start the session of a training script: join the other ranks, choose the device, seed all generators."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist

from trainbox import toolkit
from trainbox.contract.cluster.progress import StepPhase, open_progress
from trainbox.contract.job import read_environment
from trainbox.launcher.ranks import preload
from trainbox.log_lines import emit
from trainbox.torch.determinism import algorithms, seed_all
from trainbox.torch.permutation import derive
from trainbox.torch.precision import Precision, PrecisionName
from trainbox.torch.steps.agreement import gather
from trainbox.torch.training import CHECK_EVERY, Session
from trainbox.torch.world import choose_backend, find_ranks, joined


@contextmanager
def session(
    *,
    seed: int = 0,
    precision: PrecisionName = "fp32",
    backend: str | None = None,
    deterministic: bool = True,
    on_nan: Literal["stop", "continue"] = "stop",
    check_every: int = CHECK_EVERY,
) -> Iterator[Session]:
    """Join the other ranks, choose the device, seed all random generators; leave together with the other ranks.

    Args:
        seed: Of every random choice. All ranks draw the same until `wrap`, so that their models are the same.
        precision: fp32, or a mixed precision: bf16 or fp16.
        backend: Of torch.distributed; by default that of the request, else nccl with GPUs and gloo without.
        deterministic: Only algorithms that give the same bits each time, where there are such.
        on_nan: What a loss that is not finite does: stop the job, or leave its step out.
        check_every: Steps from one comparison of the ranks' parameters to the next; 0 never compares.

    Raises:
        ContractError: The variables of the rank are not those of torchrun, or it would train alone in a job of several.
        HyperparameterError: A GPU, a library or a precision that is asked for is not there.
    """
    settings, env = toolkit.current_job().settings, read_environment()
    preload.warn(env)
    ranks = find_ranks(toolkit.current_job(), env)
    progress = open_progress(env, ranks, emit)
    if progress is not None:
        progress.mark(0, StepPhase.JOIN)  # first: who hears a stop and has yet to join is not waited for
    toolkit.stop_requested()  # from here on SIGTERM is a request
    gpus = torch.cuda.device_count()
    chosen = choose_backend(backend or settings.backend, ranks, gpus=gpus, nccl=dist.is_nccl_available())
    with (
        algorithms(deterministic=deterministic),
        joined(ranks, chosen, pauses=settings.start_seconds, env=env) as control,
    ):
        seed_all(derive(seed, "all"))
        run = Session(
            ranks,
            chosen,
            control,
            progress,
            precision=Precision(precision, chosen.device),
            seed=seed,
            on_nan=on_nan,
            check_every=check_every,
        )
        gather(ranks.rank, control)  # every rank can be reached, before anything is computed
        several = f"{ranks.world_size} ranks, {ranks.local_world_size} on this host, {chosen.name}"
        who = several if ranks.world_size > 1 else "one rank"
        run.print(
            f"{who} on {chosen.device.type} ({chosen.reason}), {precision}, {torch.get_num_threads()} threads a rank,"
            f" seed {seed}, torch {torch.__version__}"
        )
        try:
            yield run
            run._loop.close()  # noqa: SLF001 - of the same module
        finally:
            run._loop.leave()  # noqa: SLF001 - likewise
