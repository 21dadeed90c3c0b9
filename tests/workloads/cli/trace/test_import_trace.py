"""``symphony trace import`` and ``info``."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.command_line import printed, refusal


def test_a_trace_is_imported_and_described(tmp_path: Path) -> None:
    source = tmp_path / "azure.csv"
    source.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.0000000,10,1\n"
        "2023-11-16 18:17:04.5000000,20,2\n"
        "yesterday,20,2\n"
        "2023-11-16 18:17:05.0000000,30,3\n"
    )
    target = str(tmp_path / "trace")
    found = printed("trace", "import", "azure-llm", str(source), target, "--json")
    assert found == {"requests": 3, "span_s": 2.0, "models": 1, "mean_hz": 1.5, "peak_hz": 1.0, "bad_rows": 1}
    assert printed("trace", "info", target, "--json") == found
    assert "--strict" not in refusal("trace", "import", "azure-llm", str(source), str(tmp_path / "other"), "--strict")
