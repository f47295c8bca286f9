"""What algorithms on tables share: channels, checks of rows and labels, codes of texts, log lines."""
