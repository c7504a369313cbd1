"""Stands in for the Python of an environment with vbench 0.1.5, or beside a clone of its repository.

It answers to the same arguments, refuses others, writes results of the same form, and keeps each call in `calls.txt`
beside itself. A dimension named in `fails.txt` ends in a traceback, one in `silent.txt` leaves no score; `still.txt` is
how many videos of a prompt hold still.
"""

import argparse
import json
import sys
from pathlib import Path

HOME = Path(__file__).parent
INFO = HOME / "vbench" / "VBench_full_info.json"


def listed(name):
    path = HOME / name
    return path.read_text().split() if path.exists() else []


def static_filter(words):
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["static_filter"])
    parser.add_argument("--videos_path", required=True)
    parser.add_argument("--result_path", required=True)
    arguments = parser.parse_args(words)
    kept = Path(arguments.result_path) / "filtered_videos"
    kept.mkdir(parents=True)
    still = int((listed("still.txt") or ["5"])[0])
    for entry in json.loads(INFO.read_text()):
        if "temporal_flickering" in entry["dimension"]:
            names = sorted(Path(arguments.videos_path).glob(f"{entry['prompt_en']}-*.mp4"))[:still]
            for i, path in enumerate(names):
                (kept / f"{entry['prompt_en']}-{i}.mp4").write_bytes(path.read_bytes())


def evaluate(words, *, is_long):
    parser = argparse.ArgumentParser()
    for name in ("--videos_path", "--dimension", "--full_json_dir", "--output_path", "--mode"):
        parser.add_argument(name, required=True)
    if is_long:
        parser.add_argument("--dev_flag", action="store_true", required=True)
        parser.add_argument("--static_filter_flag", action="store_true")
    arguments = parser.parse_args(words)
    assert arguments.mode == ("long_vbench_standard" if is_long else "vbench_standard")
    if arguments.dimension in listed("fails.txt"):
        print("a bar: 50%\r", end="", file=sys.stderr)
        raise RuntimeError("CUDA out of memory")
    details = []
    for entry in json.loads(Path(arguments.full_json_dir).read_text()):
        if arguments.dimension in entry["dimension"]:
            for i in range(5):
                path = Path(arguments.videos_path) / f"{entry['prompt_en']}-{i}.mp4"
                if path.exists():
                    details.append({"video_path": str(path), "video_results": 64.0})
    if arguments.dimension in listed("silent.txt"):
        return
    score = len(details) / 100  # told by the number of videos that were found
    result = [score, details, details] if is_long else [score, details]
    path = Path(arguments.output_path) / "results_2026-01-01-00:00:00_eval_results.json"
    path.write_text(json.dumps({arguments.dimension: result}))


def main(words):
    with (HOME / "calls.txt").open("a") as file:
        file.write(json.dumps(words) + "\n")
    if words[0] == "-c" and "find_spec" in words[1]:
        print(json.dumps([str(HOME / "vbench"), "0.1.5"]) if INFO.exists() else "null")
    elif words[0] == "-c":
        static_filter(words[2:])
    elif words[:2] == ["-m", "vbench.launch.evaluate"]:
        evaluate(words[2:], is_long=False)
    else:
        assert words[0].endswith("/vbench2_beta_long/eval_long.py"), words
        evaluate(words[1:], is_long=True)


main(sys.argv[1:])
