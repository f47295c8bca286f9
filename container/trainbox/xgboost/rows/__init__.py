"""The rows of a job: read, checked, agreed on by all processes, and made into XGBoost's matrices."""
