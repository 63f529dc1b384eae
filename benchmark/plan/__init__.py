"""What is to be computed, and what is equal: configuration, protocol, step keys."""
