"""The generator against the known answers of Random123 and against its own addressing."""

import numpy as np

from btrain.kernels.philox import philox_words


def test_known_answer_zero() -> None:
    assert [hex(w) for w in philox_words(0, 1, key=0)[0]] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]


def test_known_answer_ones() -> None:
    ones = 2**64 - 1
    words = philox_words(ones, 1, key=ones, high=ones)[0]
    assert [hex(w) for w in words] == ["0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd"]


def test_known_answer_pi() -> None:
    words = philox_words(0x85A308D3_243F6A88, 1, high=0x03707344_13198A2E, key=0x299F31D0_A4093822)[0]
    assert [hex(w) for w in words] == ["0xd16cfe09", "0x94fdcceb", "0x5001e420", "0x24126ea1"]


def test_a_counter_is_an_address() -> None:
    whole = philox_words(2**32 - 5, 10, key=7)
    assert np.array_equal(whole[3:], philox_words(2**32 - 2, 7, key=7))
