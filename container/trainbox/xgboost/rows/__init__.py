"""The rows of a job: reading, checks, agreement among all processes, and XGBoost's matrices."""
