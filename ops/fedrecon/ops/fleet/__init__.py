"""Simulated devices over the real protocol: the device SDK itself, many times in one process.

What is simulated is people and their phones (ratings, drop-out, speed); what they run, send and receive is real.
"""
