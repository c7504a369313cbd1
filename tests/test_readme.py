"""README's commands are CI's commands, and what the documents name exists."""

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI_SCRIPT = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
DOCUMENTS = sorted(p for where in ("*.md", "docs/**/*.md", "recipes/**/*.md") for p in ROOT.glob(where))
CI_BLOCKS = dict(re.findall(r"<!-- ci: (\w+) -->\n```sh\n(.*?)\n```", README, flags=re.DOTALL))


def code_blocks(language: str) -> list[tuple[str, str]]:
    """(document's name, text of the block) of every fenced block in that language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
    return [
        (str(path.relative_to(ROOT)), block)
        for path in DOCUMENTS
        for block in pattern.findall(path.read_text(encoding="utf-8"))
    ]


def flashvideo_commands() -> list[str]:
    """Every call of the `flashvideo` command in the documents, without what stands before it."""
    joined = (
        (document, line)
        for document, block in code_blocks("sh")
        for line in block.replace("\\\n", " ").splitlines()
    )
    return [
        f"{document}: {match.group(1)}"
        for document, line in joined
        for match in re.finditer(r"(?:^|[ /])(flashvideo [a-z][^#&|;]*)", line)
    ]


def test_readme_marks_two_blocks_for_ci():
    assert list(CI_BLOCKS) == ["generate", "test"]


def test_ci_runs_the_blocks_of_readme_and_in_readmes_order():
    assert re.findall(r"\$\(readme_block (\w+)\)", CI_SCRIPT) == list(CI_BLOCKS)


@pytest.mark.parametrize("name", ["generate", "test"])
def test_a_newcomers_command_makes_its_environment_with_the_pinned_versions(name):
    make, install, run = CI_BLOCKS[name].split(" && ")
    assert make == "python3 -m venv .venv"
    assert install.startswith(".venv/bin/pip install -c constraints.txt ")
    assert run.startswith(".venv/bin/")


@pytest.mark.parametrize("command", flashvideo_commands())
def test_the_command_line_understands_what_the_documents_call(command):
    from flashvideo.cli import parse_arguments

    assert parse_arguments(shlex.split(command.partition(": ")[2])[1:])


@pytest.mark.parametrize(("document", "block"), code_blocks("python"))
def test_python_in_the_documents_is_python_and_imports_what_exists(document, block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = __import__(node.module, fromlist=["_"])
            for alias in node.names:
                assert hasattr(module, alias.name), f"{document}: {node.module} has no {alias.name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_a_document_names_exist(document):
    text = document.read_text(encoding="utf-8")
    linked = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    named = re.findall(r"`((?:src|docs|tests|scripts|recipes|examples|\.ci)/[\w./-]+)`", text)
    missing = [name for name in linked if not (document.parent / name).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"{document.name} names {missing}"


def test_the_public_names_in_readme_are_public():
    import flashvideo

    used = {
        alias.name
        for _, block in code_blocks("python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module == "flashvideo"
        for alias in node.names
    }
    assert used
    assert used <= set(flashvideo.__all__)
