"""Bit-level oracle of the number formats, in numpy's integers.

Rounding is to nearest, ties to even, and done on significands as integers, so that nothing here
depends on a cast of PyTorch or the processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class FloatFormat:
    """A binary float of at most 16 bits: sign, exponent, mantissa."""

    name: str
    exponent_bits: int
    mantissa_bits: int
    has_infinity: bool  # without one, only all bits set is NaN and the last exponent holds numbers

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def sign_code(self) -> int:
        """The code of minus zero."""
        return 1 << (self.bits - 1)

    @property
    def infinity_code(self) -> int:
        """The code above that of the largest finite value: infinity, or else NaN."""
        top = self.sign_code - 1  # all bits but the sign
        return top - 2**self.mantissa_bits + 1 if self.has_infinity else top

    @property
    def nan_code(self) -> int:
        """The quiet NaN: the first bit of the mantissa set; without infinity, all of them."""
        first_bit = 1 << (self.mantissa_bits - 1)
        return self.infinity_code | first_bit if self.has_infinity else self.infinity_code

    @property
    def largest(self) -> float:
        """The largest finite value."""
        return float(decode(self.infinity_code - 1, self))


E4M3 = FloatFormat("fp8_e4m3", 4, 3, has_infinity=False)  # E4M3FN: 448 at most
E5M2 = FloatFormat("fp8_e5m2", 5, 2, has_infinity=True)  # 57,344 at most
FP16 = FloatFormat("fp16", 5, 10, has_infinity=True)
BF16 = FloatFormat("bf16", 8, 7, has_infinity=True)


def decode(codes: ArrayLike, fmt: FloatFormat) -> NDArray[np.float32]:
    """The exact value of each code, in float32."""
    codes = np.asarray(codes, dtype=np.int64)
    magnitude = codes & (fmt.sign_code - 1)
    field = magnitude >> fmt.mantissa_bits
    mantissa = magnitude & ((1 << fmt.mantissa_bits) - 1)
    significand = np.where(field > 0, mantissa + (1 << fmt.mantissa_bits), mantissa)
    exponent = np.maximum(field, 1) - fmt.bias - fmt.mantissa_bits
    values = np.ldexp(significand.astype(np.float64), exponent)
    values = np.where(magnitude == fmt.infinity_code, np.inf, values)
    first_nan = fmt.infinity_code + (1 if fmt.has_infinity else 0)
    values = np.where(magnitude >= first_nan, np.nan, values)
    return np.where(codes & fmt.sign_code, -values, values).astype(np.float32)


def encode(
    values: ArrayLike, fmt: FloatFormat, *, saturate: bool = True
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The code of the nearest value of each float32, ties to even.

    What rounds beyond the largest finite value becomes that value, infinity too; without
    `saturate`, infinity, or NaN in a format that has no infinity.
    """
    bits = np.asarray(values, dtype=np.float32).view(np.uint32).astype(np.int64)
    field, mantissa = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    significand = np.where(field > 0, mantissa | 0x800000, mantissa)  # of 2 ** (exponent - 23)
    exponent = np.maximum(field, 1) - 127
    lowest = 1 - fmt.bias  # exponent of the subnormal numbers
    dropped = 23 - fmt.mantissa_bits + np.maximum(lowest - exponent, 0)
    rounded = _shift_to_even(significand, dropped)
    # A significand that reaches the next power of two carries into the exponent by itself.
    magnitude = (np.maximum(exponent - lowest, 0) << fmt.mantissa_bits) + rounded
    limit = fmt.infinity_code - 1 if saturate else fmt.infinity_code
    magnitude = np.minimum(np.where(field == 0xFF, limit, magnitude), limit)
    magnitude = np.where((field == 0xFF) & (mantissa != 0), fmt.nan_code, magnitude)
    codes = magnitude + np.where(bits >> 31, fmt.sign_code, 0)
    return codes.astype(np.uint8 if fmt.bits == 8 else np.uint16)


def quantise(values: ArrayLike, fmt: FloatFormat, *, saturate: bool = True) -> NDArray[np.float32]:
    """Each value as the format holds it."""
    return decode(encode(values, fmt, saturate=saturate), fmt)


def encode_integer(scaled: ArrayLike, bits: int) -> NDArray[np.int8]:
    """Symmetric integers of values already divided by their scale.

    Rounded to nearest, ties to even, and clamped: +-127 for 8 bits, +-7 for 4.
    """
    limit = 2 ** (bits - 1) - 1
    bounded = np.clip(np.asarray(scaled, dtype=np.float32), -limit, limit).astype(np.float64)
    below = np.floor(bounded)
    rest = bounded - below  # exact in float64
    up = (rest > 0.5) | ((rest == 0.5) & (below % 2 == 1))
    return (below + up).astype(np.int8)


def table(fmt: FloatFormat) -> NDArray[np.float32]:
    """The value of every code, in the order of the codes."""
    return decode(np.arange(2**fmt.bits), fmt)


def _shift_to_even(numbers: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """``numbers / 2 ** places``, rounded to nearest, ties to even."""
    places = np.minimum(places, 40)  # everything of 24 bits is far below one half there
    quotient = numbers >> places
    rest = numbers - (quotient << places)
    half = np.int64(1) << (places - 1)
    return quotient + ((rest > half) | ((rest == half) & (quotient % 2 == 1)))
