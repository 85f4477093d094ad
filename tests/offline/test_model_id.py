"""The model's id: kept by its folder and by the releases that are made of it."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from hotplate.offline import publish
from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.offline.model import Model, load, save
from hotplate.stores.manifest import Manifest
from hotplate.stores.transfer import copy
from hotplate.stores.verification import load_manifest
from tests.support.interactions import checkerboard_model
from tests.support.memory_store import MemoryStore


async def published(model: Model, length: int = 5) -> tuple[MemoryStore, Manifest]:
    store = MemoryStore()
    written = await publish.publish(ModelLists(model, ListSettings(length=length)), store)
    return store, written.result.manifest


def test_a_saved_model_has_the_id_of_the_one_in_memory(tmp_path: Path) -> None:
    model = checkerboard_model()
    save(model, tmp_path / "model")
    assert load(tmp_path / "model").id == model.id
    assert replace(model, created_at=model.created_at + timedelta(seconds=1)).id != model.id


async def test_two_publishes_of_one_model_have_the_same_lists() -> None:
    model = checkerboard_model()
    (_, first), (_, second) = await published(model), await published(model)
    assert first.release != second.release
    assert first.model == second.model == model.id
    assert first.has_lists_of(second)


async def test_other_models_and_other_lengths_have_other_lists() -> None:
    model = checkerboard_model()
    later = replace(model, created_at=model.created_at + timedelta(days=1))
    (_, first), (_, shorter), (_, other) = await published(model), await published(model, 4), await published(later)
    assert not first.has_lists_of(shorter)
    assert not first.has_lists_of(other)


async def test_copies_keep_the_models_id() -> None:
    store, manifest = await published(checkerboard_model())
    target = MemoryStore()
    await copy(store, target, manifest.release)
    copied = await load_manifest(target, (await target.catalogue()).find(manifest.release).ref)
    assert copied.model == manifest.model
    assert copied.has_lists_of(manifest)
