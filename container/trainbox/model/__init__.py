"""What all algorithms write beside a model: learning curves, importance, pictures, sample rows."""
