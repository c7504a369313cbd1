"""DOVER's technical and aesthetic scores, from its own repository in its own environment.

DOVER (Wu et al., "Exploring video quality assessment on user generated contents from aesthetic and technical
perspectives", 2023) pins an old torch, so that it cannot be imported here. Set it up once::

    git clone https://github.com/VQAssessment/DOVER.git
    python3 -m venv dover-env && dover-env/bin/pip install ./DOVER    # with a Python that its torch still exists for

put its weights where its README says, and give the python of that environment and the folder of the repository.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flashvideo.evaluation.measures import Column

SCRIPT = "evaluate_a_set_of_videos.py"
COLUMNS = tuple(
    Column(name=f"dover_{score}", label=f"DOVER {score}", better="higher")
    for score in ("technical", "aesthetic")
)
"""What is taken of the script's table; its overall score is a mean of the two."""
_TABLE = ("dover_aesthetic", "dover_technical", "overall")  # the script's columns, after the path
_KEPT_OF_ERROR = 300  # characters


def dover_scores(
    videos: Sequence[Path], *, python: Path, repository: Path, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """Scores videos with DOVER's script for a set of videos.

    The script leaves a file with its figures in the repository, `zero_shot_res_sensehdr.txt`.

    Args:
        videos: Video files, at least one.
        python: The interpreter of DOVER's environment.
        repository: Folder of DOVER's repository, with its weights.
        device: Where it runs, as torch writes it, such as "cuda".

    Returns:
        For the stem of each file's name the numbers of `COLUMNS`, from 0 to 100; the script leaves out what it cannot
        read. DOVER samples frames at random, so that two runs differ a little.

    Raises:
        ValueError: Two videos have the same stem, the interpreter or the script is missing, or the script fails.
    """
    paths = _distinct(videos)
    script = dover_script(repository)
    with tempfile.TemporaryDirectory() as folder:
        inputs, table = Path(folder) / "videos", Path(folder) / "scores.csv"
        inputs.mkdir()
        # The script takes files that end in .mp4, and its table has no quotes: commas in a name would be columns.
        for index, path in enumerate(paths):
            (inputs / f"{index}.mp4").symlink_to(path.absolute())
        # Made absolute, not resolved: the python of an environment is a link that leads out of it.
        command = [
            str(Path(python).absolute()),
            script.name,
            "-in",
            str(inputs),
            "-out",
            str(table),
            "-d",
            device,
        ]
        _run(command, script.parent)
        scores = _read(table)
    return {path.stem: scores[str(index)] for index, path in enumerate(paths) if str(index) in scores}


def dover_script(repository: Path) -> Path:
    """Returns DOVER's script for a set of videos.

    Raises:
        ValueError: The folder does not have it.
    """
    script = Path(repository).absolute() / SCRIPT
    if not script.is_file():
        raise ValueError(f"{repository} has no {SCRIPT}, expected the folder of DOVER's repository; clone it")
    return script


def dover_version(repository: Path) -> str:
    """Returns a hash of DOVER's script, options and weights.

    Raises:
        ValueError: The folder does not have the script.
    """
    script = dover_script(repository)
    weights = sorted((script.parent / "pretrained_weights").glob("*.pth"))
    total = hashlib.sha256()
    for path in (script, *sorted(script.parent.glob("*.yml")), *weights):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:8]


def _distinct(videos: Sequence[Path]) -> list[Path]:
    for path in videos:
        if not path.is_file():
            raise ValueError(f"{path} does not exist, expected a video file; check the name")
    stems = [path.stem for path in videos]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f"several videos are named {twice[0]}, which names their scores; score them apart")
    return list(videos)


def _run(command: Sequence[str], folder: Path) -> None:
    # Packages that this process was told to import are not those of DOVER's environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ValueError(
            f"{command[0]} cannot be run ({error.strerror}); give the python of DOVER's environment"
        ) from None
    if done.returncode:
        tail = " ".join(done.stderr.split())[-_KEPT_OF_ERROR:] or "no message"
        raise ValueError(f"DOVER's script failed with exit status {done.returncode}: {tail}")


def _read(table: Path) -> dict[str, dict[str, float]]:
    """Scores by the stem of the file that the script saw."""
    if not table.is_file():
        raise ValueError(f"DOVER's {SCRIPT} wrote no table; its arguments may have changed")
    with table.open(newline="") as stream:
        rows = list(csv.reader(stream, skipinitialspace=True))[1:]
    scores = {}
    for row in rows:
        try:
            name, *values = row
            named = dict(zip(_TABLE, map(float, values), strict=True))
        except ValueError:
            named = {"": math.nan}
        if not all(map(math.isfinite, named.values())):
            raise ValueError(
                f"DOVER wrote the row {', '.join(row)!r}, expected a path and three scores; is it another version?"
            )
        scores[Path(name).stem] = {column.name: named[column.name] for column in COLUMNS}
    return scores
