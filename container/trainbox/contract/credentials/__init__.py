"""What proves or must stay hidden: keys of jobs and checkpoints, references to secrets, secret values."""
