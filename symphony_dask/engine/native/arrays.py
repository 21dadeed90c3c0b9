"""Names the kinds of arrays that compiled code works on; numba itself goes by the arrays that it is given."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Bools: TypeAlias = npt.NDArray[np.bool_]
Int8s: TypeAlias = npt.NDArray[np.int8]
Int32s: TypeAlias = npt.NDArray[np.int32]
Int64s: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

#: Entries of a structured dtype, whose fields are attributes in compiled code.
Records: TypeAlias = "np.recarray[Any, np.dtype[Any]]"

#: One of them.
Record: TypeAlias = np.record
