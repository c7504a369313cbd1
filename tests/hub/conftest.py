"""A small hub on this machine: repositories of toy checkpoints, behind as much of the real one's API as is used."""

import functools
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
import torch
from huggingface_hub import constants, file_download
from transformers import T5Config, T5EncoderModel

from flashvideo.presets import RELEASED_FILES, RELEASED_REPOSITORY, TEXT_ENCODER_REPOSITORY
from flashvideo.text import build_word_tokenizer

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Repository:
    """Files at one commit; `main` and the tag `v1` stand for it."""

    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main", "v1")
    refusal: tuple[int, str] | None = None  # status and error code, for every request


@dataclass
class ToyHub:
    """What the server serves, how it misbehaves, and what it was asked."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    cut_at: dict[str, int] = field(
        default_factory=dict
    )  # name -> bytes that come of it, once, as if they were all
    broken_off: dict[str, int] = field(
        default_factory=dict
    )  # name -> bytes after which the connection ends, once
    seconds_per_chunk: float = 0.0
    silent: bool = False
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def downloads(self) -> list[str]:
        """Names of the files that were sent."""
        return [line.removeprefix("GET ") for line in self.requests if line.startswith("GET ")]


class Handler(BaseHTTPRequestHandler):
    """`/api/models/REPO[/revision/REVISION]` and `/REPO/resolve/REVISION/FILE`."""

    protocol_version = "HTTP/1.1"
    hub: ToyHub

    def log_message(self, *args: object) -> None:
        """Nothing on stderr, where the tests look for sentences."""

    def do_HEAD(self) -> None:
        self.respond()

    def do_GET(self) -> None:
        self.respond()

    def respond(self) -> None:
        if self.hub.silent:
            time.sleep(3)
            self.close_connection = True
            return
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.hub.requests.append("info " + "/".join(parts[2:4]))
            found = self.find("/".join(parts[2:4]), parts[5] if len(parts) > 4 else "main")
            if found is not None:
                self.send_info("/".join(parts[2:4]), found)
            return
        found = self.find("/".join(parts[:2]), parts[3])
        name = "/".join(parts[4:])
        if found is None:
            return
        if name not in found.files:
            self.refuse(404, "EntryNotFound")
            return
        self.hub.requests.append(f"{self.command} {name}")
        self.send_file(found, name)

    def find(self, repo: str, revision: str) -> Repository | None:
        found = self.hub.repositories.get(repo)
        if found is None:
            self.refuse(404, "RepoNotFound")
        elif found.refusal is not None:
            self.refuse(*found.refusal)
        elif revision not in (*found.revisions, found.commit):
            self.refuse(404, "RevisionNotFound")
        else:
            return found
        return None

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_info(self, repo: str, found: Repository) -> None:
        siblings = [{"rfilename": name, "size": len(content)} for name, content in found.files.items()]
        body = json.dumps({"id": repo, "sha": found.commit, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, found: Repository, name: str) -> None:
        content = found.files[name]
        start = 0
        if (asked := self.headers.get("Range")) is not None:
            start = int(asked.removeprefix("bytes=").split("-")[0])
        body = content[start:]
        if self.command == "GET" and name in self.hub.cut_at:
            body = body[: self.hub.cut_at.pop(name)]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("X-Repo-Commit", found.commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            if (length := self.hub.broken_off.pop(name, None)) is not None:
                body = body[:length]
                self.close_connection = True
            self.send_body(body)

    def send_body(self, body: bytes) -> None:
        chunks = 4 if self.hub.seconds_per_chunk else 1
        size = -(-len(body) // chunks) or 1
        for position in range(0, len(body), size):
            self.wfile.write(body[position : position + size])
            self.wfile.flush()
            time.sleep(self.hub.seconds_per_chunk)


@pytest.fixture(scope="session")
def released_files(write_released, tmp_path_factory) -> dict[str, bytes]:
    """The three checkpoints at toy size, under the reference's keys."""
    folder = tmp_path_factory.mktemp("hub") / "released"
    write_released(folder)
    return {name: (folder / name).read_bytes() for name in RELEASED_FILES}


@pytest.fixture(scope="session")
def text_folder(golden, tmp_path_factory):
    """A CogVideoX folder's text encoder and tokenizer, as wide as the toy checkpoints want it."""
    folder = tmp_path_factory.mktemp("text")
    width = golden.metadata()["config"]["text_dim"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = T5Config(vocab_size=16, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    build_word_tokenizer(["a", "red", "circle", "moves", "left"]).save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def environment(tmp_path) -> Callable[[str], dict[str, str]]:
    """`environment(url)` are the variables with which a new process uses a hub and empty caches of its own."""
    return lambda url: {
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_DISABLE_XET": "1",
        "FLASHVIDEO_CACHE": str(tmp_path / "cache"),
    }


@pytest.fixture
def hub(released_files, text_folder, environment, monkeypatch, tmp_path) -> Iterator[ToyHub]:
    """A running hub with the release and the text encoder, which this process takes for the real one."""
    text = {
        str(path.relative_to(text_folder)): path.read_bytes()
        for path in text_folder.rglob("*")
        if path.is_file()
    }
    toy = ToyHub(
        repositories={
            RELEASED_REPOSITORY: Repository({**released_files, "README.md": b"about it"}),
            TEXT_ENCODER_REPOSITORY: Repository({**text, "vae/config.json": b"{}"}, commit="7e" * 20),
        }
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(type("Bound", (Handler,), {"hub": toy})))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    toy.url = f"http://127.0.0.1:{server.server_address[1]}"
    variables = environment(toy.url)
    # huggingface_hub reads its variables when it is imported, which in this process is long ago.
    monkeypatch.setattr(constants, "ENDPOINT", toy.url)
    template = toy.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", variables["HF_HOME"] + "/hub")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 2)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
    monkeypatch.setenv("FLASHVIDEO_CACHE", variables["FLASHVIDEO_CACHE"])
    impatient = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(file_download, "time", impatient)  # it sleeps between its retries
    yield toy
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def dead_url() -> str:
    """The address of nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
