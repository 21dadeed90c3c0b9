"""``symphony profile``, of models in files here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.command_line import printed, refusal


def test_a_model_that_is_not_there_is_named() -> None:
    assert "model 'nowhere:x' cannot be found" in refusal("profile", "nowhere:x", "--example", "float32:3")


def test_a_profile_is_measured_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text("def double(batch):\n    return batch * 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = printed("profile", "my_models:double", "--example", "float32:3,4", "--max-batch", "4", "--json")
    assert [size for size, _ in found["table"]] == [1, 2, 4]
    assert found["label"] == "measured"


def test_several_inputs_are_profiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_sums.py").write_text(
        "def total(batch):\n    return batch['x'] + batch['y']\n\n\n"
        "def columns(samples):\n    return {name: sum(s[name].sum() for s in samples) for name in 'xy'}\n\n\n"
        "def each(samples):\n    return [x.sum() + y for x, y in samples]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    given = ["--max-batch", "1", "--json"]
    named = ["--example", "x=float32:3", "--example", "y=int64"]
    assert refusal("profile", "my_sums:each", *named, "--example", "int64", *given[:2]).startswith(
        "Error: examples 'x="
    )
    assert len(printed("profile", "my_sums:each", "--example", "float32:3", "--example", "int64", *given)["table"]) == 1
    assert "returned one" in refusal("profile", "my_sums:total", *named, "--collate", "my_sums:columns", *given[:2])
    assert "collate 'my_sums:nothing' cannot be found" in refusal(
        "profile", "my_sums:total", *named, "--collate", "my_sums:nothing"
    )
