"""The event loop of the supervisor: children, their output, signals, deadlines and leftover processes."""
