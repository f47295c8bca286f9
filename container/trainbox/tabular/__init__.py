"""What every algorithm on tables shares: checks of labels, learning curves, feature importance, how much is left."""
