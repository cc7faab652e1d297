"""The science of fedrecon, in PyTorch: what is learned, how, and how it becomes a plan that any device can run.

Rules: this is the only room that imports torch. Of the services it uses only pure cores, so that simulation and
service share one arithmetic.
"""
