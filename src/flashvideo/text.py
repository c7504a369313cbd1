"""Prompts to text embeddings (Stage I and Stage II, step I1 of inference).

Both stages read the same T5 encoder. Three facts of the released models are kept here: prompts are padded to a
fixed number of tokens, the encoder gets no attention mask (so the padding is attended to), and "no text" is an
embedding of zeros rather than the encoding of an empty string.

Shapes: B prompts, L = max_text_tokens, D = width of the text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN = "<pad>", "</s>", "<unk>"

_WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")


def encode_prompts(
    prompts: str | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: PreTrainedModel,
    *,
    max_text_tokens: int,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Encodes prompts, each padded or cut to exactly `max_text_tokens` tokens.

    No attention mask is passed to the encoder: the released models were trained with the padding attended to.
    Gradients flow when the caller has them enabled.

    Args:
        prompts: One prompt or B prompts.
        tokenizer: Tokenizer with a padding token.
        text_encoder: Encoder whose first output is the last hidden state, such as `T5EncoderModel`.
        max_text_tokens: L, end-of-sentence token included.
        device: Where to put the token ids; the encoder's own device when None. Offloaded encoders need it.

    Returns:
        Embeddings (B, L, D) in the encoder's dtype.

    Raises:
        ValueError: If there is no prompt, a prompt is not a string, or `max_text_tokens` is not positive.
    """
    batch = [prompts] if isinstance(prompts, str) else list(prompts)
    if not batch or not all(isinstance(prompt, str) for prompt in batch):
        raise ValueError(f"prompts must be a string or a non-empty list of strings, got {prompts!r}")
    if max_text_tokens < 1:
        raise ValueError(f"max_text_tokens must be at least 1, got {max_text_tokens}")
    tokens = tokenizer(
        batch, padding="max_length", max_length=max_text_tokens, truncation=True, return_tensors="pt"
    )
    input_ids = tokens.input_ids.to(text_encoder.device if device is None else device)  # (B, L)
    embeddings: torch.Tensor = text_encoder(input_ids)[0]  # (B, L, D)
    return embeddings


def unconditional_like(embeddings: torch.Tensor) -> torch.Tensor:
    """Returns the embedding of "no text": zeros of the same shape (B, L, D), dtype and device.

    The released models are guided against zeros, which is why a negative prompt cannot have any effect on them.
    """
    return torch.zeros_like(embeddings)


def with_prefix(prompt: str, prefix: str) -> str:
    """Puts `prefix` directly before the prompt, without a space, as Stage II was trained.

    >>> with_prefix("a cat", "medium motion,")
    'medium motion,a cat'
    """
    return prefix + prompt


def truncated_text(prompt: str, tokenizer: PreTrainedTokenizerBase, max_text_tokens: int) -> str:
    """Returns the end of the prompt that `encode_prompts` would cut off; an empty string when all of it fits.

    The end is as it was written where the tokenizer knows where its tokens stand, and decoded tokens elsewhere.
    """
    # Not verbose: transformers warns of a long prompt as of something that would fail, and cut it does not.
    content = tokenizer(
        prompt, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False
    )
    num_special = len(tokenizer(prompt, verbose=False).input_ids) - len(content.input_ids)
    num_kept = max(0, max_text_tokens - num_special)
    if num_kept >= len(content.input_ids):
        return ""
    if tokenizer.is_fast:
        return prompt[content.offset_mapping[num_kept][0] :].strip()
    return tokenizer.decode(content.input_ids[num_kept:])


def unknown_words(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Lists the words and signs of the prompt that the tokenizer can only render as its unknown token.

    A word-level tokenizer knows its own vocabulary and nothing else. A sentencepiece tokenizer spells out any word
    of the scripts that it was trained on, so the list is normally empty there.

    Returns:
        Words as written, each once, in order of appearance.
    """
    unknown = tokenizer.unk_token_id
    words = dict.fromkeys(_WORD_OR_SIGN.findall(prompt))
    return [word for word in words if unknown in tokenizer(word, add_special_tokens=False).input_ids]


def build_word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Builds a word-level tokenizer: lower case, punctuation split off, one token per known word.

    Ids are `<pad>` 0, `</s>` 1, `<unk>` 2 (T5's order), then the words in alphabetical order, so that the same set
    of words always gives the same ids. `save_pretrained` and `from_pretrained` store and load it as one folder.

    Args:
        words: The vocabulary; single words or single punctuation marks. Case and repetition do not matter.

    Returns:
        Tokenizer that ends every prompt with `</s>`.

    Raises:
        ValueError: If there are no words, or one of them would be split and so could never be matched.
    """
    vocabulary = sorted({word.lower() for word in words})
    if not vocabulary:
        raise ValueError("words must hold at least one word, got none")
    split = pre_tokenizers.BertPreTokenizer()
    for word in vocabulary:
        if [piece for piece, _ in split.pre_tokenize_str(word)] != [word]:
            raise ValueError(f"words must be single words or punctuation marks, got {word!r}; split it first")
    ids = {token: i for i, token in enumerate([PAD_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN, *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN_TOKEN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS_TOKEN}", special_tokens=[(EOS_TOKEN, ids[EOS_TOKEN])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD_TOKEN, eos_token=EOS_TOKEN, unk_token=UNKNOWN_TOKEN
    )
