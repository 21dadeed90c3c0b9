"""The files that a project is kept by: forms, workflows, citation, changelog, version."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import symphony_dask

ROOT = Path(__file__).parents[2]
PACKAGES = ("symphony_dask", "workloads", "autoscale", "infra")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
SCRIPTS = sorted(p for p in ROOT.glob(".ci/*") if p.is_file()) + sorted(ROOT.glob("infra/*.sh"))
FORMS = sorted(p for p in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def name(path: Path) -> str:
    return path.name


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]


def commands(workflow: Path) -> list[str]:
    return [line for step in steps(workflow) for line in step.get("run", "").splitlines()]


# Workflows


def test_the_workflows_are_those_that_the_contributing_page_tells_of() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "docs", "nightly", "release"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_each_job_of_a_workflow_has_a_limit_and_steps_that_use_or_run(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert job["timeout-minutes"] <= 120
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=name)
def test_paths_and_modules_that_workflows_name_exist(path: Path) -> None:
    for line in commands(path):
        for named in re.findall(r"(?:^|\s)((?:tests|\.ci)/?[\w/]*)", line):
            assert (ROOT / named).exists(), line
        for module in re.findall(r"python -m (tests[\w.]*)", line):
            assert (ROOT / module.replace(".", "/") / "__main__.py").exists(), line


def test_each_change_is_tested_by_the_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    (command,) = (line for line in commands(ROOT / ".github/workflows/ci.yml") if ".venv/bin/pytest" in line)
    assert f"```bash\n{command}\n```" in readme


def test_each_python_that_is_declared_is_tested() -> None:
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == declared
    assert jobs["dask"]["strategy"]["matrix"]["dask"] == ["oldest", "newest"]


def test_a_release_is_published_without_a_token() -> None:
    publish = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text()


def test_the_version_has_one_source_which_the_release_reads() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "symphony_dask.__version__"}
    (line,) = (line for line in commands(ROOT / ".github/workflows/release.yml") if "__version__" in line)
    sed = re.search(r"\$\((sed .*)\)", line)
    assert sed is not None
    shown = subprocess.run(shlex.split(sed[1]), cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == symphony_dask.__version__


# Forms


@pytest.mark.parametrize("path", FORMS, ids=name)
def test_each_field_of_a_form_has_a_label_and_an_id_of_its_own(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"]
    assert form["description"].endswith(".")
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["attributes"]["label"] for field in fields)


def test_the_citation_has_what_the_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == PROJECT["project"]["license"]
    assert "version" not in citation  # one source


def test_hooks_before_a_commit_are_the_checks_of_the_continuous_build() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    lint = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["lint"]["steps"]
    checks = {step["run"].split()[0] for step in lint if "run" in step} - {"pip"}
    assert {hook["entry"].split()[0] for hook in repo["hooks"]} == checks == {"ruff", "mypy", "codespell"}


# Text


def test_the_changelog_is_in_the_form_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.M)[0] == "[Unreleased]"
    kinds = re.findall(r"^### (.*)$", text.partition("\n## ")[2].partition("\n## ")[0], re.M)
    order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    assert kinds == [kind for kind in order if kind in kinds]


def test_no_entry_of_the_changelog_is_there_twice() -> None:
    entries = re.findall(r"^\* (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert len(entries) == len(set(entries))


def test_words_are_spelled_as_in_a_dictionary() -> None:
    codespell = shutil.which("codespell") or pytest.skip("codespell is not installed: extra test")
    done = subprocess.run([codespell], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_that_it_has_types_and_ships_the_mark(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"][package]


MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_each_module_begins_with_what_it_does() -> None:
    """As in "Queues requests that arrive while no GPU is up."; a command's file may have its name before."""
    wrong = []
    for path in MODULES:
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        sentence = re.match(r"(?:``symphony[^`]*``: )?([a-zA-Z]+)s\b.*?[.?:](?:\s|$)", text, re.S)
        if sentence is None:
            wrong.append(f"{path.relative_to(ROOT)}: {text[:60]!r}")
    assert wrong == []


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_what_a_script_does_as_it_ends_leaves_its_exit_status_alone(path: Path) -> None:
    """``set -e`` holds in a trap, too: a cleanup that fails turns a run that passed into one that failed."""
    for line in re.findall(r"^trap .* EXIT$", path.read_text(), re.MULTILINE):
        for status in (0, 1):
            script = f"set -euo pipefail; work=$(mktemp -d); {line}; exit {status}"
            assert subprocess.run(["bash", "-c", script]).returncode == status, line
