"""The arithmetic that both ends of fedrecon must do alike.

Rules: no I/O, no clock, no randomness that is not passed in; numpy and `cryptography` only. Every convention here
is also written in the comments of `protos/fedrecon/v1`, so that another language needs nothing else, and fixed by
known-answer vectors in the tests.
"""
