"""What belongs to this operating-system process: start, signals, progress, compiled code."""
