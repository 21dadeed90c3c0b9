"""Holds real traces that ship with the package, each with its licence beside it."""

from __future__ import annotations

import io
from importlib.resources import files

import polars as pl

AZURE_LLM_FILE = "azure_llm_2023_code.parquet"


def bundled_azure_llm() -> pl.DataFrame:
    """The 2023 Azure LLM code trace (8,819 requests in 57 minutes), as ``importers.azure_llm`` gives it.

    Columns model ("azure-llm"), arrival_ns (int64, from the first request), bytes (0), context_tokens,
    generated_tokens. CC-BY-4.0, Microsoft; see LICENSE-azure-llm.md beside this file.
    """
    stored = pl.read_parquet(io.BytesIO((files(__name__) / AZURE_LLM_FILE).read_bytes()))
    return stored.select(
        pl.lit("azure-llm").alias("model"),
        "arrival_ns",
        pl.lit(0, dtype=pl.Int64).alias("bytes"),
        "context_tokens",
        "generated_tokens",
    )
