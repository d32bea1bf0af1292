"""Strangers' bytes: the decoder returns arrays or raises PayloadError, in bounded time and memory."""

import time
import tracemalloc

import numpy as np
import pytest
from damaged_payloads import attack, corpus, mutate, reseal

from flsparse.codec import PayloadError, decode, decode_layers


def test_mutated_payloads_raise_only_payload_errors():
    assert attack(1_000, seed=1) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_mutated_payloads_raise_only_payload_errors():
    assert attack(100_000, seed=2) > 0


def test_every_truncation_is_refused():
    for payload, like, reference in corpus()[::7]:
        for length in range(0, len(payload), max(1, len(payload) // 20)):
            with pytest.raises(PayloadError):
                decode(reseal(payload[:length]), like=like, reference=reference)
        with pytest.raises(PayloadError):
            decode(reseal(payload + b"\0"), like=like, reference=reference)


def test_noise_is_refused():
    rng = np.random.default_rng(3)
    for length in (0, 1, 7, 8, 12, 13, 40, 5000):
        with pytest.raises(PayloadError):
            decode(rng.bytes(length), like={})


def test_memory_and_time_stay_bounded():
    """Damaged or not, decoding allocates a small multiple of the model and a few fixed tables."""
    rng = np.random.default_rng(4)
    payloads = corpus(30, (0.0, 0.6), ("fp32", "int4"))
    nbytes = sum(spec.nbytes for spec in payloads[0][1].values())
    for payload, like, reference in payloads[::2] + payloads[1::2]:
        if reference is not None:
            for name in like:
                reference.support(name)
        for damaged in (payload, reseal(mutate(rng, payload, payload))):
            start = time.perf_counter()
            tracemalloc.start()
            try:
                decode_layers(damaged, like=like, reference=reference)
            except PayloadError:
                pass
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            assert peak < 4 * nbytes + 8_000_000, (peak, nbytes)
            assert time.perf_counter() - start < 30
