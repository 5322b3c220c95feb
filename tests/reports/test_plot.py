"""Pictures: what is drawn, and that files appear whole or not at all."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from keras_sensprune.errors import ArgumentError, MissingPackageError
from keras_sensprune.records import HISTOGRAM_EDGES, LayerRecord, SparsityReport
from keras_sensprune.reports.plot import plot_input_pixels, plot_report

matplotlib = pytest.importorskip("matplotlib")

BINS = len(HISTOGRAM_EDGES) - 1
FC1 = LayerRecord("net/fc1", "Dense", (10, 10), 100, 5, 10, 5, 10, 2, True, (0,) * (BINS - 2) + (3, 2))
EMPTY = LayerRecord("net/fc2", "Dense", (10, 10), 100, 0, 10, 5, 10, 10, True, (0,) * BINS)
NORM = LayerRecord("net/norm", "BatchNormalization", (10,), 0, 0, 20, 10, 0, 0, False)
REPORT = SparsityReport("net", (FC1, EMPTY, NORM))
PNG = b"\x89PNG\r\n\x1a\n"


def test_bars_show_percent_and_count_of_each_layer():
    bars, _ = plot_report(REPORT).axes
    assert [text.get_text() for text in bars.texts] == ["5.00 %  (5)", "0.00 %  (0)", "no weights"]
    left = bars.get_xlim()[0]
    assert [bar.get_width() for bar in bars.patches] == [5.0, left, left]  # nothing left: no visible bar
    assert [label.get_text() for label in bars.get_yticklabels()] == ["net/fc1", "net/fc2", "net/norm"]


def test_histogram_lines_are_the_recorded_counts_over_the_recorded_edges():
    _, lines = plot_report(REPORT).axes
    (line,) = lines.patches  # the empty layer and the one without weights have none
    assert tuple(line.get_data().values) == FC1.histogram
    assert tuple(line.get_data().edges) == HISTOGRAM_EDGES
    assert line.get_label() == "net/fc1"


def test_headline_is_name_and_compression_unless_given():
    assert plot_report(REPORT).get_suptitle() == "net: 40.0x compression of the weights"  # 200 / 5
    assert plot_report(SparsityReport("net", (EMPTY,))).get_suptitle() == "net"  # infinite
    assert plot_report(REPORT, title="Mine").get_suptitle() == "Mine"


def test_written_file_is_a_whole_png_and_nothing_else_is_left(tmp_path):
    assert plot_report(REPORT, tmp_path / "report.png") == tmp_path / "report.png"
    assert plot_input_pixels([[0, 1], [2, 3]], str(tmp_path / "pixels.png")) == tmp_path / "pixels.png"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pixels.png", "report.png"]
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert content.startswith(PNG)
        assert b"IEND" in content[-12:]


def test_existing_file_is_kept_unless_overwrite(tmp_path):
    path = tmp_path / "report.png"
    path.write_text("mine")
    with pytest.raises(ArgumentError) as caught:
        plot_report(REPORT, path)
    assert str(caught.value) == (
        f"Argument `path` must be a file that does not exist yet. Received: {str(path)!r}. "
        "Pass overwrite=True to replace it."
    )
    assert path.read_text() == "mine"
    plot_report(REPORT, path, overwrite=True)
    assert path.read_bytes().startswith(PNG)


def test_failure_while_writing_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "report.png"
    path.write_text("mine")

    def fails(self, file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    with pytest.raises(OSError, match=r"^disk full$"):
        plot_report(REPORT, path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["report.png"]
    assert path.read_text() == "mine"


def test_wrong_paths_are_refused_before_drawing(tmp_path):
    with pytest.raises(ArgumentError) as caught:
        plot_report(REPORT, "report.pdf")
    assert str(caught.value) == "Argument `path` must be a file name that ends in .png. Received: 'report.pdf'."
    absent = str(tmp_path / "absent" / "report.png")
    with pytest.raises(ArgumentError) as caught:
        plot_report(REPORT, absent)
    assert str(caught.value).startswith("Argument `path` must be in a folder that exists. Received: ")


@pytest.mark.parametrize("layers", [(), (NORM,)])
def test_report_without_weights_is_refused(layers):
    with pytest.raises(ArgumentError, match=r"^Argument `report` must be a report with at least one layer that has"):
        plot_report(SparsityReport("net", layers))


def test_many_layers_with_long_paths_fit_without_a_legend(tmp_path):
    many = tuple(dataclasses.replace(FC1, path=f"net/{'block/' * 9}{i}") for i in range(40))
    figure = plot_report(SparsityReport("net", many))
    bars, lines = figure.axes
    assert lines.get_legend() is None
    assert max(len(label.get_text()) for label in bars.get_yticklabels()) == 28
    plot_report(SparsityReport("net", many), tmp_path / "many.png")


def test_pixels_are_drawn_as_given_and_counted_in_the_title():
    counts = [[0] * 28 for _ in range(28)]
    counts[3][4] = 7
    figure = plot_input_pixels(counts)
    axes, bar = figure.axes
    assert axes.images[0].get_array().tolist() == counts
    assert axes.images[0].get_clim() == (1, 7)  # zero lies below: gray
    assert axes.get_title() == "1 of 784 input pixels are connected"
    assert bar.get_ylabel() == "nonzero first-layer weights"
    assert plot_input_pixels(counts, title="Mine").axes[0].get_title() == "Mine"


def test_picture_without_any_connected_pixel_can_be_drawn(tmp_path):
    plot_input_pixels([[0, 0]], tmp_path / "none.png")
    assert (tmp_path / "none.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("counts", [[1, 2], [[1], [2, 3]], [[0.5]], [[-1]], [], [[]], None, [["a"]]])
def test_counts_that_are_no_rectangle_of_counts_are_refused(counts):
    with pytest.raises(ArgumentError) as caught:
        plot_input_pixels(counts)
    assert str(caught.value) == (
        f"Argument `counts` must be a rectangle of integers of at least 0, shape (height, width). Received: {counts!r}."
    )


def test_global_backend_is_not_touched():
    before = matplotlib.rcParams._get("backend")  # reading it the usual way would choose one
    had_pyplot = "matplotlib.pyplot" in sys.modules
    plot_report(REPORT)
    assert matplotlib.rcParams._get("backend") == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_missing_matplotlib_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (lambda: plot_report(REPORT), lambda: plot_input_pixels([[1]])):
        with pytest.raises(MissingPackageError) as caught:
            draw()
        assert str(caught.value) == 'Plots need Matplotlib: pip install "keras-sensprune[demo]"'
