"""Models that come with fedrecon. Each module declares one, and is an example of how to declare another."""
