"""BERTScore and byte-level BPE against bert_score and transformers, on random weights that transformers makes."""

import json
import random

import bert_score
import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from data.bpe import BYTE_CHARACTERS, ByteBPE, words_of
from data.files import UserError
from metrics.bertscore import LAYERS, PUBLISHED, BertScorer
from tests.bench.record_metrics import nasty_texts

MERGES = ["Ġ t", "h e", "Ġt he", "Ġ n", "o r", "e f", "f u", "s i", "si o", "Ġn o", "Ġ l", "u n", "Ġl un", "n g", "Ġ e",
          "1 2", "Ġ 1", "a r", "c l", "Ġ cl", "l e", "ff u", "f f"]
SIZES = dict(hidden_size=32, num_attention_heads=4, intermediate_size=48)
ODD = ["", " ", "no", "  lungs\n\n clear\t", "it's the patient's, they'll 1990's",
       "α-blocker naïve Ménière 98.6°F ½ cm² ²",
       "a\u00a0b\u2003c \u2028d", "x" * 300, "日本 \U0001f600 e\u0301", "12 123 1st"]


def save_roberta_tokenizer(folder):
    joined = [merge.replace(" ", "") for merge in MERGES]
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *BYTE_CHARACTERS, *joined, "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    # transformers 5 does not hear bert_score ask for the blank before a text: here it always puts it.
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "RobertaTokenizer", "model_max_length": 64, "add_prefix_space": True}))
    return len(vocabulary)


def save_wordpiece(folder, tokenizer_class):
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    words = ["the", "heart", "lung", "##s", "effusion", "no", "clear", "right", "pneumo", "##thorax"]
    vocabulary = list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters,
                                     *("##" + letter for letter in letters), *words]))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": tokenizer_class, "model_max_length": 64, "do_lower_case": True}))
    return len(vocabulary)


def make(folder, kind, layers):
    """A folder as published: with the head of its pretraining, random and wide weights."""
    torch.manual_seed(0)
    wide = dict(initializer_range=0.3)
    if kind == "roberta":
        model = RobertaForMaskedLM(RobertaConfig(vocab_size=save_roberta_tokenizer(folder), num_hidden_layers=layers,
                                                 max_position_embeddings=66, type_vocab_size=1, layer_norm_eps=1e-5,
                                                 **SIZES, **wide))
    elif kind == "distilbert":
        model = DistilBertForMaskedLM(DistilBertConfig(vocab_size=save_wordpiece(folder, "DistilBertTokenizer"), dim=32,
                                                       n_layers=layers, n_heads=4, hidden_dim=48,
                                                       max_position_embeddings=64, **wide))
    else:
        model = BertModel(BertConfig(vocab_size=save_wordpiece(folder, "BertTokenizer"), num_hidden_layers=layers,
                                     max_position_embeddings=64, **SIZES, **wide))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: make(tmp_path_factory.mktemp(kind), kind, layers)
            for kind, layers in (("roberta", 6), ("distilbert", 6), ("bert", 2))}


@pytest.fixture(scope="module")
def texts():
    # No empty one: the package does not read it with transformers 5.
    texts = nasty_texts(47, random.Random(3)) + ["no effusion", "no effusion", "lungs clear " * 40, "the"]
    return texts, texts[7:] + texts[:7]


@pytest.mark.parametrize("idf", [False, True])
@pytest.mark.parametrize("kind, layer", [("roberta", 5), ("distilbert", 5), ("bert", 2)])
def test_scores_equal_bert_score(folders, texts, kind, layer, idf):
    hypotheses, references = texts
    wanted = bert_score.score(hypotheses, references, model_type=str(folders[kind]), num_layers=layer, idf=idf,
                              device="cpu", nthreads=0, batch_size=1)
    scorer = BertScorer.from_pretrained(folders[kind])
    assert scorer.layer == layer
    scores = scorer(hypotheses, references, idf=idf, progress=False)
    assert np.abs(scores - torch.stack(wanted, dim=1).numpy()).max() < 1e-5
    assert scores[:, 2].std() > 0.02


def test_a_text_without_a_token_scores_nothing(folders):
    scorer = BertScorer.from_pretrained(folders["roberta"])
    assert scorer(["", "heart", " \n"], ["heart", "", ""]).tolist() == [[0, 0, 0]] * 3
    scorer.baseline = (0.5, 0.5, 0.8)
    assert scorer([""], ["heart"])[0] == pytest.approx([-1, -1, -4])
    assert scorer([], []).shape == (0, 3)


def test_the_best_of_several_references_and_the_rescaling_equal_bert_score(folders, texts, tmp_path):
    hypotheses = texts[0][:12]
    references = [texts[1][i:i + 1 + i % 3] for i in range(12)]
    (tmp_path / "baseline.csv").write_text("LAYER,P,R,F\n" + "".join(f"{i},.{i}1,.{i}2,.{i}3\n" for i in range(7)))
    wanted = bert_score.score(hypotheses, references, model_type=str(folders["distilbert"]), num_layers=5, device="cpu",
                              nthreads=0, batch_size=1, lang="en", rescale_with_baseline=True,
                              baseline_path=str(tmp_path / "baseline.csv"))
    scorer = BertScorer.from_pretrained(folders["distilbert"])
    scorer.baseline = (0.51, 0.52, 0.53)
    assert np.abs(scorer(hypotheses, references) - torch.stack(wanted, dim=1).numpy()).max() < 1e-5


def test_published_models_have_the_packages_layers_and_baselines():
    from bert_score.utils import model2layers
    from pandas import read_csv

    folder = bert_score.__path__[0]
    for (model_type, depth, *_), (name, layer, baseline) in PUBLISHED.items():
        assert layer == model2layers[name] == LAYERS[model_type, depth]
        row = read_csv(f"{folder}/rescale_baseline/en/{name}.tsv").iloc[layer].to_numpy()
        assert row == pytest.approx([layer, *baseline], abs=1e-9)
    for name, kind in (("roberta-base", ("roberta", 12)), ("bert-base-uncased", ("bert", 12)),
                       ("bert-large-uncased", ("bert", 24))):
        assert model2layers[name] == LAYERS[kind]


def test_the_name_says_what_the_number_is(folders):
    scorer = BertScorer.from_pretrained(folders["roberta"], layer=3)
    assert scorer.name() == f"BERTScore ({folders['roberta'].name}, layer 3, no idf, not rescaled)"
    scorer.baseline = (0, 0, 0)
    assert scorer.name(idf=True).endswith("layer 3, idf, rescaled)")


def test_texts_that_repeat_are_read_once_and_batches_change_nothing(folders, texts, monkeypatch):
    hypotheses, references = texts
    scorer, read = BertScorer.from_pretrained(folders["bert"]), []
    add = scorer.add_vectors
    monkeypatch.setattr(scorer, "add_vectors", lambda vectors, new: read.extend(new) or add(vectors, new))
    monkeypatch.setattr("metrics.bertscore.PAIRS", 4)
    scores = scorer(hypotheses * 2, references * 2)
    assert len(read) == len(set(read)) == len({*hypotheses, *references})
    alone = scorer(hypotheses[:3], references[:3])
    assert np.allclose(scores[:3], alone, atol=1e-5) and np.array_equal(scores[:51], scores[51:])


def test_byte_level_bpe_equals_transformers(folders):
    tokenizer = ByteBPE.from_pretrained(folders["roberta"])
    reference = AutoTokenizer.from_pretrained(folders["roberta"])
    for text in nasty_texts(150, random.Random(0)) + ODD:
        assert tokenizer.encode(text) == reference.encode(text), text
        assert "".join(words_of(text)) == text
    ids = tokenizer.ids
    assert tokenizer.encode("the</s> no  <mask>") == [ids["<s>"], ids["Ġthe"], ids["</s>"], ids["Ġno"], ids["<mask>"],
                                                      ids["</s>"]]


def test_byte_level_bpe_reads_tokenizer_json(folders, tmp_path):
    AutoTokenizer.from_pretrained(folders["roberta"]).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer, same = ByteBPE.from_pretrained(folders["roberta"]), ByteBPE.from_pretrained(tmp_path)
    assert tokenizer.ids == same.ids and tokenizer.ranks == same.ranks


@pytest.mark.parametrize("name, content", [
    ("config.json", '{"model_type": "xlnet"}'), ("vocab.json", "[]"), ("vocab.json", '{"a": 1}'), ("merges.txt", "a\n"),
    ("merges.txt", None), ("model.safetensors", "torn"), ("config.json", None),
])
def test_a_folder_that_is_none_is_refused_in_one_line(folders, tmp_path, name, content):
    for file in folders["roberta"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        BertScorer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_weights_that_do_not_fit_are_refused(folders, tmp_path):
    """Strict: a layer too many in the file is named."""
    for file in folders["distilbert"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layers": 5}))
    with pytest.raises(UserError, match="encoder.layer.5"):
        BertScorer.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="no layer"):
        BertScorer.from_pretrained(folders["bert"], layer=3)
