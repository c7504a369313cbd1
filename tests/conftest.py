"""Toy models: the real classes, small enough that a test takes a moment."""

import dataclasses
import gc
import http.server
import importlib.util
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import sentencepiece
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.utils import logging as diffusers_logging
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.presets import NANO, Preset
from flashvideo.schedule import FlashVideoScheduler
from flashvideo.text import build_word_tokenizer

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores


@pytest.fixture(scope="session", autouse=True)
def frozen_imports():
    """Leaves what the imports made out of garbage collections, of which measurements of memory do many."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


TINY_VAE = {
    "block_out_channels": (8, 8, 8),  # three levels: 4 times smaller in space, as nano's
    "down_block_types": ("CogVideoXDownBlock3D",) * 3,
    "up_block_types": ("CogVideoXUpBlock3D",) * 3,
    "latent_channels": 8,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TINY_TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 8,
    "out_channels": 8,
    "time_embed_dim": 16,
    "text_embed_dim": 12,
    "num_layers": 2,
    "patch_size": 2,
    "max_text_seq_length": 8,
}
TOY_PRESET = Preset(
    name="toy",
    stage1=dataclasses.replace(
        NANO.stage1,
        height=16,
        width=24,
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=3.0,
        max_text_tokens=8,
    ),
    stage2=dataclasses.replace(
        NANO.stage2, height=32, width=48, num_inference_steps=2, guidance_scale=1.0, max_text_tokens=8
    ),
)
"""Previews of 5 frames of 16x24, enlarged twice; 2 steps each."""


@pytest.fixture(scope="session")
def tiny_vae_config() -> dict[str, object]:
    """Arguments of `tiny_vae`, for tests that make one of their own."""
    return dict(TINY_VAE)


@pytest.fixture
def tiny_vae() -> AutoencoderKLCogVideoX:
    """4 times smaller in space and in time, 8 latent channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKLCogVideoX(**TINY_VAE).eval()


@pytest.fixture
def tiny_transformer() -> Callable[..., FlashVideoTransformer3DModel]:
    """`tiny_transformer(stage)` builds a transformer of stage 1 or 2 that fits `tiny_vae`; no parameter is zero."""

    def build(stage: int, **overrides: object) -> FlashVideoTransformer3DModel:
        stage2 = {"noise_step_embed": stage == 2, "num_frames_embed": stage == 2}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage)
            model = FlashVideoTransformer3DModel(**TINY_TRANSFORMER | stage2 | overrides)
            for parameter in model.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.3)
        return model.eval()

    return build


@pytest.fixture
def toy_pipeline(tiny_vae, tiny_transformer) -> Callable[..., FlashVideoPipeline]:
    """`toy_pipeline(words)` puts both stages of toy models together; `stage1` and `stage2` change their presets."""

    def build(
        words: list[str], *, stage1: dict | None = None, stage2: dict | None = None
    ) -> FlashVideoPipeline:
        preset = dataclasses.replace(
            TOY_PRESET,
            stage1=dataclasses.replace(TOY_PRESET.stage1, **stage1 or {}),
            stage2=dataclasses.replace(TOY_PRESET.stage2, **stage2 or {}),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = T5Config(vocab_size=16, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
            text_encoder = T5EncoderModel(config).eval().requires_grad_(False)
        return FlashVideoPipeline(
            tokenizer=build_word_tokenizer(words),
            text_encoder=text_encoder,
            vae=tiny_vae,
            stage1_transformer=tiny_transformer(1),
            stage1_scheduler=FlashVideoScheduler(),
            stage2_transformer=tiny_transformer(2),
            stage2_scheduler=FlowMatchEulerDiscreteScheduler(shift=preset.stage2.shift),
            preset=preset,
        )

    return build


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory) -> Path:
    """Folder of a T5 tokenizer stored as the released one is: a SentencePiece model that reads 226 tokens."""
    lines = [
        "a red circle moves slowly to the left over the green grass",
        "a blue square moves right, medium motion, in the light of the morning",
        "the camera follows the star while it spins above the waves",
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20),
        model_writer=model,
        model_type="unigram",
        vocab_size=90,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "spiece.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 226, "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def sentencepiece_tokenizer(sentencepiece_folder) -> T5Tokenizer:
    """The tokenizer of `sentencepiece_folder`, loaded anew: some of its warnings come once only."""
    return T5Tokenizer.from_pretrained(sentencepiece_folder)


class ChatService:
    """A local service that speaks OpenAI's protocol: answers with `answer` and `status`, and keeps the requests."""

    answer = ""
    status = 200
    finish_reason = "stop"
    takes_settings = True
    raw: bytes | None = None
    delay = 0.0
    redirect: str | None = None

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict, dict]] = []
        self.released = threading.Event()
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.requests.append((self.path, dict(self.headers), body))
                if service.delay:
                    service.released.wait(service.delay)
                status, content = service.reply(body)
                if service.redirect is not None:
                    status = 302
                self.send_response(status)
                self.send_header("Location", service.redirect or "")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                service.requests.append((self.path, dict(self.headers), {}))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def reply(self, body: dict) -> tuple[int, bytes]:
        if not self.takes_settings and "temperature" in body:
            return 400, b'{"error": {"message": "temperature is not supported"}}'
        if self.raw is not None:
            return self.status, self.raw
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self.answer},
            "finish_reason": self.finish_reason,
        }
        return self.status, json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


@pytest.fixture
def chat_service(monkeypatch) -> Iterator[ChatService]:
    """A running `ChatService`; the environment names neither a service nor a key."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    service = ChatService()
    thread = threading.Thread(target=service.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield service
    service.released.set()
    service.server.shutdown()
    service.server.server_close()
    thread.join()


@pytest.fixture
def cogvideox_folder(tiny_vae, tmp_path) -> Callable[..., Path]:
    """`cogvideox_folder(rotary=...)` writes a CogVideoX of diffusers' own classes; it fits `toy_pipeline`.

    Its own size is 5 frames of 16x24; `rotary` tells a 5B (true) from a 2B. Other arguments are its transformer's.
    """

    def build(*, rotary: bool, name: str = "cogvideox", **overrides: object) -> Path:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            transformer = CogVideoXTransformer3DModel(
                **TINY_TRANSFORMER
                | {"sample_height": 4, "sample_width": 6, "sample_frames": 5}
                | {"use_rotary_positional_embeddings": rotary}
                | overrides
            )
            torch.manual_seed(0)  # the text encoder of `toy_pipeline`
            config = T5Config(vocab_size=16, d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
            text_encoder = T5EncoderModel(config)
        tiny_vae.register_to_config(scaling_factor=0.7 if rotary else 1.15258426)
        scheduler = CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            snr_shift_scale=1.0 if rotary else 3.0,
        )
        words = ["a", "red", "blue", "circle", "square", "moves", "left", "slowly", ","]
        pipeline = CogVideoXPipeline(
            tokenizer=build_word_tokenizer(words),
            text_encoder=text_encoder,
            vae=tiny_vae,
            transformer=transformer,
            scheduler=scheduler,
        )
        pipeline.save_pretrained(tmp_path / name)
        return tmp_path / name

    return build


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> ModuleType:
    """The module `parity/golden.py`."""
    path = Path(__file__).with_name("parity") / "golden.py"
    spec = importlib.util.spec_from_file_location("golden", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def write_released(golden) -> Callable[[Path], None]:
    """`write_released(folder)` makes the folder, with the three files as the authors publish theirs, of toy size."""

    def write(folder: Path) -> None:
        folder.mkdir()
        for name, root, model in (
            ("stage1", "module", "stage1"),
            ("stage2", "module", "stage2"),
            ("3d-vae", "state_dict", "vae"),
        ):
            torch.save({root: golden.state_dict(model)}, folder / f"{name}.pt")

    return write


@pytest.fixture
def no_progress_bars() -> Iterator[None]:
    """Without diffusers' bars on stderr."""
    diffusers_logging.disable_progress_bar()
    yield
    diffusers_logging.enable_progress_bar()
