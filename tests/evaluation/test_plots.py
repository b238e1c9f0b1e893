"""Pictures that no report draws."""

import pytest

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.evaluation import plots


def test_curves_go_through_their_points_from_zero(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure) or path)
    series = {"before": [(1, 20.0), (8, 60.0)], "after_$x$": [(1, 40.0), (8, 240.0)]}
    plots.plot_curves(tmp_path / "curves.png", series, "streams", "speed")
    panel = drawn[0].axes[0]
    lines = {line.get_label(): [*zip(*line.get_data(), strict=True)] for line in panel.get_lines()}
    assert lines == {name: [(float(x), y) for x, y in points] for name, points in series.items()}
    assert panel.get_xlim()[0] == panel.get_ylim()[0] == 0
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("streams", "speed")
    drawn[0].canvas.draw()  # a name that looks like a formula is text
    assert not any(text.get_parse_math() for text in panel.get_legend().get_texts())


def test_no_points_are_an_error(tmp_path):
    with pytest.raises(UserError, match="there are no points"):
        plots.plot_curves(tmp_path / "curves.png", {"a": []}, "x", "y")
