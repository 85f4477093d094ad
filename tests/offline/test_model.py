"""The model folder: saved and loaded unchanged, replaced atomically, and damage is an error."""

import json
import os
import re
import resource
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest

from hotplate.offline.errors import DataError, ModelUnusable
from hotplate.offline.input.matrix import to_matrix
from hotplate.offline.input.sample import sample
from hotplate.offline.model import Model
from hotplate.offline.model_folder import load, save
from hotplate.offline.train.als import ALSParams, Factors
from hotplate.offline.train.blend import BlendParams
from hotplate.offline.train.engine import Params, described, fit
from hotplate.offline.train.item_based import EASEParams, NeighbourParams
from hotplate.offline.train.popularity import PopularityParams, Recency, most_popular, popular_by_segment
from hotplate.offline.train.similar import SimilarParams
from hotplate.offline.train.similar import fit as fit_similar
from tests.support.interactions import DATA, evaluated

PARAMS = ALSParams(factors=4, iterations=2)


@pytest.fixture(scope="module")
def model() -> Model:
    frame = sample(50, 20)
    matrix = to_matrix(frame)
    return Model(
        ranker=fit(matrix.user_items, PARAMS),
        matrix=matrix,
        titles={matrix.item_ids[0]: "Ünter / % 'quoted'"},
        popular=most_popular(matrix, 10),
        segments=popular_by_segment(
            frame.select("segment", "item", "weight").unique(["segment", "item"]), matrix.item_ids, 3
        ),
        params=PARAMS,
        evaluation=evaluated(),
        data=msgspec.structs.replace(
            DATA, left_out={"no user": 1}, time_range=("2026-01-01T00:00:00", "2026-01-02T00:00:00")
        ),
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        similar=fit_similar(matrix.user_items, SimilarParams()),
    )


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    """The folder of a saved model."""
    save(model, tmp_path / "model")
    return tmp_path / "model"


def test_saved_model_is_loaded_unchanged(model: Model, tmp_path: Path) -> None:
    save(model, tmp_path / "deep" / "model")
    loaded = load(tmp_path / "deep" / "model")
    assert isinstance(loaded.ranker, Factors)
    assert isinstance(model.ranker, Factors)
    assert np.array_equal(loaded.ranker.user_factors, model.ranker.user_factors)
    assert np.array_equal(loaded.ranker.item_factors, model.ranker.item_factors)
    assert loaded.ranker.item_factors.dtype == np.float32
    assert loaded.matrix.times is not None
    assert model.matrix.times is not None
    assert np.array_equal(loaded.matrix.times, model.matrix.times)
    assert (loaded.matrix.user_items != model.matrix.user_items).nnz == 0
    assert loaded.matrix.user_items.has_canonical_format
    assert replace(loaded.matrix, user_items=None, history=None) == replace(model.matrix, user_items=None, history=None)
    assert loaded.popular.items.tolist() == model.popular.items.tolist()
    assert loaded.popular.scores.tolist() == model.popular.scores.tolist()
    assert list(loaded.segments) == list(model.segments) == ["east", "north", "south", "west"]
    assert all(loaded.segments[name].items.tolist() == model.segments[name].items.tolist() for name in model.segments)
    for name in ("titles", "params", "evaluation", "search", "data", "created_at"):
        assert getattr(loaded, name) == getattr(model, name)


@pytest.mark.parametrize(
    "params",
    [
        replace(PARAMS, recency=Recency(9, 0.5)),
        EASEParams(recency=Recency(9, 0.5)),
        NeighbourParams("rp3beta", recency=Recency(9, 0.5)),
        PopularityParams(9),
        BlendParams(replace(PARAMS, recency=Recency(9, 0.5)), NeighbourParams(), PopularityParams(9)),
    ],
    ids=described,
)
def test_a_model_keeps_its_recency(params: Params, model: Model, tmp_path: Path) -> None:
    user_items = model.matrix.user_items
    users = np.arange(50, dtype=np.int32)
    ranker = fit(user_items, params, times=model.matrix.times)
    save(replace(model, ranker=ranker, params=params), tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.params == params
    kept = loaded.ranker.recommend(user_items, users, 8)
    before = ranker.recommend(user_items, users, 8)
    assert all(np.array_equal(array, other) for array, other in zip(kept, before, strict=True))


def test_model_is_replaced_atomically(saved: Path, model: Model, tmp_path: Path) -> None:
    (saved / "stray").touch()
    save(replace(model, evaluation=None), saved)
    assert load(saved).evaluation is None
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (saved / "stray").exists()


def test_folder_that_is_not_a_model_is_never_overwritten(model: Model, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other things than a model"):
        save(model, tmp_path)
    with pytest.raises(DataError, match=r"notes\.txt is not a folder"):
        save(model, tmp_path / "notes.txt")
    with pytest.raises(DataError, match="cannot be written to"):
        save(model, tmp_path / "notes.txt" / "model")
    with pytest.raises(DataError, match=r"notes\.txt is a file, not a model folder; .* --out FOLDER makes one"):
        load(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save(model, tmp_path / "empty")
    assert load(tmp_path / "empty").params == PARAMS


def test_a_failure_to_write_leaves_the_old_model_and_no_draft(
    saved: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fail(*_: object, **__: object) -> None:
        raise OSError("192000 requested and 76768 written")  # as numpy says it

    monkeypatch.setattr("numpy.save", fail)
    with pytest.raises(DataError, match="the disk is full"):
        save(replace(model, evaluation=None), saved)
    assert load(saved).evaluation == model.evaluation
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_table_that_does_not_fit_the_disk_leaves_no_draft(model: Model, tmp_path: Path) -> None:
    small = replace(model, ranker=fit(model.matrix.user_items, PopularityParams()))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be written to .*model: the disk is full.* File too large"):
            save(small, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    "name",
    ["user_factors.npy", "users.parquet", "user_items.npz", "popular.parquet"],
)
@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_model_with_a_part_cut_or_missing_is_refused(saved: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(saved / name)
    with pytest.raises(DataError, match=r"is cut or changed|is incomplete or damaged") as raised:
        load(saved)
    assert name in str(raised.value)


def test_a_changed_byte_of_any_part_is_refused_by_the_name_of_the_part(saved: Path) -> None:
    for part in sorted(saved.iterdir()):
        content = part.read_bytes()
        for place in range(0, len(content), len(content) // 12):
            part.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            if part.name == "model.json" and content[place : place + 1].isspace():
                continue
            with pytest.raises(ModelUnusable, match=re.escape(part.name)):
                load(saved)
        part.write_bytes(content)
    assert load(saved).params == PARAMS


def test_places_outside_of_a_matrix_are_refused_in_a_model_without_digests(saved: Path) -> None:
    file = saved / "model.json"
    description = json.loads(file.read_text())
    del description["digests"], description["digest"]  # as in a model of an earlier version
    file.write_text(json.dumps(description))
    assert load(saved).params == PARAMS

    similar = saved / "similar.npz"
    arrays = dict(np.load(similar))
    arrays["indices"][0] = 20
    np.savez(similar, allow_pickle=False, **arrays)
    with pytest.raises(ModelUnusable, match="incomplete or damaged"):
        load(saved)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"factors": 0}, "factors is 0; it must be at least 1"),
        ({"facotrs": 9}, "the engine als has no facotrs"),
        ({"recency": {"half_life_days": 9, "gamma": 1, "decay": 1}}, "the engine als has no decay"),
    ],
)
def test_parameters_that_no_engine_has_are_refused_in_a_model(
    saved: Path, changed: dict[str, object], reason: str
) -> None:
    file = saved / "model.json"
    description = json.loads(file.read_text())
    del description["digest"]
    description["params"] |= changed
    file.write_text(json.dumps(description))
    with pytest.raises(ModelUnusable, match=rf"model\.json is incomplete or damaged .*{reason}"):
        load(saved)


@pytest.mark.parametrize("part", ["items.parquet", "gone.parquet"])
def test_a_model_that_is_replaced_while_it_is_read_is_read_again(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    path = tmp_path / "model"
    read = pl.read_parquet
    save(model, path)

    def replaced(*_: object, **__: object) -> pl.DataFrame:
        monkeypatch.setattr(pl, "read_parquet", read)
        save(replace(model, titles={}, created_at=datetime(2027, 1, 1, tzinfo=UTC)), path)
        return read(path / part)

    monkeypatch.setattr(pl, "read_parquet", replaced)
    loaded = load(path)
    assert (loaded.created_at.year, loaded.titles) == (2027, {})


def test_a_replaced_model_is_read_again_on_a_mount_without_inodes(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    read = pl.read_parquet
    stat = Path.stat
    save(model, path)

    def stat_without_inode(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        status = stat(path, follow_symlinks=follow_symlinks)
        fields = [*status[:10]]
        fields[1] = 0
        return os.stat_result(fields, {"st_mtime_ns": status.st_mtime_ns, "st_ctime_ns": 0})

    def replaced(*_: object, **__: object) -> pl.DataFrame:
        monkeypatch.setattr(pl, "read_parquet", read)
        with monkeypatch.context() as writer:
            writer.setattr(Path, "stat", stat)
            save(replace(model, created_at=datetime(2027, 1, 1, tzinfo=UTC)), path)
        return read(path / "items.parquet")

    monkeypatch.setattr(Path, "stat", stat_without_inode)
    monkeypatch.setattr(pl, "read_parquet", replaced)
    assert load(path).created_at.year == 2027


def test_a_model_between_the_two_renames_of_a_writer_is_waited_for(
    saved: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved.rename(tmp_path / ".model.old-7-0123abcd")
    monkeypatch.setattr("time.sleep", lambda _s: save(replace(model, evaluation=None), saved))
    assert load(saved).evaluation is None


def test_a_model_that_a_killed_writer_moved_away_is_named(
    saved: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved.rename(tmp_path / ".model.old-7-0123abcd")
    monkeypatch.setattr("time.sleep", lambda _s: None)
    with pytest.raises(DataError, match=r"a writer was killed .* \S+/\.model\.old-7-0123abcd; rename it to model"):
        load(saved)
    save(model, saved)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_that_is_replaced_while_it_is_described_is_read_again(
    saved: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = msgspec.json.decode

    def replaced(text: bytes) -> object:
        monkeypatch.setattr("msgspec.json.decode", decode)
        save(replace(model, titles={}), saved)  # with files of other sizes
        return decode(text)

    monkeypatch.setattr("msgspec.json.decode", replaced)
    assert load(saved).titles == {}


def test_parts_of_two_models_are_an_error(saved: Path) -> None:
    file = saved / "model.json"
    np.save(saved / "user_factors.npy", np.zeros((49, 4), dtype=np.float32))
    description = json.loads(file.read_text())
    del description["digests"], description["digest"]  # as in a model of an earlier version
    description["files"]["user_factors.npy"] = (saved / "user_factors.npy").stat().st_size
    file.write_text(json.dumps(description))
    with pytest.raises(DataError, match="do not belong together"):
        load(saved)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [('{"format": 1}', "has the format 1"), ("[]", "has the format unknown"), ('{"for', "is incomplete or damaged")],
)
def test_a_model_of_another_format_is_refused(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(DataError, match=sentence):
        load(tmp_path)
