"""A model on several ranks: copies (DDP) or shards (FSDP2), and the time each rank itself computes."""
