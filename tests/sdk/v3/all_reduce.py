"""Adds up the ranks of all processes of a job by gloo; each leaves the sum in the model directory, which they share."""

import os
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist


def main() -> None:
    """Sum, write, and leave together: local mode stops every host once the first has ended."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    ranks = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(ranks)
    file = Path(os.environ["SM_MODEL_DIR"], f"rank-{dist.get_rank()}-of-{dist.get_world_size()}")
    file.write_text(f"{os.environ['SM_CURRENT_HOST']} {ranks.item():g}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
