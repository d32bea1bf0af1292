"""Deltas for those who hold a reference, the full model for everybody else, and a bound on what is kept."""

import numpy as np
import pytest

from flsparse.codec import Codec, Reference, decode, specs_of
from flsparse.strategies import TopK
from flsparse.strategies.core.downlink import Downlink


def model(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {"w": (scale * generator.standard_normal((200, 50))).astype(np.float32)}


def moved(arrays):
    return {name: array + np.float32(0.01) * model(9)["w"] for name, array in arrays.items()}


def test_a_holder_gets_a_delta_and_decodes_what_the_server_thinks():
    downlink, first = Downlink(Codec(values="int8")), model(1)
    downlink.set_model(first, specs_of(first))
    full = downlink.to("")
    assert full.coded_against == ""
    downlink.set_model(moved(first), specs_of(moved(first)))
    delta = downlink.to(full.reference.id)
    assert delta.coded_against == full.reference.id
    decoded = decode(delta.payload, like=specs_of(first), reference=full.reference)
    np.testing.assert_array_equal(decoded["w"], delta.reference.arrays["w"])
    target = moved(first)["w"]
    assert np.std(target - decoded["w"]) < np.std(target - full.reference.arrays["w"]) / 40


def test_a_new_node_gets_the_change_since_the_model_of_the_seed():
    downlink, first = Downlink(Codec(values="int4")), model(1)
    downlink.initial, changed = first, moved(first)
    downlink.set_model(first, specs_of(first))
    unchanged = downlink.to("", seeded=True)
    assert len(unchanged.payload) < first["w"].nbytes / 200
    np.testing.assert_array_equal(unchanged.reference.arrays["w"], first["w"])
    downlink.set_model(changed, specs_of(changed))
    delta, whole = downlink.to("lost", seeded=True), downlink.to("lost")
    assert (delta.coded_against, whole.coded_against) == (Reference(first).id, "")
    errors = [np.std(changed["w"] - each.reference.arrays["w"]) for each in (delta, whole)]
    assert errors[0] < errors[1] / 20
    assert downlink.to(unchanged.reference.id, seeded=True).coded_against == unchanged.reference.id


def test_a_model_with_more_arrays_than_the_seed_has_is_coded_against_zeros_there():
    downlink, first = Downlink(Codec(values="int8")), model(1)
    sent = {**first, "control/w": np.ones((200, 50), np.float32)}
    downlink.initial = first
    downlink.set_model(sent, specs_of(sent))
    broadcast = downlink.to("", seeded=True)
    np.testing.assert_array_equal(broadcast.reference.arrays["w"], first["w"])
    np.testing.assert_allclose(broadcast.reference.arrays["control/w"], 1, rtol=0.01)


def test_a_sparse_broadcast_moves_what_is_furthest_and_the_rest_is_sent_later():
    downlink, first = Downlink(Codec(values="fp32"), density=0.25), model(1)
    arrays = {**first, "bias": np.zeros(50, np.float32), "mask": np.zeros((4, 4), np.float32)}
    changed = {**arrays, "w": moved(first)["w"], "bias": arrays["bias"] + 1, "mask": arrays["mask"] + 1}
    specs = specs_of(arrays, ["mask"])
    downlink.set_model(arrays, specs)
    held = downlink.to("").reference
    distances = []
    for _ in range(4):
        downlink.set_model(changed, specs)
        broadcast = downlink.to(held.id)
        assert (broadcast.reference.arrays["w"] != held.arrays["w"]).sum() <= 2504  # a quarter, of the mask as well
        np.testing.assert_array_equal(broadcast.reference.arrays["bias"], changed["bias"])
        np.testing.assert_array_equal(broadcast.reference.arrays["mask"], changed["mask"])
        held = broadcast.reference
        distances.append(np.abs(broadcast.lost()["w"]).max())
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] == 0
    downlink.initial = arrays
    np.testing.assert_array_equal(
        downlink.to("", seeded=True).reference.arrays["w"], changed["w"]
    )  # whole to a new node


@pytest.mark.parametrize(
    ("density", "values", "said"), [(0.0, "int8", r"downlink_density=0\.0 is not in"), (0.1, "raw", "are raw")]
)
def test_a_density_that_cannot_be_is_refused(density, values, said):
    with pytest.raises(ValueError, match=said):
        TopK(downlink_density=density, downlink_values=values)


def test_a_round_is_coded_once_for_all_who_hold_the_same():
    downlink = Downlink(Codec(values="int8"))
    downlink.set_model(model(1), specs_of(model(1)))
    assert downlink.to("") is downlink.to("") is downlink.to("an id from before a restart")


def test_rounding_errors_do_not_add_up():
    downlink, arrays, held = Downlink(Codec(values="int4")), model(1), ""
    for _ in range(20):
        downlink.set_model(arrays, specs_of(arrays))
        broadcast = downlink.to(held)
        held = broadcast.reference.id
    np.testing.assert_allclose(broadcast.reference.arrays["w"], arrays["w"], atol=1e-5)


def test_what_is_kept_is_bounded_and_a_delta_may_evict_what_it_was_coded_against():
    downlink, arrays = Downlink(Codec(values="int8"), max_reference_bytes=90_000), model(1)
    held = ""
    for step in range(6):
        arrays = moved(arrays)
        downlink.set_model(arrays, specs_of(arrays))
        broadcast = downlink.to(held)
        assert (broadcast.coded_against == held) or step == 0
        held = broadcast.reference.id
    assert len(downlink.state_dict()) == 2


def test_the_dense_baseline_keeps_nothing():
    downlink = Downlink(Codec(values="raw"))
    downlink.set_model(model(1), specs_of(model(1)))
    np.testing.assert_array_equal(downlink.to("x").reference.arrays["w"], model(1)["w"])
    assert not downlink.uses_references
    assert downlink.state_dict() == {}


def test_state_round_trips():
    downlink = Downlink(Codec(values="int8"))
    downlink.set_model(model(1), specs_of(model(1)))
    held = downlink.to("").reference.id
    other = Downlink(Codec(values="int8"))
    other.load_state_dict(downlink.state_dict())
    other.set_model(moved(model(1)), specs_of(moved(model(1))))
    assert other.to(held).coded_against == held


@pytest.mark.parametrize("values", ["fp32", "fp16", "int8", "int4"])
def test_every_kind_of_values(values):
    downlink = Downlink(Codec(values=values))
    downlink.set_model(model(1), specs_of(model(1)))
    held = downlink.to("").reference.id
    downlink.set_model(moved(model(1)), specs_of(moved(model(1))))
    assert downlink.to(held).coded_against == held


@pytest.mark.parametrize(("downlink_values", "deltas"), [("int8", "int4"), ("fp32", "fp32"), ("int4", "int4")])
def test_only_the_recipe_codes_differences_more_coarsely(downlink_values, deltas):
    strategy = TopK(values="int4", downlink_values=downlink_values)
    assert strategy.wire.downlink.delta_codec.values == deltas
