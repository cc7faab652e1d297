"""What Flower's SecAgg+ functions cost for sums of the same sizes. Run by the Python of an environment that has Flower.

Rules: this file is run by its path and imports nothing of fedrecon; it prints one JSON object. The steps are those of
Flower's client mod and server workflow, in their order, without their messages. A device's part is run whole. Of the
aggregator's the costs of rebuilding one secret and of one mask are measured and multiplied by their number, since the
whole would take minutes; that is said where it is told.

What it does differently: numpy's Mersenne Twister draws the masks from 32 bits of a seed, nothing is signed, nothing is
committed to.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

MODULUS, TARGET_RANGE, CLIP = 1 << 32, 1 << 22, 8.0
"""As Flower's defaults."""

_MASKS = 5


def measure(members: int, parameters: int, drop_out: float, neighbours: int, threshold: int) -> dict[str, float]:
    """Return the processor time of a device, and that of the aggregator by multiplication, in seconds.

    Args:
        members: Devices that share.
        parameters: Elements of a report.
        drop_out: Share of them that is lost.
        neighbours: Of every device.
        threshold: Shares that recover a secret.
    """
    client = _client_seconds(parameters, neighbours, threshold)
    lost = round(members * drop_out)
    survivors = members - lost
    pairs = round(lost * neighbours * survivors / members)
    units = _server_units(parameters, neighbours, threshold)
    seeds, keys = survivors * units["seed"], lost * units["key"]
    return {
        "client_cpu_seconds": client,
        "server_cpu_seconds": seeds + keys + (survivors + pairs) * units["mask"] + pairs * units["agreement"],
        "mask_seconds": units["mask"],
    }


def _client_seconds(parameters: int, neighbours: int, threshold: int) -> float:
    """Return what one device's whole part takes."""
    from flwr.common.secure_aggregation import ndarrays_arithmetic as arithmetic
    from flwr.common.secure_aggregation import quantization, secaggplus_utils
    from flwr.common.secure_aggregation.crypto import shamir
    from flwr.common.secure_aggregation.crypto import symmetric_encryption as crypto
    from flwr.supercore.primitives import asymmetric as keys

    others = [keys.public_key_to_bytes(keys.generate_key_pairs()[1]) for _ in range(neighbours)]
    update = [np.random.default_rng(1).uniform(-1, 1, parameters).astype(np.float32)]
    began = time.process_time()
    mask_key, share_key = (keys.private_key_to_bytes(keys.generate_key_pairs()[0]) for _ in range(2))
    seed = bytes(range(32))
    seed_shares = shamir.create_shares(seed, threshold, neighbours + 1)
    key_shares = shamir.create_shares(mask_key, threshold, neighbours + 1)
    sealed = []
    for number, other in enumerate(others):
        key = crypto.generate_shared_key(keys.bytes_to_private_key(share_key), keys.bytes_to_public_key(other))
        pair = secaggplus_utils.share_keys_plaintext_concat(0, number, seed_shares[number], key_shares[number])
        sealed.append((key, crypto.encrypt(key, pair)))
    for key, ciphertext in sealed:  # as many come back as went out
        secaggplus_utils.share_keys_plaintext_separate(crypto.decrypt(key, ciphertext))
    vector = quantization.quantize(arithmetic.parameters_multiply(update, 1.0), CLIP, TARGET_RANGE)
    vector = arithmetic.factor_combine(TARGET_RANGE, vector)
    shapes = arithmetic.get_parameters_shape(vector)
    vector = arithmetic.parameters_addition(vector, secaggplus_utils.pseudo_rand_gen(seed, MODULUS, shapes))
    for number, other in enumerate(others):
        key = crypto.generate_shared_key(keys.bytes_to_private_key(mask_key), keys.bytes_to_public_key(other))
        mask = secaggplus_utils.pseudo_rand_gen(key, MODULUS, shapes)
        change = arithmetic.parameters_addition if number % 2 else arithmetic.parameters_subtraction
        vector = change(vector, mask)
    arithmetic.parameters_mod(vector, MODULUS)
    return time.process_time() - began


def _server_units(parameters: int, neighbours: int, threshold: int) -> dict[str, float]:
    """Return what rebuilding one seed or key, one mask, and agreeing on one key take."""
    from flwr.common.secure_aggregation import ndarrays_arithmetic as arithmetic
    from flwr.common.secure_aggregation import secaggplus_utils
    from flwr.common.secure_aggregation.crypto import shamir
    from flwr.common.secure_aggregation.crypto import symmetric_encryption as crypto
    from flwr.supercore.primitives import asymmetric as keys

    private_key = keys.private_key_to_bytes(keys.generate_key_pairs()[0])
    public_key = keys.public_key_to_bytes(keys.generate_key_pairs()[1])
    seed_shares = shamir.create_shares(bytes(range(32)), threshold, neighbours + 1)[:threshold]
    key_shares = shamir.create_shares(private_key, threshold, neighbours + 1)[:threshold]
    total = [np.zeros(parameters, dtype=np.int64)]
    shapes = arithmetic.get_parameters_shape(total)

    def mask() -> None:
        drawn = secaggplus_utils.pseudo_rand_gen(bytes(range(32)), MODULUS, shapes)
        arithmetic.parameters_subtraction(total, drawn)

    def agree() -> None:
        crypto.generate_shared_key(keys.bytes_to_private_key(private_key), keys.bytes_to_public_key(public_key))

    return {
        "seed": _seconds(lambda: shamir.combine_shares(seed_shares)),
        "key": _seconds(lambda: shamir.combine_shares(key_shares)),
        "mask": statistics.median(_seconds(mask) for _ in range(_MASKS)),
        "agreement": statistics.median(_seconds(agree) for _ in range(_MASKS)),
    }


def _seconds(step: Callable[[], object]) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


def main() -> None:
    """Measure one size and print it."""
    parser = argparse.ArgumentParser()
    for name in ("members", "parameters", "neighbours", "threshold"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--drop-out", type=float, required=True)
    print(json.dumps(measure(**vars(parser.parse_args()))))  # noqa: T201 - what the caller reads


if __name__ == "__main__":
    main()
