"""Checkpoints of a sharded state (FSDP2): DCP plans, each host writes and keeps its shards."""
