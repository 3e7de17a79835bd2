"""What a queue means: a sans-IO state machine. No await, no socket, no clock, no randomness."""
