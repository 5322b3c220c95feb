"""The file of a search: whole or not at all, and never of another search. No model is needed for that."""

from __future__ import annotations

import dataclasses

import pytest

from keras_sensprune.errors import ArgumentError, DataError
from keras_sensprune.planning.record_file import RecordFile
from keras_sensprune.records import FitSettings, PruneRecord, SearchRange, SearchRecord, SearchTrial, from_json, to_json

SETTINGS = FitSettings("60 examples", 100, 5, 32, "accuracy", "max", "kind=auto", 0)
PLAN = SearchRecord(SETTINGS, (SearchRange("strength", 1e-4, 1e-2),), "nonzero weights", 100)
DONE = dataclasses.replace(PLAN, trials=(SearchTrial((1e-3,), 2.5, 40, 0.6, 2.5, 1.0),), front=(0,))


def sound(record):
    return True


def test_a_record_comes_back_and_a_file_that_is_missing_is_the_plan(tmp_path):
    path = tmp_path / "search.json"
    assert RecordFile(path).resumed(PLAN, sound) is PLAN
    RecordFile(path).write(DONE)
    assert RecordFile(path).resumed(PLAN, sound) == DONE
    assert from_json(path.read_text()) == DONE
    assert [each.name for each in tmp_path.iterdir()] == ["search.json"]


def test_without_a_path_nothing_is_read_or_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RecordFile(None).write(DONE)
    assert RecordFile(None).resumed(PLAN, sound) is PLAN
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "This is not JSON"),
        (to_json(DONE).encode()[:-40], "This is not JSON"),
        (to_json(DONE).encode().replace(b"2.5", b"[2.5]"), "wrong field"),
        (b"\xff\xfe\x00", "it cannot be read as a SearchRecord (UnicodeDecodeError"),
        (b"3", "it holds no SearchRecord (type: int)."),
        (to_json(PruneRecord(0, 1e-3, 6, 4, 2, 0.5)).encode(), "it holds no SearchRecord (type: PruneRecord)."),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_and_stays(tmp_path, content, message):
    path = tmp_path / "search.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        RecordFile(path).resumed(PLAN, sound)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert str(caught.value).endswith(" Delete it to begin anew, or choose another path.")
    assert path.read_bytes() == content


def test_a_file_of_other_settings_says_which(tmp_path):
    path = tmp_path / "search.json"
    RecordFile(path).write(DONE)
    other = dataclasses.replace(PLAN, settings=dataclasses.replace(SETTINGS, epochs=6, metric="loss"), dense_size=7)
    with pytest.raises(DataError) as caught:
        RecordFile(path).resumed(other, sound)
    assert str(caught.value) == (
        f"{path}: it belongs to a search with other settings: epochs was 5, now it is 6; metric was 'accuracy', now it "
        "is 'loss'; dense_size was 100, now it is 7. Delete it to begin anew, or choose another path."
    )


def test_parts_that_do_not_fit_together_are_damage(tmp_path):
    path = tmp_path / "search.json"
    RecordFile(path).write(DONE)
    with pytest.raises(DataError, match="it is damaged: its parts do not fit together"):
        RecordFile(path).resumed(PLAN, lambda record: False)


def test_a_disk_that_is_full_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "search.json"
    RecordFile(path).write(PLAN)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("keras_sensprune.planning.record_file.os.fsync", full)
    with pytest.raises(DataError, match=r"could not be written .*Make room, and start the same search again"):
        RecordFile(path).write(DONE)
    assert from_json(path.read_text()) == PLAN


@pytest.mark.parametrize("path", ["", 3, "missing/search.json", "."])
def test_a_path_at_which_no_file_can_be_made_is_refused_at_once(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match="Argument `path` must be the path of a file"):
        RecordFile(path)
