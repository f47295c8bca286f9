"""What `serve` does beside supervising: it accepts connections, hands them to workers, and watches these."""
