"""The directory of a result: its record, logs, model and archive."""
