import json

import pytest

from espnet_speechllm_xl.corpus.ctm import Word, write_ctm
from espnet_speechllm_xl.evaluation import plots
from espnet_speechllm_xl.evaluation.alignment_report import alignment_report

PNG = b"\x89PNG\r\n\x1a\n"


def test_alignment_report(tmp_path):
    ours = {
        "u1": [Word("a", 0, 0.40), Word("b", 0.5, 0.92), Word("c", 1.0, 1.20)],
        "u2": [Word("a", 0, 0.36)],
        "u3": [Word("x", 0, 0.2)],
    }
    reference = {
        "u1": [Word("a", 0, 0.45), Word("b", 0.5, 0.90), Word("c", 1.0, 1.30)],
        "u2": [Word("a", 0, 0.40)],
        "u3": [Word("y", 0, 0.2)],
        "u4": [Word("z", 0, 0.2)],
        "u5": [Word("z", 0, 0.2)],
    }
    write_ctm(tmp_path / "ours.ctm", ours)
    write_ctm(tmp_path / "ref.ctm", reference)
    out = tmp_path / "report"
    content = alignment_report(tmp_path / "ours.ctm", tmp_path / "ref.ctm", out, {"u4": "too few frames"})
    # Differences: -50, +20 (not last), -100, -40 (last).
    assert content["words"] == 4
    assert (content["delay_ms"], content["delta_ms"]) == pytest.approx((-42.5, 52.5))
    assert content["non_final"]["words"] == 2
    assert (content["non_final"]["delay_ms"], content["non_final"]["delta_ms"]) == pytest.approx((-15.0, 35.0))
    assert (content["final"]["delay_ms"], content["final"]["delta_ms"]) == pytest.approx((-70.0, 70.0))
    assert content["utterances"] == {
        "total": 5,
        "matched": 2,
        "unmatched": {"not in the alignment": 1, "other words than the reference": 1, "too few frames": 1},
    }
    assert content["unmatched"]["u4"] == "too few frames"
    assert json.loads((out / "delay.json").read_text(encoding="utf-8")) == content
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "|all|4|-42.5|52.5|-45.0|100.0|" in text
    assert "|last of the utterance|2|-70.0|70.0|-70.0|100.0|" in text
    assert "Utterances: 5, of them compared: 2, not compared: 3." in text
    assert (out / "delay.png").read_bytes().startswith(PNG)


def test_alignment_report_without_a_match(tmp_path):
    write_ctm(tmp_path / "ours.ctm", {"u1": [Word("a", 0, 1)]})
    write_ctm(tmp_path / "ref.ctm", {"u2": [Word("a", 0, 1)]})
    content = alignment_report(tmp_path / "ours.ctm", tmp_path / "ref.ctm", tmp_path)
    assert content["words"] == 0 and content["delay_ms"] is None
    assert content["utterances"]["total"] == 2
    assert "|all|0|-|-|-|-|" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not (tmp_path / "delay.png").exists()


def test_the_latency_curve_names_its_chunk_sizes_beside_it():
    points = [("0.32 s", 1.4, 0.4, 0.6), ("$1$ s", 1.7, 0.5, 0.9), ("2.56 s", 3.4, -0.1, 2.3)]
    panel = plots.latency_curve(points).axes[0]
    legend = panel.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["0.32 s", "$1$ s", "2.56 s"]
    (low, high), top = panel.get_xlim(), panel.get_ylim()[1]
    assert low < -0.1 and high > 2.3 and top > 3.4  # all points and whiskers are on the axes
