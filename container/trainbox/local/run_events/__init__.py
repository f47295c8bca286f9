"""What a run reports while it goes on: events, and how it ended."""
