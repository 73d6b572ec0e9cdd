"""What the codec refuses. Every illegal encoding has its own class, so that evidence can name the broken rule."""

from __future__ import annotations

from btrain.errors import BtrainError


class KernelUsageError(BtrainError, ValueError):
    """A kernel was called with a shape, dtype, device or option that it does not take; our caller's mistake."""

    exit_code = 2


class BackendUnavailable(BtrainError):
    """The backend that was asked for by name cannot run here; the message says why."""


class NotEncodable(BtrainError):
    """A block holds NaN, Inf or a magnitude of 2^127 or more, which the format cannot carry."""

    def __init__(self, block: int) -> None:
        super().__init__(
            f"block {block} holds NaN, Inf or a magnitude of 2^127 or more: it cannot be encoded "
            f"(elements {block * 1024} to {block * 1024 + 1023} of the flat vector)"
        )
        self.block = block


class IllegalEncoding(BtrainError):
    """Bytes that no honest encoder of `i8-absmax-1024-v1` produces. `rule` names what is broken, `block` where."""

    rule = "illegal encoding"

    def __init__(self, detail: str = "", block: int | None = None) -> None:
        place = "" if block is None else f"block {block}: "
        super().__init__(f"{place}{self.rule}{f' ({detail})' if detail else ''}")
        self.block = block


class WrongLength(IllegalEncoding):
    rule = "the encoding has another length than its number of elements demands"


class CodeMinus128(IllegalEncoding):
    rule = "a code is -128"


class NonFiniteScale(IllegalEncoding):
    rule = "the scale is not finite"


class NegativeScale(IllegalEncoding):
    rule = "the scale is negative"


class NegativeZeroScale(IllegalEncoding):
    rule = "the scale is -0.0"


class SubnormalScale(IllegalEncoding):
    rule = "the scale is subnormal"


class ScaleTooLarge(IllegalEncoding):
    rule = "the scale is above 2^127/127"


class NonzeroCodesUnderZeroScale(IllegalEncoding):
    rule = "the scale is 0 but a code is not"


class BlockWithoutExtreme(IllegalEncoding):
    rule = "the scale is not 0 but no code has magnitude 127"


class NonzeroPadding(IllegalEncoding):
    rule = "a code behind the last element is not 0"
