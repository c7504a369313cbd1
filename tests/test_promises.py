"""What the documents say of the released model, its sizes and its prompts is what the code does."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from flashvideo.models.convert import RELEASED_LORA_ALPHA, TRANSFORMER_DROPPED, VAE_DROPPED
from flashvideo.models.recipe import empty_model
from flashvideo.models.shards import MAX_SHARD_BYTES
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.cache import CACHE_VARIABLE, cache_folder
from flashvideo.pipelines.sizes import SHORT_SIDES, enlarged_size, final_size, named_size, preview_size
from flashvideo.presets import (
    FLASHVIDEO,
    NANO,
    RELEASED_FILES,
    RELEASED_REPOSITORY,
    RELEASED_STAGE1_LORA_RANK,
    RELEASED_STAGE1_TRANSFORMER,
    RELEASED_STAGE2_TRANSFORMER,
    TEXT_ENCODER_REPOSITORY,
)

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHECKPOINTS = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
MULTIPLE = 16  # of the released VAE and patches


def section(title: str) -> str:
    """The text of a section of README, its lines joined."""
    (text,) = re.findall(rf"^## {title}\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)
    return " ".join(text.split())


@pytest.fixture(scope="module")
def oracles() -> ModuleType:
    spec = importlib.util.spec_from_file_location("oracles", ROOT / "tests" / "parity" / "oracles.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_lists_the_names_of_sizes():
    names, _, _ = section("Sizes").partition(": pixels of the shorter side")
    assert set(re.findall(r"\b\d+[pk]\b", names)) == SHORT_SIDES.keys()


def test_the_sizes_that_readme_tells_are_those_of_the_released_model():
    text = section("Sizes")
    told = re.search(r"1080p from a preview of (\d+)x(\d+) at (\d+)x(\d+), of which (\d+) rows go", text)
    final = named_size("1080p")
    preview = preview_size(*final, preset=FLASHVIDEO, multiple=MULTIPLE)
    enlarged = enlarged_size(preview, final, preset=FLASHVIDEO, multiple=MULTIPLE)
    assert told is not None
    assert [int(n) for n in told.groups()] == [*preview[::-1], *enlarged[::-1], enlarged[0] - final[0]]
    own = FLASHVIDEO.stage1.height, FLASHVIDEO.stage1.width
    assert f"{own[1]}x{own[0]} to {'x'.join(map(str, final_size(*own, preset=FLASHVIDEO)[::-1]))}" in text


def test_what_readme_says_of_prompts_is_in_the_presets():
    text = section("Prompts")
    assert f"{FLASHVIDEO.stage2.max_text_tokens} tokens, `{NANO.name}` {NANO.stage2.max_text_tokens};" in text
    assert f'reads "{FLASHVIDEO.stage2.prompt_prefix}" before' in text


@pytest.mark.parametrize("patterns", [TRANSFORMER_DROPPED, VAE_DROPPED])
def test_every_reason_to_leave_a_key_out_is_told(patterns):
    told = re.findall(r"^\| `([\w.*]+)`.*\| (.+) \|$", CHECKPOINTS, re.MULTILINE)
    for pattern, reason in patterns.items():
        keys = [key.replace("*", "x") for key, told_reason in told if told_reason == reason]
        assert any(re.fullmatch(pattern, key) for key in keys), pattern


def test_the_table_of_parity_has_the_kinds_and_tolerances_of_the_tests(oracles):
    _, _, table = CHECKPOINTS.partition("| kind | largest difference | tolerance |\n| --- | --- | --- |\n")
    rows = re.findall(r"^\| ([^|]+) \| ([\d.e-]+) \| ([\d.e-]+) \|$", table, re.MULTILINE)
    assert {kind: float(tolerance) for kind, _, tolerance in rows} == oracles.TOLERANCES
    assert all(float(difference) <= float(tolerance) for _, difference, tolerance in rows)


def test_where_weights_come_from_and_go_to_is_told(monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    for name in (*RELEASED_FILES, f"${CACHE_VARIABLE}", f"~/{cache_folder().relative_to(Path.home())}"):
        assert f"`{name}`" in CHECKPOINTS
    for repository in (RELEASED_REPOSITORY, TEXT_ENCODER_REPOSITORY):
        assert f"[{repository}](https://huggingface.co/{repository})" in CHECKPOINTS


def test_the_numbers_of_the_conversion_are_the_codes():
    assert f"r = {RELEASED_STAGE1_LORA_RANK} and alpha = {RELEASED_LORA_ALPHA:g}" in CHECKPOINTS
    assert f"shards of at most {MAX_SHARD_BYTES / 1e9:g} GB" in CHECKPOINTS


@pytest.mark.parametrize(
    ("config", "told"),
    [(RELEASED_STAGE1_TRANSFORMER, "5.6 without the LoRA"), (RELEASED_STAGE2_TRANSFORMER, "1.7 billion")],
)
def test_the_numbers_of_parameters_are_those_of_the_models(config, told):
    model = empty_model(FlashVideoTransformer3DModel, config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert told.startswith(f"{count / 1e9:.1f} ")
    assert told in CHECKPOINTS
