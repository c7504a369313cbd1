"""The adapter of pyiqa, against a stand-in that is called as pyiqa is."""

import sys
from types import ModuleType
from urllib.error import URLError

import pytest
import torch

from flashvideo.evaluation.learned import LEARNED, learned_measures
from flashvideo.evaluation.measures import Subject, score


class StandIn:
    """A metric whose value is the mean of the picture, or its mean distance to the reference."""

    def __init__(self, name, device, options):
        self.name, self.device, self.options = name, device, options
        self.metric_mode = "FR" if name in ("lpips", "dists") else "NR"
        self.lower_better = self.metric_mode == "FR"
        self.shapes = []

    def __call__(self, target, ref=None):
        for picture in (target,) if ref is None else (target, ref):
            assert picture.min() >= 0 and picture.max() <= 1  # pyiqa refuses others
            self.shapes.append(tuple(picture.shape))
        return (target.mean() if ref is None else (target - ref).abs().mean()).reshape(1, 1)


@pytest.fixture
def made(monkeypatch):
    """The metrics that the stand-in has made."""
    module, metrics = ModuleType("pyiqa"), []

    def create_metric(metric_name, as_loss=False, device=None, **options):
        print(f"Loading pretrained model {metric_name}")
        if module.failure is not None:
            raise module.failure
        metrics.append(StandIn(metric_name, device, options))
        return metrics[-1]

    module.failure, module.__version__ = None, "0.1.16"
    module.create_metric = create_metric
    module.list_models = lambda: ["brisque", "niqe", *LEARNED]
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    return metrics


def clip(value, *, num_frames=3, size=(32, 48)):
    return torch.full((num_frames, 3, *size), value)


@pytest.mark.usefixtures("made")
def test_a_measure_knows_its_direction_and_what_it_needs():
    musiq, clipiqa, lpips, brisque = learned_measures(["musiq", "clipiqa", "lpips", "brisque"])
    assert (musiq.name, musiq.label, musiq.better, musiq.needs) == ("musiq", "MUSIQ", "higher", "")
    assert (lpips.name, lpips.label, lpips.better, lpips.needs) == ("lpips", "LPIPS", "lower", "reference")
    assert (clipiqa.label, brisque.label) == ("CLIP-IQA", "BRISQUE")


def test_metrics_are_made_once_on_the_device_asked_for(made):
    measures = learned_measures(device="meta")
    assert [metric.name for metric in made] == [measure.name for measure in measures] == list(LEARNED)
    assert all(metric.device == torch.device("meta") and not metric.options for metric in made)


def test_frames_are_seen_one_at_a_time_between_0_and_1(made):
    (musiq,) = learned_measures(["musiq"])
    frames = torch.stack([clip(-1.0)[0], clip(0.5)[0], clip(1.5)[0]])  # 0, 0.75, and 1 once clamped
    assert musiq.compute(Subject(frames=frames)) == pytest.approx(1.75 / 3)
    assert made[0].shapes == [(1, 3, 32, 48)] * 3


@pytest.mark.usefixtures("made")
def test_a_reference_is_compared_frame_by_frame():
    measures = learned_measures(["musiq", "lpips"])
    alone, pair = Subject(frames=clip(0.5)), Subject(frames=clip(0.5), reference=clip(0.0))
    assert score(alone, measures) == pytest.approx({"musiq": 0.75})
    assert score(pair, measures) == pytest.approx({"musiq": 0.75, "lpips": 0.25})


@pytest.mark.usefixtures("made")
def test_frames_too_small_for_the_networks_have_no_value():
    small = Subject(frames=clip(0.5, size=(31, 48)))
    assert score(small, learned_measures(["musiq"])) == {}


@pytest.mark.usefixtures("made")
def test_other_weights_are_another_variant(tmp_path):
    variants = {learned_measures(["musiq"])[0].variant}
    for content in ("one", "other"):
        (tmp_path / "musiq.pth").write_text(content)
        variants.add(learned_measures(["musiq"], weights=tmp_path)[0].variant)
    assert len(variants) == 3
    assert all("pyiqa 0.1.16" in variant for variant in variants)


def test_a_folder_of_weights_reaches_pyiqa(made, tmp_path):
    for name in ("musiq", "lpips"):
        (tmp_path / f"{name}.pth").touch()
    learned_measures(["musiq", "lpips"], weights=tmp_path)
    expected = [{"pretrained_model_path": str(tmp_path / f"{name}.pth")} for name in ("musiq", "lpips")]
    assert [metric.options for metric in made] == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("musik", "no metric 'musik'; did you mean 'musiq'"),
        ("niqe", "niqe is measured without pyiqa already; leave it out"),
        ("lpips", r"lpips\.pth does not exist, expected pyiqa's weights of lpips"),
        ("clipiqa", "takes no file of weights for clipiqa, only for musiq, lpips, dists"),
    ],
)
def test_names_and_weights_that_do_not_fit_are_refused_before_anything_is_made(made, tmp_path, name, message):
    (tmp_path / "musiq.pth").touch()
    with pytest.raises(ValueError, match=message):
        learned_measures(["musiq", name], weights=tmp_path)
    assert not made


@pytest.mark.usefixtures("made")
def test_weights_that_cannot_be_downloaded_are_one_sentence():
    sys.modules["pyiqa"].failure = URLError("no route to host")
    with pytest.raises(
        ValueError, match=r"could not get its weights of musiq \(.*no route to host.*copy the folders"
    ):
        learned_measures(["musiq"])


@pytest.mark.usefixtures("made")
def test_a_file_of_other_weights_is_one_sentence(tmp_path):
    (tmp_path / "musiq.pth").touch()
    sys.modules["pyiqa"].failure = RuntimeError("Missing keys:\n a, b")
    with pytest.raises(
        ValueError, match=r"musiq\.pth does not hold pyiqa's weights of musiq: Missing keys:$"
    ):
        learned_measures(["musiq"], weights=tmp_path)


@pytest.mark.usefixtures("made")
def test_what_pyiqa_prints_does_not_come_among_results(capsys):
    learned_measures(["musiq"])
    assert capsys.readouterr().out == ""


def test_a_missing_pyiqa_is_one_sentence_that_names_its_licence(monkeypatch):
    monkeypatch.delitem(sys.modules, "pyiqa", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoPyiqa(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"pyiqa is not installed.*PolyForm.*'flashvideo\[metrics\]'"):
        learned_measures(["musiq"])


class NoPyiqa:
    """A finder in whose environment there is no pyiqa."""

    def find_spec(self, name, path=None, target=None):
        if name == "pyiqa":
            raise ModuleNotFoundError("No module named 'pyiqa'", name=name)
