"""Short prompts into long ones, the kind that the released models were trained on, by a chat model of one's choice.

The model is a service that speaks OpenAI's protocol, or a folder that `transformers` loads. Nothing is asked unless a
model is named, and nothing is sent but the prompt and the instruction below.
"""

from __future__ import annotations

import gc
import http.client
import json
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

REFINED_WORDS = (80, 150)
"""Words of a refined prompt, least and most: about as long as the captions of the released models' training."""

INSTRUCTION = f"""\
Turn a short idea for a video into the prompt that a text-to-video model needs.

Write one paragraph of {REFINED_WORDS[0]} to {REFINED_WORDS[1]} words, in plain English and in the present tense, that \
tells what can be seen in a single shot of a few seconds. Say who or what the subject is and how it looks, what it \
does and how fast, where it is, how the light falls and which colours there are, and at last how the camera sees it: \
from how far, from which side, and whether it moves.

Everything in the idea stays as it is: subjects and their number, colours, actions, places, style. Invent only what \
the idea leaves open. Translate an idea in another language. No cuts, no sound, no text in the picture unless the \
idea asks for them.

Answer with the paragraph and nothing else: no title, no quotation marks, no list, no remark.

The idea:
"""
"""What the chat model is told; the prompt follows."""

_ACCEPTED_WORDS = (20, 400)
_MAX_TOKENS = 2048
_MAX_BYTES = 2**20
_SETTINGS = {"temperature": 0, "seed": 0, "max_tokens": _MAX_TOKENS}
_HOW_TO_CONFIGURE = (
    "name a chat model (model, --refine-model) and the OpenAI-compatible service that has it (endpoint, "
    "--refine-endpoint or $OPENAI_BASE_URL), or the folder of a chat model for transformers"
)

_FENCE = re.compile(r"^```.*$", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} .*$", re.MULTILINE)
_EMPHASIS = re.compile(r"(\*\*|\*|__|`)(?=\S)(.+?)(?<=\S)\1", re.DOTALL)
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_INTRODUCTION = re.compile(
    r"\s*(?:(?:sure|certainly|of course|okay|absolutely)\b[,.!:\s]*)?"
    r"(?:here(?:'s|’s| is)\b[^:\n]{0,80}"  # noqa: RUF001
    r"(?:(?:prompt|paragraph|description|version|rewrite|text)\b[^:\n]{0,80}:|:\s*\n)"
    r"|(?:\w+ ){0,2}(?:prompt|paragraph|description):)\s*",
    re.IGNORECASE,
)
_REMARK = re.compile(r"\n\s*(?:let me know|feel free|would you like|i hope|note:)[^\n]*\s*\Z", re.IGNORECASE)
_LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)]) ", re.MULTILINE)
_REFUSAL = re.compile(
    r"(?:i['’]m sorry|i am sorry|sorry,|i can(?:no|['’])t|i['’]m unable|i am unable|as an ai)",  # noqa: RUF001
    re.IGNORECASE,
)
_QUOTES = ('""', "''", "“”", "‘’", "«»", "„“")  # noqa: RUF001


def refine_prompt(
    prompt: str,
    *,
    endpoint: str | None = None,
    model: str | os.PathLike[str] | None = None,
    api_key: str | None = None,
    timeout: float = 60.0,
    device: str = "cpu",
) -> str:
    """Rewrites a short prompt as one paragraph of about 80 to 150 words that says the same and more.

    The same prompt gives the same answer as far as the model allows. Quotation marks, introductions and the like around
    the answer are left out, which is logged; an answer that is no such paragraph is an error.

    Args:
        prompt: What the video shall show. One that is long enough already is returned as it is.
        endpoint: Address of a service that speaks OpenAI's protocol, such as `http://localhost:8000/v1`;
            `$OPENAI_BASE_URL` if None.
        model: Name of the service's model; without an `endpoint` argument also a folder with a `config.json`.
        api_key: The service's key; `$OPENAI_API_KEY` if None, and none if that is not set either.
        timeout: Seconds to wait for the service.
        device: Where a model from a folder runs; it is freed afterwards.

    Returns:
        The refined prompt.

    Raises:
        ValueError: In one sentence: nothing is configured, the model cannot be reached or loaded, or its answer is of
            no use.
    """
    if not prompt.strip():
        raise ValueError(f"prompt must not be empty, got {prompt!r}; describe what the video shall show")
    num_words = len(prompt.split())
    if num_words >= REFINED_WORDS[0]:
        logger.warning("the prompt has %d words already and is left as it is", num_words)
        return prompt
    if model is None or not str(model):
        raise ValueError(f"there is no model to refine prompts; {_HOW_TO_CONFIGURE}")
    if endpoint is None and (Path(model) / "config.json").is_file():
        return _checked(_ask_folder(prompt, Path(model), device), prompt)
    endpoint = endpoint or os.environ.get("OPENAI_BASE_URL")
    if not endpoint:
        raise ValueError(
            f"{str(model)!r} is no folder with a config.json, and there is no service to ask for it; "
            f"{_HOW_TO_CONFIGURE}"
        )
    api_key = (os.environ.get("OPENAI_API_KEY", "") if api_key is None else api_key).strip()
    if not (api_key.isascii() and api_key.isprintable()):
        raise ValueError("the key of the service holds characters that no key has; set $OPENAI_API_KEY anew")
    return _checked(_ask_service(prompt, endpoint, str(model), api_key or None, timeout), prompt)


# --- A service --------------------------------------------------------------------------------------------------------


def _ask_service(prompt: str, endpoint: str, model: str, api_key: str | None, timeout: float) -> str:
    url, host = _chat_url(endpoint)
    request = {"model": model, "messages": [{"role": "user", "content": INSTRUCTION + prompt}]}
    try:
        try:
            answer = _post(url, {**request, **_SETTINGS}, api_key, timeout)
        except urllib.error.HTTPError as error:
            if error.code not in (400, 422):
                raise
            error.close()
            # Some models take no settings at all.
            answer = _post(url, request, api_key, timeout)
            logger.warning(
                "%s takes no settings for %r: another run may refine the prompt differently", host, model
            )
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            raise ValueError(_refused(error, host, model)) from None
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(_unreachable(error, host, timeout)) from None
    return _content(answer, host)


def _chat_url(endpoint: str) -> tuple[str, str]:
    """Returns the address to post to, and how the service is named in messages: without its path."""
    parts = urlsplit(endpoint)
    if "@" in parts.netloc:
        raise ValueError("endpoint must not hold a user's name or password; give the key as $OPENAI_API_KEY")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"endpoint must be an http(s) address such as http://localhost:8000/v1, got {endpoint!r}"
        )
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = (path or "/v1") + "/chat/completions"
    return parts._replace(path=path).geturl(), f"{parts.scheme}://{parts.netloc}"


def _post(url: str, body: Mapping[str, Any], api_key: str | None, timeout: float) -> bytes:
    # The standard library, because huggingface_hub's client sends the user's Hub token wherever no key is given.
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    if api_key is not None:
        request.add_unredirected_header("Authorization", f"Bearer {api_key}")  # not to where a redirect leads
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return bytes(response.read(_MAX_BYTES))


def _refused(error: urllib.error.HTTPError, host: str, model: str) -> str:
    """Says what a status means."""
    if error.code in (401, 403):
        return f"{host} does not accept the key (HTTP {error.code}); set $OPENAI_API_KEY to a valid one"
    if error.code == 404:
        return (
            f"{host} has no model {model!r} or no chat completions at {urlsplit(error.url).path} (HTTP 404); "
            "check both names"
        )
    said = " ".join(error.read(_MAX_BYTES).decode(errors="replace").split())[:200] or error.reason
    return f"{host} cannot refine the prompt (HTTP {error.code}): {said}"


def _unreachable(error: OSError | http.client.HTTPException, host: str, timeout: float) -> str:
    """Says why there was no answer."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"{host} did not answer within {timeout:g} seconds; try again, or another model"
    if isinstance(reason, ConnectionRefusedError):
        return f"nothing answers at {host} (connection refused); start the service, or check the address"
    return f"{host} cannot be reached ({str(reason) or type(reason).__name__}); check the address and the network"


def _content(answer: bytes, host: str) -> str:
    """Returns the text of a chat completion."""
    try:
        choice = json.loads(answer)["choices"][0]
        content, finish_reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(
            f"{host} answered with something else than a chat completion; check that the address is that of an "
            "OpenAI-compatible service"
        ) from None
    if finish_reason == "length":
        raise ValueError(f"the answer of {host} broke off at its greatest length; try another model")
    return content if isinstance(content, str) else ""


# --- A folder ---------------------------------------------------------------------------------------------------------


def _ask_folder(prompt: str, folder: Path, device: str) -> str:
    """Loads a chat model, asks it, and frees it."""
    import torch

    try:
        return _chat(prompt, folder, torch.device(device))
    finally:
        gc.collect()  # some models hold references in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _chat(prompt: str, folder: Path, device: Any) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ValueError(f"{folder} cannot be loaded as a chat model: {first_line}") from None
    if not tokenizer.chat_template:
        raise ValueError(f"{folder} has no chat template; name a model that was made for conversation")
    message = {"role": "user", "content": INSTRUCTION + prompt}
    inputs = tokenizer.apply_chat_template(
        [message], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(device)
    # The most probable word each time; the folder's settings for sampling have no meaning then.
    tokens = model.to(device).generate(
        **inputs, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=_MAX_TOKENS
    )[0, inputs["input_ids"].shape[1] :]
    if len(tokens) == _MAX_TOKENS:
        raise ValueError(f"the answer of {folder} broke off at its greatest length; try another model")
    answer: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return answer


# --- Its answer -------------------------------------------------------------------------------------------------------


def _checked(answer: str, prompt: str) -> str:
    """Returns an answer as a prompt.

    Raises:
        ValueError: If it is none.
    """
    text, left_out = clean_answer(answer)
    begin = text if len(text) <= 60 else text[:60] + "..."
    num_words = len(text.split())
    length = "1 word" if num_words == 1 else f"{num_words} words"
    problem = None
    if not text:
        problem = "is empty"
    elif _REFUSAL.match(text):
        problem = f"is a refusal, {begin!r}"
    elif len(_LIST_ITEM.findall(_THOUGHT.sub("", answer))) > 1:
        problem = f"is a list, {begin!r}"
    elif sum(char.isascii() for char in text) < len(text) / 2:
        problem = f"is not English, {begin!r}"
    elif not _ACCEPTED_WORDS[0] <= num_words <= _ACCEPTED_WORDS[1]:
        problem = f"has {length}, {begin!r}"
    if problem is not None:
        raise ValueError(
            f"the model's answer {problem}, expected one paragraph of {REFINED_WORDS[0]} to {REFINED_WORDS[1]} words "
            f"for {prompt!r}; try another model, or write the long prompt yourself"
        )
    if left_out:
        logger.warning("the refined prompt came with %s, left out here", ", ".join(left_out))
    return text


def clean_answer(answer: str) -> tuple[str, list[str]]:
    r"""Takes a chat model's answer out of what it likes to wrap answers in.

    Returns:
        The text as one paragraph, and what was left out of it or changed.

    >>> clean_answer('Here is the prompt:\n\n"A red kite climbs.\n\nClouds drift by."')
    ('A red kite climbs. Clouds drift by.', ['an introduction', 'quotation marks', 'breaks between paragraphs'])
    """
    left_out = []
    text = answer.strip()
    for name, pattern, replacement in (
        ("the model's thoughts", _THOUGHT, ""),
        ("a code block's marks", _FENCE, ""),
        ("a heading", _HEADING, ""),
        ("marks of emphasis", _EMPHASIS, r"\2"),
    ):
        text, count = pattern.subn(replacement, text)
        if count:
            left_out.append(name)
    if match := _INTRODUCTION.match(text):
        text = text[match.end() :]
        left_out.append("an introduction")
    text, count = _REMARK.subn("", text)
    if count:
        left_out.append("a remark")
    text = text.strip()
    if len(text) > 1 and text[0] + text[-1] in _QUOTES and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
        left_out.append("quotation marks")
    if "\n" in text:
        left_out.append("breaks between paragraphs")
    return " ".join(text.split()), left_out
