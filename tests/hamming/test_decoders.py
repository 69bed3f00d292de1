"""Both decoders, by scan and by table, against a double loop, on all codes, with ties and collisions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import llc
from llc.hamming import Decoder, decode_ed, decode_mhd
from tests.hamming.helpers import random_codes, slow_search


def every_code(num_bits):
    return np.packbits((np.arange(1 << num_bits)[:, None] >> np.arange(num_bits)[::-1]) & 1, axis=1)


def slow_ed(codes, class_codes):
    classes = class_codes.tolist()
    return [classes.index(code) if code in classes else -1 for code in codes.tolist()]


@given(
    num_bits=st.integers(1, 11),
    num_classes=st.integers(1, 40),
    seed=st.integers(0, 999),
    distinct=st.one_of(st.none(), st.integers(1, 9)),
)
def test_scan_and_table_decode_every_code_alike(num_bits, num_classes, seed, distinct):
    class_codes, codes = random_codes(num_classes, num_bits, seed, distinct), every_code(num_bits)
    table, scan = Decoder(class_codes, table=True), Decoder(class_codes, table=False)
    nearest = slow_search(codes, class_codes, 1)[1]
    for decoder in (table, scan):
        found = decoder.mhd(codes)
        assert found.dtype == np.int64 and found.tolist() == nearest
        assert decoder.ed(codes).dtype == np.int64 and decoder.ed(codes).tolist() == slow_ed(
            codes, class_codes
        )
    k = min(3, num_classes)
    assert (
        table.mhd(codes, k).tolist() == scan.mhd(codes, k).tolist() == slow_search(codes, class_codes, k)[1]
    )


@pytest.mark.parametrize("num_bits", [16, 17, 20])
def test_tables_of_longer_codes(num_bits):
    class_codes, codes = random_codes(200, num_bits, 0, 190), random_codes(20_000, num_bits, 1)
    codes[:200] = class_codes
    table, scan = Decoder(class_codes, table=True), Decoder(class_codes, table=False)
    assert np.array_equal(table.mhd(codes), scan.mhd(codes)) and np.array_equal(
        table.ed(codes), scan.ed(codes)
    )
    classes = table.ed(codes[:200])
    assert (classes != np.arange(200)).any() and (classes >= 0).all()  # there are collisions


def test_bits_that_no_class_code_uses():
    """A table leaves out the bits after the last one in use; codes that use them are decoded correctly."""
    class_codes = random_codes(30, 9, 0)
    class_codes = np.concatenate([class_codes, np.zeros((30, 3), np.uint8)], axis=1)
    codes = random_codes(500, 40, 1)
    codes[:30] = class_codes
    codes[30:60] = class_codes
    codes[30:60, 4] = 1
    table, scan = Decoder(class_codes, table=True), Decoder(class_codes, table=False)
    assert table.mhd(codes).tolist() == scan.mhd(codes).tolist() == slow_search(codes, class_codes, 1)[1]
    assert table.ed(codes).tolist() == scan.ed(codes).tolist() == slow_ed(codes, class_codes)
    assert (table.ed(codes[30:60]) == -1).all()
    zeros = Decoder(np.zeros((3, 2), np.uint8), table=True)
    assert zeros.mhd(codes[:5, :2]).tolist() == [[0]] * 5 and zeros.ed(
        np.zeros((1, 2), np.uint8)
    ).tolist() == [0]


@pytest.mark.parametrize("code_size, n", [(1, 1), (1, 3), (1, 4), (2, 1), (2, 3), (3, 1), (3, 2), (3, 70)])
def test_last_codes_are_looked_up_without_leaving_the_array(code_size, n):
    class_codes = random_codes(9, 8 * code_size, 0)
    whole = random_codes(n + 1, 8 * code_size, 1)
    found = Decoder(class_codes, table=True).mhd(whole[:n])
    assert found.tolist() == slow_search(whole[:n], class_codes, 1)[1]


def test_a_table_is_built_when_the_scans_have_taken_as_long():
    class_codes, codes = random_codes(64, 12, 0), random_codes(1000, 12, 1)
    decoder, expected = Decoder(class_codes), Decoder(class_codes, table=False).mhd(codes)
    built = []
    for _ in range(8):
        assert np.array_equal(decoder.mhd(codes), expected)
        built.append(decoder._table is not None)
    assert built == [False] * 4 + [True] * 4  # 64 pairs x 2^12 entries = 4.1 calls of 1,000 x 64 pairs


def test_long_codes_are_scanned_and_refuse_a_table():
    class_codes, codes = random_codes(5, 25, 0), random_codes(300, 25, 1)
    class_codes[0, 3] |= 128  # the 25th bit is in use
    assert decode_mhd(codes, class_codes).tolist() == slow_search(codes, class_codes, 1)[1]
    with pytest.raises(ValueError, match="class_codes: 25 bits are in use, but a table takes up to 24"):
        Decoder(class_codes, table=True)


@pytest.mark.parametrize("num_bits", [7, 20, 40])
def test_decode_functions_take_and_give_torch_and_numpy(num_bits):
    class_codes, codes = random_codes(20, num_bits, 0, 15), random_codes(400, num_bits, 1)
    codes[:20] = class_codes
    for as_kind, kind in ((torch.from_numpy, torch.Tensor), (np.asarray, np.ndarray)):
        for k in (1, 4):
            found = llc.decode_mhd(as_kind(codes), as_kind(class_codes), k)
            assert (
                isinstance(found, kind)
                and found.shape == (400, k)
                and found.tolist() == slow_search(codes, class_codes, k)[1]
            )
        found = llc.decode_ed(as_kind(codes), as_kind(class_codes))
        assert (
            isinstance(found, kind)
            and found.shape == (400,)
            and found.tolist() == slow_ed(codes, class_codes)
        )
        decoder = Decoder(as_kind(class_codes), table=num_bits <= 24)
        assert isinstance(decoder.mhd(as_kind(codes)), kind) and isinstance(decoder.ed(as_kind(codes)), kind)


def test_kept_tables_follow_the_class_codes():
    class_codes, codes = torch.from_numpy(random_codes(50, 8, 0)), torch.from_numpy(random_codes(3000, 8, 1))
    decoder = Decoder(class_codes, table=True)
    first = decode_mhd(codes, class_codes)  # 150,000 pairs: the table was built
    class_codes += 1
    second = decode_mhd(codes, class_codes)
    assert second.tolist() == slow_search(codes, class_codes, 1)[1] and not torch.equal(first, second)
    assert torch.equal(decoder.mhd(codes), first)


def test_no_codes_and_no_classes():
    class_codes = random_codes(5, 20, 0)
    for table in (True, False, None):
        decoder = Decoder(class_codes, table)
        assert decoder.mhd(class_codes[:0]).shape == (0, 1) and decoder.ed(class_codes[:0]).shape == (0,)
    for call in (Decoder, lambda c: decode_mhd(class_codes, c), lambda c: decode_ed(class_codes, c)):
        with pytest.raises(ValueError, match="class_codes: there are no classes"):
            call(class_codes[:0])


@pytest.mark.parametrize(
    "codes, message",
    [
        (np.zeros((4, 3)), "codes: expected packed codes uint8"),
        (np.zeros((4, 2), np.uint8), "codes have 2 bytes per code, class_codes 3"),
        (torch.zeros(4, 3, dtype=torch.uint8), "codes are a Tensor, class_codes a ndarray"),
        (torch.zeros(4, 3, dtype=torch.uint8, device="meta"), "codes: .*meta|codes are a"),
    ],
)
def test_codes_that_do_not_match_are_refused_by_name(codes, message):
    class_codes = random_codes(5, 20, 0)
    for call in (
        Decoder(class_codes).mhd,
        Decoder(class_codes).ed,
        lambda c: decode_mhd(c, class_codes),
        lambda c: decode_ed(c, class_codes),
    ):
        with pytest.raises(ValueError, match=message):
            call(codes)


@pytest.mark.parametrize("k", [0, 6, 1.5])
def test_numbers_of_classes_are_refused_by_name(k):
    with pytest.raises(ValueError, match="k: expected"):
        decode_mhd(random_codes(4, 20, 1), random_codes(5, 20, 0), k)
