"""The report of a tuning job: one HTML file with its figures and its table, which needs no network."""
