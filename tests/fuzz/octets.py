"""Files damaged byte by byte: flips, cuts, splices of two files, bytes put in and taken out."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

INSERTED = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"\r", b'"', b"\\", b"{",
    b"}", b"[", b"]",
    b",", b":", b"-", b".", b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"[" * 5000, b"null", b"true",
    b"#", b"=",
    b"\x80\x04\x95", b"cos\nsystem\n", b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\0" * 64, b"../",
    b"A" * 1000,
)  # fmt: skip
WAYS = ("flip", "flip", "byte", "cut", "behead", "insert", "splice", "remove", "repeat")


@st.composite
def damaged_bytes(draw: st.DrawFn, files: Sequence[bytes]) -> bytes:
    """One of the files, damaged one to four times."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 4))):
        _damage(draw, data, files)
    return bytes(data)


def _damage(draw: st.DrawFn, data: bytearray, files: Sequence[bytes]) -> None:
    way, at = draw(st.sampled_from(WAYS)), draw(st.integers(0, len(data)))
    size = draw(st.sampled_from((1, 2, 4, 8, 50, 1000)))
    inside = at < len(data)
    if way == "flip" and inside:
        data[at] ^= 1 << draw(st.integers(0, 7))
    elif way == "byte" and inside:
        data[at] = draw(st.integers(0, 255))
    elif way == "cut":
        del data[at:]
    elif way == "behead":
        del data[:size]
    elif way == "remove":
        del data[at : at + size]
    elif way == "repeat":
        data[at:at] = data[at : at + size]
    elif way == "splice":
        other = draw(st.sampled_from(files))
        data[at:] = other[draw(st.integers(0, len(other))) :]
    else:
        data[at:at] = draw(st.sampled_from(INSERTED))
