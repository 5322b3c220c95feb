import pytest

from keras_sensprune.errors import ArgumentError
from keras_sensprune.records import LayerRecord, SparsityReport
from keras_sensprune.reports.plot_sizes import plot_before_after, plot_size_waterfall


def report(**nonzero):
    rows = [LayerRecord(n, "Dense", (10, 10), 100, k, 10, 10, 10, 0, True) for n, k in nonzero.items()]
    return SparsityReport("net", tuple(rows))


def test_every_layer_has_a_bar_per_state_and_one_for_its_nonzero_weights():
    figure = plot_before_after(report(a=100, b=100), report(a=7, b=3))
    widths = sorted(patch.get_width() for patch in figure.axes[0].patches)
    assert widths == [3, 7, 100, 100, 100, 100, 100, 100]
    assert figure.axes[0].get_title() == "net: 200 weights stored, then 200, 10 of them nonzero"


def test_a_layer_that_is_gone_has_no_bar_after():
    figure = plot_before_after(report(a=100, b=100), report(a=50))
    assert len(figure.axes[0].patches) == 6
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_a_report_without_weights_is_refused_by_name():
    with pytest.raises(ArgumentError, match="Argument `after` must be a report with at least one layer"):
        plot_before_after(report(a=1), SparsityReport("net", ()))


def test_the_waterfall_says_every_size_and_its_share():
    figure = plot_size_waterfall([("dense", 4096), ("pruned", 1024), ("gzip", 512)])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["4.0 KiB", "1.0 KiB\n25 %", "0.5 KiB\n12.5 %"]
    assert figure.axes[0].get_title() == "8.0x smaller"


@pytest.mark.parametrize("stages", [[], [("dense", 1)], [("dense", 10), ("pruned", 0)], [("dense", 1.5), ("x", 2)]])
def test_stages_that_are_none_are_refused(stages):
    with pytest.raises(ArgumentError, match="Argument `stages` must be two or more pairs"):
        plot_size_waterfall(stages)


def test_a_picture_is_written_whole_and_never_over_another(tmp_path):
    path = tmp_path / "sizes.png"
    assert plot_size_waterfall([("dense", 10), ("pruned", 5)], path) == path
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArgumentError, match="overwrite=True"):
        plot_size_waterfall([("dense", 10), ("pruned", 5)], path)
    assert [file.name for file in tmp_path.iterdir()] == ["sizes.png"]
