"""VBench in its own Python environment: which commands it is run with, and running them, one dimension after another.

VBench pins old libraries, so it never shares an environment with this package. The commands are those of vbench 0.1.5
and of its repository's `vbench2_beta_long`. `vbench evaluate` itself is not used: it hides failures and takes whatever
`python` is on the path; what it starts, `vbench.launch.evaluate`, is started directly.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashvideo.evaluation.records import write_json
from flashvideo.evaluation.vbench.prompts import FLICKER, INFO_NAME
from flashvideo.evaluation.vbench.results import RESULTS_PATTERN, read_results

logger = logging.getLogger(__name__)

_DONE_NAME = "done.json"
_CLIPS_PREFIX = "clips-"
_ASK = (
    "import importlib.metadata as m, importlib.util as u, json; s = u.find_spec('vbench'); "
    "print(json.dumps(None if s is None else [list(s.submodule_search_locations)[0], m.version('vbench')]))"
)
# The console script of vbench 0.1.5, called through the interpreter that was named.
_STATIC_FILTER = "from vbench.cli.vbench import main; main()"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """An installed vbench."""

    folder: Path
    """Its package."""

    version: str
    """Its version."""

    @property
    def info(self) -> Path:
        """Its list of prompts."""
        return self.folder / INFO_NAME


@dataclass(frozen=True, kw_only=True)
class VBenchRun:
    """What VBench shall be run on."""

    python: str
    """The interpreter of VBench's environment."""

    videos: Path
    """Folder of the videos, and of nothing else: VBench takes their suffix from whichever file it sees first."""

    info: Path
    """VBench's list of prompts."""

    output: Path
    """Folder of the results; each dimension has its own in it."""

    repository: Path | None = None
    """A clone of VBench's repository, whose VBench-Long is run; None for VBench itself, from its package."""

    version: str = ""
    """Version of the installed vbench, so that another one's results are not taken for it."""

    def folder(self, dimension: str) -> Path:
        """Returns the folder of a dimension's results."""
        return self.output / dimension.replace(" ", "_")


def find_vbench(python: str) -> Installation:
    """Asks an interpreter for its vbench, without importing it.

    Raises:
        ValueError: If it cannot be started, or has none.
    """
    try:
        answer = subprocess.run(
            [python, "-c", _ASK], capture_output=True, text=True, env=_environment(None), check=False
        )
    except OSError as error:
        raise ValueError(
            f"{python} cannot be started ({error.strerror}); name the Python that has vbench"
        ) from None
    try:
        found = json.loads(answer.stdout)
    except json.JSONDecodeError:
        raise ValueError(f"{python} is not a Python that has vbench: {last_words(answer.stderr)}") from None
    if found is None:
        raise ValueError(f"{python} has no vbench; install it there with `pip install vbench`")
    return Installation(folder=Path(found[0]), version=found[1])


def commands(run: VBenchRun, dimension: str) -> tuple[tuple[str, ...], ...]:
    """Returns what is executed for a dimension, in order.

    Temporal flickering is judged on still videos alone; VBench's static filter copies those that are. VBench-Long
    does the same on its own.
    """
    key, output = dimension.replace(" ", "_"), run.folder(dimension)
    options = ["--dimension", key, "--full_json_dir", str(run.info), "--output_path", str(output)]
    if run.repository is not None:
        script = run.repository / "vbench2_beta_long" / "eval_long.py"
        options += ["--mode", "long_vbench_standard", "--dev_flag"]
        options += ["--static_filter_flag"] if dimension == FLICKER else []
        return ((run.python, str(script), "--videos_path", str(run.videos), *options),)
    options += ["--mode", "vbench_standard"]
    launch = (run.python, "-m", "vbench.launch.evaluate", "--videos_path")
    if dimension != FLICKER:
        return ((*launch, str(run.videos), *options),)
    still = output / "static"
    paths = ("--videos_path", str(run.videos), "--result_path", str(still))
    return (
        (run.python, "-c", _STATIC_FILTER, "static_filter", *paths),
        (*launch, str(still / "filtered_videos"), *options),
    )


def command_lines(run: VBenchRun, dimension: str) -> list[str]:
    """Returns the same for a shell."""
    place = ""
    if run.repository is not None:
        repository = shlex.quote(str(run.repository))
        place = f"cd {repository} && PYTHONPATH={repository} "
    return [place + shlex.join(words) for words in commands(run, dimension)]


def order_of_work(dimensions: Sequence[str]) -> tuple[str, ...]:
    """Returns the dimensions with temporal flickering last: dynamic degree fetches the weights of its filter."""
    return tuple(sorted(dimensions, key=lambda name: name == FLICKER))


def digest_videos(paths: Iterable[Path]) -> str:
    """Returns a word that changes with some videos: their names, sizes and times."""
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def check_only_videos(videos: Path) -> None:
    """Checks that a folder holds videos and nothing else.

    Raises:
        ValueError: If it does not.
    """
    others = sorted(
        path.name
        for path in videos.iterdir()
        if path.suffix != ".mp4" or path.name.startswith(".") or not path.is_file()
    )
    if others:
        raise ValueError(
            f"{videos} must hold .mp4 videos alone for VBench, got {others[0]}; move it elsewhere"
        )
    if not any(videos.iterdir()):
        raise ValueError(f"{videos} holds no videos; make them first")


def is_done(run: VBenchRun, dimension: str, digest: str) -> bool:
    """Returns whether a dimension has been computed by the same VBench from the same videos."""
    path = run.folder(dimension) / _DONE_NAME
    return path.is_file() and json.loads(path.read_text()) == _request(run, digest)


def run_dimension(run: VBenchRun, dimension: str, digest: str) -> None:
    """Runs VBench for one dimension.

    Args:
        run: What to run it on.
        dimension: The dimension.
        digest: `digest_videos` of the dimension's videos.

    Raises:
        ValueError: If VBench fails, or leaves no score.
    """
    folder = run.folder(dimension)
    _forget(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for words in commands(run, dimension):
        _execute(run, dimension, words, folder)
        if "static_filter" in words:
            _check_still(folder / "static" / "filtered_videos", dimension)
    if dimension not in read_results(folder):
        raise ValueError(f"VBench ended without a score for {dimension}; read {folder / 'stdout.txt'}")
    write_json(folder / _DONE_NAME, _request(run, digest))


def link_clips(run: VBenchRun, names: Iterable[str], digest: str) -> Path:
    """Makes the folder that VBench-Long works in: links to the videos, beside which it writes their clips.

    VBench-Long keeps its clips if there are as many as videos, also where the videos are others by now; so each set of
    videos has a folder of its own, and those of earlier sets are removed.

    Args:
        run: What VBench-Long is to be run on.
        names: The videos.
        digest: `digest_videos` of them.

    Returns:
        The folder.

    Raises:
        ValueError: If the file system lists it in an order that VBench-Long cannot read.
    """
    folder = run.output / f"{_CLIPS_PREFIX}{digest}"
    for other in run.output.glob(f"{_CLIPS_PREFIX}*"):
        if other != folder:
            shutil.rmtree(other)
    shutil.rmtree(folder / "temporal_filtered_cilps", ignore_errors=True)  # spelt so by VBench-Long
    # First, since some file systems list the newest first.
    (folder / "split_clip").mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to((run.videos / name).resolve())
    if not _first_listed(folder).endswith(".mp4"):
        raise ValueError(
            f"{folder} is listed by its file system with the folder of clips first, where VBench-Long looks for the "
            "videos' suffix; choose an --output on another file system"
        )
    return folder


def last_words(text: str, limit: int = 300) -> str:
    """Returns the last line of what a program wrote, at most `limit` letters of it; progress bars count as lines."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    return lines[-1][-limit:] if lines else "it wrote nothing"


def _first_listed(folder: Path) -> str:
    return os.listdir(folder)[0]  # in the order in which VBench-Long sees it, which is the file system's own


def _execute(run: VBenchRun, dimension: str, words: Sequence[str], folder: Path) -> None:
    """Runs one command; what it says goes to files, which can be watched meanwhile."""
    logger.info("running %s", shlex.join(words))
    errors = folder / "stderr.txt"
    with (folder / "stdout.txt").open("ab") as output, errors.open("wb") as error_output:
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=error_output,
                env=_environment(run.repository),
                cwd=run.repository or folder,
                check=False,
            )
        except OSError as error:
            raise ValueError(
                f"{words[0]} cannot be started ({error.strerror}); name VBench's Python"
            ) from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted while VBench judged {dimension}; what is done is kept, and the same command goes on"
            ) from None
    if done.returncode:
        said = last_words(errors.read_text(encoding="utf-8", errors="replace"))
        raise ValueError(
            f"VBench failed at {dimension} with exit code {done.returncode}: {said}; read {errors}"
        )


def _check_still(folder: Path, dimension: str) -> None:
    if not folder.is_dir() or not any(folder.glob("*.mp4")):
        raise ValueError(
            f"VBench's static filter found no video that holds still, and {dimension} is judged on such alone; make "
            "more with a larger --flicker-samples, or leave that dimension out"
        )


def _environment(repository: Path | None) -> dict[str, str]:
    """This process's variables, without its own modules. VBench-Long's package lacks files that its repository has."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return kept if repository is None else {**kept, "PYTHONPATH": str(repository)}


def _request(run: VBenchRun, digest: str) -> dict[str, str]:
    return {
        "mode": "vbench" if run.repository is None else "vbench_long",
        "version": run.version,
        "videos": digest,
        "prompts": hashlib.sha256(run.info.read_bytes()).hexdigest()[:16],
    }


def _forget(folder: Path) -> None:
    """Removes what an earlier run left, so that its scores cannot be taken for new ones."""
    (folder / _DONE_NAME).unlink(missing_ok=True)
    for pattern in (RESULTS_PATTERN, "std*.txt"):
        for path in folder.glob(pattern):
            path.unlink()
    shutil.rmtree(folder / "static", ignore_errors=True)
