"""Names what numba passes to functions that write LLVM code themselves (``numba.extending.intrinsic``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from llvmlite import ir
from numba.core.base import BaseContext
from numba.core.typing.context import BaseContext as TypingContext
from numba.core.typing.templates import Signature

Target: TypeAlias = BaseContext
Typing: TypeAlias = TypingContext
Values: TypeAlias = Sequence[ir.Value]

#: Writes the code of a call: of these arguments, in this place.
Emit: TypeAlias = Callable[[Target, ir.IRBuilder, Signature, Values], ir.Value]

__all__ = ["Emit", "Signature", "Target", "Typing", "Values"]
