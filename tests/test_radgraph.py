"""RadGraph against what the package radgraph 0.1.18 read with the same random weights (bench/record_radgraph.py)."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from data.files import UserError
from metrics.radgraph import LEVELS, Entity, RadGraph, compare, words_of
from tests.bench import record_radgraph
from tests.bench.record_radgraph import NAMES, write_archive

RECORDED = json.loads((Path(__file__).parent / "golden" / "radgraph.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_archive(tmp_path_factory.mktemp(name), name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_entities_and_relations_equal_the_packages(folders, name):
    graphs = RadGraph.from_pretrained(folders[name])(RECORDED["texts"], progress=False)
    found = [[[*entity[:4], sorted(map(list, entity.relations))] for entity in graph] for graph in graphs]
    assert found == [[[*entity[:4], sorted(entity[4])] for entity in graph] for graph in RECORDED["entities"][name]]
    entities = [entity for graph in found for entity in graph]
    assert len(entities) > 500 and sum(len(entity[4]) for entity in entities) > 200
    assert len({entity[1] for entity in entities}) > 1, "the comparison could fail"


def test_recorded_texts_are_longer_than_bert_reads_at_once():
    """So that cutting in pieces has its part in the comparison."""
    assert max(len(words_of(text, "radgraph")) for text in RECORDED["texts"]) > record_radgraph.LONGEST


def test_words():
    assert words_of("No effusion/edema, T8-T9 (2.3cm).", "radgraph") == \
        "No effusion / edema , T8-T9 ( 2 . 3cm ) .".split()
    assert words_of("No effusion/edema (5%). \\n T8-T9", "radgraph-xl") == \
        "No effusion / edema ( 5 %). T8 - T9".replace("%).", "% ) .").split()
    for name in NAMES:
        assert words_of(" \n ", name) == words_of("", name) == []


def entity(words, label="Observation", relations=()):
    return Entity(words, label, 0, 0, tuple(relations))


def test_levels_by_hand():
    hypothesis = [entity("Effusion", relations=[("located_at", 1)]), entity("left", "Anatomy"), entity("edema")]
    reference = [entity("effusion", relations=[("located_at", 1)]), entity("left", "Anatomy"), entity("Edema")]
    # Case counts, but not for what has a relation in "complete".
    assert compare("simple", hypothesis, reference) == pytest.approx(2 * 1 / 6)
    assert compare("partial", hypothesis, reference) == pytest.approx(2 * 1 / 6)
    assert compare("complete", hypothesis, reference) == pytest.approx(2 * 2 / 6)
    assert compare("combined", hypothesis, reference) == pytest.approx((2 * 1 / 6 + 0) / 2)
    without = [entity("Effusion"), entity("left", "Anatomy")]
    assert compare("simple", without, hypothesis) == pytest.approx(2 * 2 / 5)
    assert compare("partial", without, hypothesis) == pytest.approx(2 * 1 / 5)
    assert compare("combined", hypothesis, hypothesis) == 1 and compare("combined", without, without) == 0.5
    for level in LEVELS:
        assert compare(level, [], []) == compare(level, [], reference) == compare(level, reference, []) == 0


def test_scores_of_pairs_and_texts_read_once(folders, monkeypatch):
    reader, read = RadGraph.from_pretrained(folders["radgraph"]), []
    vectors = reader.word_vectors
    monkeypatch.setattr(reader, "word_vectors", lambda words: read.extend(words) or vectors(words))
    texts = RECORDED["texts"][:8]
    scores = reader.scores(texts * 2, [*texts[1:], ""] * 2, progress=False)
    again = reader.scores(texts, texts)
    assert len(read) == len(set(read)) == 9 and list(scores) == list(LEVELS)
    assert all(values.shape == (16,) and np.array_equal(values[:8], values[8:]) for values in scores.values())
    assert all(values[7] == 0 for values in scores.values()) and again["simple"].max() == 1


def test_an_archive_of_physionet_names_no_data_set(tmp_path):
    """Its one namespace is "None"; the scorers of another data set are left out."""
    name = "radgraph"
    state = {key.replace(f".{name}__", ".None__"): tensor for key, tensor in record_radgraph.weights(name).items()}
    state["_ner._ner_scorers.other__ner_labels.1._module.bias"] = torch.zeros(3)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    vocabulary = {f"vocabulary/{name}__{kind}_labels.txt": None for kind in ("ner", "relation")}
    vocabulary |= {"vocabulary/None__ner_labels.txt": "\n".join(record_radgraph.ENTITIES).encode(),
                   "vocabulary/None__relation_labels.txt": "\n".join(record_radgraph.RELATIONS).encode()}
    folder = write_archive(tmp_path, name, changed={"weights.th": buffer.getvalue(), **vocabulary})
    graphs = RadGraph.from_pretrained(folder)(RECORDED["texts"][:3], progress=False)
    assert [len(graph) for graph in graphs] == [len(graph) for graph in RECORDED["entities"][name][:3]]


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("/tmp/radgraph-was-unpickled"),)


def pickled(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def changed_config(**changes):
    return json.dumps({**record_radgraph.config("bert"), **changes}).encode()


@pytest.mark.parametrize("changed", [
    {"weights.th": None}, {"config.json": None}, {"config.json": b"{"}, {"config.json": b"[]"},
    {"config.json": changed_config(model={})}, {"weights.th": b"torn"}, {"weights.th": pickled({"a": Evil()})},
    {"weights.th": pickled([1])}, {"weights.th": pickled({"a": torch.zeros(2)})},
    {"vocabulary/radgraph__ner_labels.txt": None}, {"vocabulary/radgraph__ner_labels.txt": b"a\nb\n"},
    {"vocabulary/radgraph__relation_labels.txt": b"\xff"}, {"config.json": b"x" * 2**21},
])
def test_what_is_no_archive_is_refused_in_one_line(tmp_path, changed):
    folder = write_archive(tmp_path, "radgraph", changed=changed)
    with pytest.raises(UserError) as caught:
        RadGraph.from_pretrained(folder)
    assert "\n" not in str(caught.value) and "radgraph.tar.gz" in str(caught.value)
    assert not Path("/tmp/radgraph-was-unpickled").exists()


def test_members_beside_the_named_ones_are_never_written(tmp_path):
    """Paths out of the folder, links, and devices stay in the archive."""
    outside = {"../outside.txt": b"x", "/tmp/radgraph-outside": b"x"}
    folder = write_archive(tmp_path / "folder", "radgraph", changed=outside)
    with tarfile.open(folder / "radgraph.tar.gz") as archive:
        assert "../outside.txt" in archive.getnames()
    RadGraph.from_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "radgraph.tar.gz", "vocab.txt"]
    assert not (tmp_path / "outside.txt").exists() and not Path("/tmp/radgraph-outside").exists()


def test_the_folder_has_one_archive(folders, tmp_path):
    with pytest.raises(UserError, match="neither"):
        RadGraph.from_pretrained(tmp_path)
    for name in NAMES:
        write_archive(tmp_path, name)
    with pytest.raises(UserError, match="both"):
        RadGraph.from_pretrained(tmp_path)
    (tmp_path / "radgraph.tar.gz").write_bytes((tmp_path / "radgraph-xl.tar.gz").read_bytes()[:300])
    (tmp_path / "radgraph-xl.tar.gz").unlink()
    with pytest.raises(UserError, match="radgraph.tar.gz"):
        RadGraph.from_pretrained(tmp_path)
