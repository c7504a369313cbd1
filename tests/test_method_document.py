"""docs/method.md sends readers to functions; each of them is where it says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "flashvideo"
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
REFERENCES = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", METHOD)))


def definitions(path: Path) -> set[str]:
    """Names that the file defines at its top, and `Class.name` for what its classes define."""

    def names(body: list[ast.stmt], prefix: str) -> set[str]:
        found = set()
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                found |= names(node.body, f"{prefix}{node.name}.")
            if isinstance(node, ast.Assign):
                found |= {prefix + target.id for target in node.targets if isinstance(target, ast.Name)}
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(prefix + node.target.id)
        return found

    return names(ast.parse(path.read_text(encoding="utf-8")).body, "")


@pytest.mark.parametrize(("file", "name"), REFERENCES)
def test_the_function_is_in_the_file(file, name):
    assert name in definitions(SOURCE / file)


@pytest.mark.parametrize("file", ["flow.py", "degradations/latent.py"])
def test_every_public_function_of_the_mathematics_is_in_the_document(file):
    public = {name for name in definitions(SOURCE / file) if name.islower() and name[0] != "_"}
    named = {name for where, name in REFERENCES if where == file}
    assert public <= named, f"docs/method.md does not mention {public - named} of {file}"
