"""What the README and the documents tell to write and to type works as it stands there."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import pytest
from click.testing import CliRunner

from symphony_dask.cli.main import symphony
from symphony_dask.client import declarations
from symphony_dask.client.serving import Serving
from tests.helpers import models
from tests.helpers.cluster import Cluster
from tests.helpers.gateway_process import GatewayProcess

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "infra/README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """A block of code in a page, which begins at ``line``."""

    page: str
    line: int
    language: str
    text: str


def blocks(page: Path, language: str = "") -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page.name, text[: m.start()].count("\n") + 1, m[1], m[2])
        for m in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    ]
    return [block for block in found if language in ("", block.language)]


def python_blocks(page: str) -> list[Block]:
    return blocks(ROOT / page, "python")


def is_whole(block: Block) -> bool:
    """Whether a block is a program, which starts its own cluster."""
    return "__main__" in block.text


def run_in(block: Block, names: dict[str, Any]) -> None:
    exec(compile("\n" * block.line + block.text, block.page, "exec"), names)


def unhurried(block: Block) -> Block:
    """With SLOs that a busy machine keeps, too."""
    return block._replace(text=block.text.replace('"500ms"', '"10s"').replace('"1s"', '"20s"'))


# Python


def test_the_first_program_of_the_readme_runs_without_torch(tmp_path: Path) -> None:
    (program,) = filter(is_whole, python_blocks("README.md"))
    (tmp_path / "first.py").write_text(program.text)
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No module named torch', name='torch')\n")
    done = subprocess.run(
        [sys.executable, "first.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    (printed,) = (block.text.splitlines() for block in blocks(ROOT / "README.md", "text") if "Model" in block.text)
    assert shown[-2] == printed[0] == "<Model 'net': SLO 500ms> [42. 48. 54.]"  # (0, 1, 2, 3) times the weights
    # A busy machine answers some of them late; the README has those of an idle one.
    assert re.sub(r"\d+", "N", shown[-1]) == re.sub(r"\d+", "N", printed[1])
    for line in (shown[-1], printed[1]):
        assert sum(int(n) for n in re.findall(r": (\d+)", line)) == 100


@pytest.fixture
def first(serving: Serving) -> Iterator[dict[str, Any]]:
    """The names that the README's first program has made in its last block."""
    (program,) = filter(is_whole, python_blocks("README.md"))
    names: dict[str, Any] = {"__name__": "first", "client": serving.client, "serving": serving}
    run_in(program, names)
    last = program.text.partition("serving:\n")[2]
    before = {*serving.status()["models"], *serving.pipelines()}
    run_in(unhurried(program._replace(text="if True:\n" + last.replace("        ", "    "))), names)
    yield names
    for name in {*serving.pipelines(), *serving.status()["models"]} - before:
        serving.undeploy(name, force=True)


def test_the_other_blocks_of_readme_and_guide_run_after_it(
    cluster: Cluster, serving: Serving, first: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    others = [b for page in ("docs/guide.md", "README.md") for b in python_blocks(page) if not is_whole(b)]
    assert len(others) == 6
    adapted: dict[str, Any] = {}  # a cluster that does adapt is in tests/autoscale/clusters/test_adaptive.py
    first["cluster"] = SimpleNamespace(adapt=lambda **options: adapted.update(options))
    for block in others:
        with serving.client.as_current():
            run_in(unhurried(block._replace(text=block.text.replace("tcp://SCHEDULER:8786", cluster.address))), first)
        serving.wait_ready("net", gpus=2)  # a busy machine's workers may have stood still while torch was imported
    assert "(32,)" in capsys.readouterr().out
    assert adapted["maximum"] == 8


def test_the_predict_call_of_the_guide_fits_the_first_program(cluster: Cluster, first: dict[str, Any]) -> None:
    pytest.importorskip("uvicorn")
    (line,) = (
        line for b in blocks(ROOT / "docs/guide.md", "bash") for line in b.text.splitlines() if ":predict" in line
    )
    curl = shlex.split(line)
    path, body = curl[3].removeprefix("localhost:8000"), curl[5].encode()
    with GatewayProcess(cluster.address) as gateway:
        answer = gateway.post(path, body, {"Content-Type": "application/json"})
        assert answer.json == {"predictions": [[42.0, 48.0, 54.0]]}
        assert gateway.get("/v2/models/net").json["inputs"][0]["shape"] == [-1, 4]


def test_the_collate_function_of_the_operations_page_runs(serving: Serving) -> None:
    import numpy as np

    pytest.importorskip("torch")
    (block,) = (block for block in python_blocks("docs/operations.md") if "collate" in block.text)
    sample = models.tokens(1, 2)
    names = {"np": np, "serving": serving, "encoder": models.encoder()}
    names |= {"ids": sample["input_ids"], "mask": sample["attention_mask"]}
    try:
        run_in(block, names)
        answers = [f.result() for f in names["model"].map([models.tokens(*range(n)) for n in (1, 3, 2)])]
        assert [float(answer["pooled"][0]) for answer in answers] == [0, 3, 1]
    finally:
        serving.undeploy("encoder")


@pytest.mark.parametrize(
    "block", [b for page in PAGES for b in blocks(page, "python")], ids=lambda block: f"{block.page}:{block.line}"
)
def test_python_blocks_are_python_and_what_they_import_is_there(block: Block) -> None:
    compile(block.text, block.page, "exec")
    for line in re.findall(r"^(?:import|from) .*$", block.text, re.M):
        try:
            exec(line, {})
        except ModuleNotFoundError as error:
            pytest.skip(f"{error.name} is not installed")


# Commands


def commands(name: str) -> list[Any]:
    """Lines of shell blocks that begin with ``name``."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language in ("bash", "sh"):
                text = block.text.replace("\\\n", " ")
                lines = [line.strip() for line in text.splitlines() if line.strip().startswith(name + " ")]
                found += [pytest.param(line, id=f"{page.name}: {line[:50]}") for line in lines]
    return found


def words(line: str) -> list[str]:
    return shlex.split(line.partition(" #")[0])


@pytest.mark.parametrize("line", commands("symphony") + commands("dask symphony"))
def test_commands_of_the_documents_have_these_arguments_and_options(line: str) -> None:
    command: click.Command = symphony
    context = command.make_context("symphony", words(line.removeprefix("dask "))[1:])
    while isinstance(command, click.Group):
        name, found, given = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None, name
        command = found
        try:
            context = command.make_context(name, given, parent=context)
        except click.BadParameter as error:
            if "does not exist" not in str(error):  # the reader's file
                raise
            return


def test_the_page_of_commands_has_the_groups_of_the_help() -> None:
    shown = CliRunner().invoke(symphony, ["--help"]).output
    groups = [line[:-1] for line in re.findall(r"^[A-Z].*:$", shown, re.M) if line != "Options:"]
    page = (ROOT / "docs/commands.md").read_text()
    assert re.findall(r"^## (.*)$", page, re.M) == groups
    for group, body in zip(groups, page.split("\n## ")[1:], strict=True):
        listed = shown.partition(f"{group}:\n")[2].partition("\n\n")[0]
        commands = set(re.findall(r"^  (\w+)", listed, re.M))
        assert set(re.findall(r"^symphony (\w+)", body, re.M)) <= commands, group


def test_examples_of_the_guide_are_those_that_there_are() -> None:
    text = (ROOT / "docs/guide.md").read_text()
    assert set(re.findall(r"docs/examples/(\w+\.py)", text)) == {p.name for p in (ROOT / "docs/examples").glob("*.py")}
    tested = (ROOT / "tests/project/test_examples.py").read_text()
    assert set(re.findall(r'run\("(\w+\.py)"', tested)) == {p.name for p in (ROOT / "docs/examples").glob("*.py")}


def test_extras_that_are_named_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for named in re.findall(r"'?\.\[([\w,]+)\]'?|symphony-dask\[([\w,]+)\]", text):
            assert set(",".join(filter(None, named)).split(",")) <= extras
        named = re.findall(r"[Ee]xtras? `(\w+)`|`(\w+)` extra|\(extra (\w+)[,)]", text)
        assert {name for group in named for name in group if name} <= extras


def test_the_declaration_file_of_the_operations_page_can_be_read() -> None:
    (block,) = (block for block in blocks(ROOT / "docs/operations.md", "yaml"))
    assert list(declarations.read(block.text)) == ["resnet", "bert"]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


# Links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


NAMED_PATH = re.compile(r"`((?:symphony_dask|workloads|autoscale|infra|tests|docs|\.ci|\.github)(?:/[\w.-]+)+)/?`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_folders_that_pages_name_exist(page: Path) -> None:
    for path in NAMED_PATH.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path


def test_the_glossary_explains_each_of_at_most_40_terms_once() -> None:
    text = (ROOT / "docs/glossary.md").read_text()
    terms = re.findall(r"^\*\*(.+?)\*\*", text, re.M)
    assert len(terms) == len(set(terms)) <= 40
    for entry in re.findall(r"^\*\*.+?\*\*(.*?)(?=^$)", text + "\n", re.M | re.S):
        assert 1 <= len(re.findall(r"\.(?:\s|$)", entry)) <= 3, entry


def test_the_picture_of_the_readme_is_what_its_program_draws() -> None:
    names = runpy.run_path(str(ROOT / "docs/img/eager_and_deferred.py"))
    assert names["picture"]() == (ROOT / "docs/img/eager-and-deferred.svg").read_text()


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
