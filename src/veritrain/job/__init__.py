"""What a client specifies, and one step of it."""
