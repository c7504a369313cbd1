"""T5 text encoders: from a local folder of a whole T5, or of a CogVideoX model, to the encoder alone."""

from dataclasses import dataclass
from pathlib import Path

from transformers import T5Config, T5EncoderModel

from flashvideo.models.checkpoint import Checkpoint, read_json, weight_files
from flashvideo.models.convert import Plan
from flashvideo.models.recipe import Recipe, State, build_specs, empty_model
from flashvideo.models.strictness import misfits, raise_if, split_dropped

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SHARED, _TIED = "shared.weight", "encoder.embed_tokens.weight"
_DROPPED = {
    r"decoder\..+": "T5's decoder, which reads no prompt",
    r"lm_head\..+": "the decoder's output layer",
}
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json")
_TOKENIZER_READ = (*_TOKENIZER_FILES, "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True, kw_only=True)
class TextEncoderFiles:
    """Where a text encoder lies.

    Attributes:
        model: Folder with T5's config and weights.
        tokenizer: Folder of the tokenizer.
    """

    model: Path
    tokenizer: Path

    @classmethod
    def find(cls, folder: str | Path) -> "TextEncoderFiles":
        """Find the parts in a CogVideoX folder (text_encoder/ and tokenizer/), or in a T5 folder.

        Raises:
            ValueError: If a part is missing.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise ValueError(f"the text encoder must be a local folder, got {folder}, which is none")
        inside = (folder / "text_encoder").is_dir()
        model = folder / "text_encoder" if inside else folder
        tokenizer = folder / "tokenizer" if inside else folder
        if not (model / "config.json").is_file():
            raise ValueError(
                f"{folder} holds no text encoder, expected text_encoder/ and tokenizer/ of a CogVideoX model, or "
                "config.json, weights and tokenizer of a T5"
            )
        if not any((tokenizer / name).is_file() for name in _TOKENIZER_FILES):
            raise ValueError(f"{tokenizer} holds no tokenizer, expected one of {', '.join(_TOKENIZER_FILES)}")
        return cls(model=model, tokenizer=tokenizer)

    @property
    def read(self) -> tuple[Path, ...]:
        """The files that a conversion reads, in a fixed order.

        Raises:
            ValueError: If there are no weights.
        """
        others = [self.model / "config.json", *(self.tokenizer / name for name in _TOKENIZER_READ)]
        return (*text_encoder_weights(self.model), *(path for path in others if path.is_file()))


def load_text_config(folder: Path) -> T5Config:
    """Read the config of a T5.

    Raises:
        ValueError: If it is that of another model, or cannot be read.
    """
    path = folder / "config.json"
    kind = read_json(path).get("model_type")
    if kind != "t5":
        raise ValueError(f"{path} describes a model of type {kind!r}, expected 't5'")
    config = T5Config.from_pretrained(folder)
    config.architectures = [T5EncoderModel.__name__]
    return config


def text_encoder_weights(folder: Path) -> tuple[Path, ...]:
    """Find the files with the weights of a T5, safetensors first.

    Raises:
        ValueError: If there are none.
    """
    return weight_files(folder, *_WEIGHTS)


def open_text_encoder(folder: Path) -> Checkpoint:
    """Open the weights of a T5, safetensors first.

    Raises:
        ValueError: If there are none, or they cannot be read.
    """
    return Checkpoint(*text_encoder_weights(folder))


def plan_text_encoder(specs: State, config: T5Config) -> Plan:
    """Plan the encoder alone.

    Args:
        specs: The T5's weights, of which only names and shapes are read.
        config: Its config.

    Returns:
        The plan.

    Raises:
        ValueError: If a weight is missing, unknown or mis-shaped.
    """
    patterns = dict(_DROPPED)
    if _SHARED in specs:
        patterns[_TIED.replace(".", r"\.")] = f"the same as {_SHARED}"
    kept, dropped = split_dropped(specs, patterns)
    weights = {_SHARED if name == _TIED else name: Recipe.copy(name) for name in kept}
    expected = dict(empty_model(T5EncoderModel, {"config": config}).state_dict())
    expected.pop(_TIED, None)
    raise_if(misfits(build_specs(weights, specs), expected), "the text encoder is not a whole T5EncoderModel")
    return Plan(weights=weights, dropped=dropped)
