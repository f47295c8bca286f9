"""What `trainbox run` shows: lines, a status line, tables, and a summary."""
