"""Makes the bundled Parquet from the published CSV: ``python -m workloads.data.build CSV``."""

from __future__ import annotations

import sys
from pathlib import Path

from workloads.data import AZURE_LLM_FILE
from workloads.traces.importers import azure_llm


def build(csv: Path, folder: Path) -> Path:
    """Writes the trace at ``csv`` into ``folder`` and returns the file; raises ``BadInput`` at the first bad row."""
    target = folder / AZURE_LLM_FILE
    columns = ["arrival_ns", "context_tokens", "generated_tokens"]
    azure_llm(csv, strict=True).frame.select(columns).write_parquet(target, compression="zstd", compression_level=19)
    return target


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m workloads.data.build CSV")
    print(build(Path(sys.argv[1]), Path(__file__).parent))
