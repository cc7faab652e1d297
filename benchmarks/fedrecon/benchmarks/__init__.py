"""What fedrecon promises, measured: each benchmark prints one JSON object as its last line."""
