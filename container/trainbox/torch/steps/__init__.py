"""The loop of steps: batches and gradients, agreement between ranks, loader positions, uneven loaders."""
