"""The labeler against an independent statement of CheXbert's network, on transformers' BertModel."""

import random
from functools import partial

import pytest
import torch
from transformers import BertConfig as ReferenceConfig
from transformers import BertModel, BertTokenizer

from data.files import UserError
from evaluation.labels import chexbert_labeler
from metrics import chexbert
from metrics.chexbert import CLASSES, RENAME, CheXbert, Labeler
from model import checkpoint
from model.bert import BertConfig
from tests.bench.record_metrics import nasty_texts

SIZES = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
             max_position_embeddings=64)


class Reference(torch.nn.Module):
    """As published: BERT, dropout on the hidden state of [CLS], 13 heads of four classes and one of two."""

    def __init__(self, config):
        super().__init__()
        self.bert = BertModel(config)
        self.linear_heads = torch.nn.ModuleList([torch.nn.Linear(config.hidden_size, 4) for _ in range(13)])
        self.linear_heads.append(torch.nn.Linear(config.hidden_size, 2))

    def forward(self, ids, mask):
        cls = self.bert(ids, attention_mask=mask)[0][:, 0]
        return [head(cls) for head in self.linear_heads]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A chexbert.pth as it circulates: DataParallel's prefix, optimiser state inside."""
    folder = tmp_path_factory.mktemp("chexbert")
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    words = ["the", "heart", "lung", "##s", "effusion", "no", "clear", "pleural", "right", "pneumo", "##thorax"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters),
                  *words]
    vocabulary = list(dict.fromkeys(vocabulary))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    # Wide weights, so that the classes differ from text to text.
    reference = Reference(ReferenceConfig(vocab_size=len(vocabulary), initializer_range=0.6, **SIZES)).eval()
    for head in reference.linear_heads:
        torch.nn.init.normal_(head.weight, std=1.0)
    parallel = torch.nn.DataParallel(reference)
    optimiser = torch.optim.Adam(parallel.parameters())
    torch.save({"epoch": 3, "model_state_dict": parallel.state_dict(), "optimizer_state_dict": optimiser.state_dict()},
               folder / "chexbert.pth")
    reference.bert.config.save_pretrained(folder)
    return folder, reference


def test_labels_equal_the_published_network_on_200_texts(folder):
    path, reference = folder
    rng = random.Random(0)
    texts = nasty_texts(190, rng) + ["", " \n ", "no effusion", "no  effusion\n", "heart " * 200, "A\tB\u00a0c",
                                     "é" * 9] + ["x"] * 3
    tokenizer = BertTokenizer(str(path / "vocab.txt"), do_lower_case=True)
    wanted = []
    with torch.inference_mode():
        for text in texts:
            words = tokenizer.tokenize(" ".join(text.split()))
            ids = tokenizer.convert_tokens_to_ids(["[CLS]", *words, "[SEP]"])
            if len(ids) > 64:
                ids = ids[:63] + [tokenizer.sep_token_id]
            ids = torch.tensor([ids])
            wanted.append([int(scores.argmax()) for scores in reference(ids, torch.ones_like(ids))])
    labels = Labeler.from_pretrained(path)(texts, batch_size=16, progress=False)
    assert labels == wanted
    assert len({tuple(row) for row in labels}) > 50 and {value for row in labels for value in row} == {0, 1, 2, 3}


def test_logits_do_not_depend_on_the_batch(folder):
    path, reference = folder
    labeler = Labeler.from_pretrained(path)
    ids = torch.tensor([labeler.encode("no effusion") + [0] * 20, labeler.encode("no effusion") + [7] * 20])
    mask = torch.zeros_like(ids)
    mask[:, : len(labeler.encode("no effusion"))] = 1
    with torch.inference_mode():
        alone = labeler.model(ids[:1, : int(mask[0].sum())], mask[:1, : int(mask[0].sum())])
        for ours, theirs, single in zip(labeler.model(ids, mask), reference(ids, mask), alone, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4) and torch.allclose(ours[0], ours[1], atol=1e-5)
            assert torch.allclose(ours[:1], single, atol=1e-4)
    assert [scores.shape[1] for scores in alone] == CLASSES == [4] * 13 + [2]


def test_published_names_and_shapes():
    """The published size against transformers' BertModel under DataParallel's prefix: only the pooler is dropped."""
    with torch.device("meta"):
        published = {f"module.{name}": tensor for name, tensor in Reference(ReferenceConfig()).state_dict().items()}
    model = checkpoint.load_state(lambda: CheXbert(BertConfig(vocab_size=30522)), published, "chexbert.pth", RENAME,
                                  torch.float32)
    names = set(model.state_dict())
    assert {f"module.{name}" for name in names} == published.keys() - {
        "module.bert.pooler.dense.weight", "module.bert.pooler.dense.bias"}
    assert len(names) == 5 + 12 * 16 + 14 * 2 and len(published) == len(names) + 2


def test_a_folder_as_published_has_no_config(folder, tmp_path, monkeypatch):
    path, _ = folder
    for name in ("vocab.txt", "chexbert.pth"):
        (tmp_path / name).symlink_to(path / name)
    texts = ["no effusion", "pneumothorax"]
    wanted = Labeler.from_pretrained(path)(texts)
    monkeypatch.setattr(chexbert, "BertConfig", partial(BertConfig, **SIZES))       # the test's small network as "base"
    assert Labeler.from_pretrained(tmp_path)(texts) == wanted


def test_loaded_once_a_run_and_no_text_read_twice(folder, monkeypatch):
    label, read = chexbert_labeler(Labeler.from_pretrained(folder[0])), []
    encode = Labeler.encode
    monkeypatch.setattr(Labeler, "encode", lambda self, text: read.append(text) or encode(self, text))
    first = label(["no effusion", "heart"])
    assert label(["heart", "lungs", "no effusion"])[::2] == first[::-1] and read == ["no effusion", "heart", "lungs"]


def test_512_token_rule():
    """At the published size: the first 511 ids and [SEP]."""
    class Tokenizer:
        sep_id = 102

        def encode(self, text):
            return [101, *range(1000, 1000 + len(text.split())), 102]

    labeler = Labeler.__new__(Labeler)
    labeler.tokenizer = Tokenizer()
    labeler.model = torch.nn.Module()
    labeler.model.bert = torch.nn.Module()
    labeler.model.bert.config = ReferenceConfig()
    assert labeler.encode("a " * 510) == [101, *range(1000, 1510), 102]
    assert labeler.encode("a " * 511) == [101, *range(1000, 1510), 102]
    assert len(labeler.encode("a " * 9000)) == 512


def test_a_file_that_does_not_fit_is_named(folder, tmp_path):
    path, reference = folder
    for name in ("vocab.txt", "config.json"):
        (tmp_path / name).write_bytes((path / name).read_bytes())
    with pytest.raises(UserError, match="chexbert.pth"):
        Labeler.from_pretrained(tmp_path)
    state = {f"module.{name}": tensor for name, tensor in reference.state_dict().items()}
    state["module.linear_heads.14.weight"] = state.pop("module.linear_heads.13.weight")
    torch.save({"model_state_dict": state}, tmp_path / "chexbert.pth")
    with pytest.raises(UserError, match="linear_heads.13.weight.*linear_heads.14.weight"):
        Labeler.from_pretrained(tmp_path)
    (tmp_path / "chexbert.pth").write_bytes((path / "chexbert.pth").read_bytes()[:5000])
    with pytest.raises(UserError, match="chexbert.pth") as caught:
        Labeler.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_similarity_is_the_cosine_of_the_published_networks_first_token(folder):
    path, reference = folder
    labeler = Labeler.from_pretrained(path)
    pairs = [("no effusion", "the heart"), ("lungs clear", "lungs  clear\n"), ("", "heart " * 200)]
    with torch.inference_mode():
        vectors = [[reference.bert(torch.tensor([labeler.encode(text)]))[0][0, 0] for text in pair] for pair in pairs]
    wanted = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in vectors]
    assert labeler.similarity(*zip(*pairs)) == pytest.approx(wanted, abs=1e-5)
    assert labeler.similarity(*zip(*pairs))[1] == pytest.approx(1) and abs(wanted[0]) < 0.99
    assert labeler.similarity(["heart"], ["heart"], progress=False).shape == (1,)
