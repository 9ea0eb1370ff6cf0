"""The page itself: Eq. (1) and (5) by hand, what each variant builds and trains, the prompt, and its checkpoints."""

from math import exp, log

import pytest
import torch
from safetensors.torch import load_file, save_file

import trrg
from data.files import UserError
from model.lora import adapters
from model.trained import in_base
from tests import tiny

# --- stage 1


def test_equation_1_by_hand():
    """Cosines: picture 1 with the sentences 1, √½; picture 2 with them 0, √½; τ = 1."""
    v, t = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[5.0, 0.0], [1.0, 1.0]])
    h = 0.5 ** 0.5
    picture_to_text = (log(1 + exp(h - 1)) + log(1 + exp(0 - h))) / 2
    text_to_picture = (log(1 + exp(0 - 1)) + log(1 + exp(h - h))) / 2
    loss = trrg.contrastive_loss(v, t, tau=1.0).item()
    assert loss == pytest.approx(picture_to_text + text_to_picture, abs=1e-6) == pytest.approx(0.982314, abs=1e-6)


def test_equation_1_divides_by_tau():
    v, t = torch.eye(2), torch.eye(2)
    assert trrg.contrastive_loss(v, t, tau=0.5).item() == pytest.approx(2 * log(1 + exp(-2)), abs=1e-6)


def test_equal_sentences_share_the_target_mass():
    """Rows 1 and 2 carry one sentence: their targets are (½, ½, 0); all cosines are 0, so every term is log 3."""
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    v, t = torch.eye(3, 6), torch.eye(6)[3:]
    assert trrg.contrastive_loss(v, t, 1.0, same).item() == pytest.approx(2 * log(3), abs=1e-6)
    v, t = torch.tensor([[1.0, 0], [1, 0], [0, 1]]), torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    # rows 1, 2: logits (1, 1, 0): each half of the mass costs log(2e + 1) - 1; row 3: log(e + 2) - 1
    by_hand = 2 * (2 * (log(2 * exp(1) + 1) - 1) + log(exp(1) + 2) - 1) / 3
    assert trrg.contrastive_loss(v, t, 1.0, same).item() == pytest.approx(by_hand, abs=1e-6)


def test_temperature_starts_at_its_value_and_stops_at_a_hundredth():
    model = tiny.alignment()
    assert model.tau.item() == pytest.approx(0.07)
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    assert model.tau.item() == pytest.approx(0.01)


def test_the_global_token_is_the_mean_of_the_patch_tokens():
    model = tiny.alignment()
    images = tiny.batch()[:, 0]
    ids, mask = trrg.encode_words(model.wordpiece, tiny.REPORTS[:2], 64)
    v, t, tau = model(images, ids, mask)
    assert tau == model.tau
    assert torch.allclose(v, model.image_projection(model.swin(images)).mean(1), atol=1e-6)
    assert torch.allclose(t, model.text_projection(model.bert(ids, mask))[:, 0], atol=1e-6)


def test_a_long_sentence_is_cut_and_keeps_its_end():
    vocabulary = tiny.words()
    ids, mask = trrg.encode_words(vocabulary, ["the heart " * 60, "the heart"], 16)
    assert ids.shape == (2, 16) and mask.sum(1).tolist() == [16, 4]
    assert ids[0, -1] == ids[1, 3] and ids[0, 0] == ids[1, 0]           # [SEP], [CLS]
    assert (ids[1, 4:] == vocabulary.pad_id).all()


# --- stage 2


def test_equation_5_by_hand():
    model, loss = tiny.model(), trrg.Loss(ce=torch.tensor(6.0), dc=torch.tensor(-0.8), tokens=4, studies=2)
    assert model.total(loss).item() == pytest.approx(1.5 - 0.4)
    assert tiny.model(dc_weight=0.5).total(loss).item() == pytest.approx(1.5 - 0.2)
    # together with a batch of another size, whose terms are 9 and -0.2
    both = loss + trrg.Loss(ce=torch.tensor(9.0), dc=torch.tensor(-0.2), tokens=6, studies=3)
    assert model.total(both).item() == pytest.approx(15 / 10 - 1.0 / 5)


def test_cross_entropy_is_on_report_tokens_and_the_end_only():
    model = tiny.model(variant="trrg")
    ids, labels, _ = model.supervise(tiny.REPORTS[:2], 50)
    images = tiny.batch()
    loss = model(images, ids, labels)
    prompt = model.prompt(images)
    total = 0.0
    for i in range(2):
        row = ids[i][labels[i] != -100]
        embeds = torch.cat([prompt.embeds[i:i + 1], model.language_model.embed(row[None])], 1)
        logits = model.language_model(embeds=embeds)[0].log_softmax(-1)
        first = prompt.embeds.shape[1] - 1
        total -= sum(logits[first + j, token].item() for j, token in enumerate(row.tolist()))
        assert row[-1] == model.tokenizer.eos_id
    assert loss.ce.item() == pytest.approx(total, rel=1e-5) and loss.tokens == (labels != -100).sum()


BUILT = {
    "base": {"mapper", "visual_projector"},
    "dci": {"mapper", "visual_projector", "clue_projector"},
    "cmci": {"mapper", "visual_projector", "clue_projector", "interaction"},
    "trrg": {"mapper", "visual_projector", "clue_projector", "interaction"},
    "steered": {"mapper", "visual_projector"},
}


@pytest.mark.parametrize("variant", trrg.VARIANTS)
@pytest.mark.parametrize("rank", [0, 2])
def test_what_a_variant_builds_and_trains(variant, rank):
    model = tiny.model(variant=variant, lora_rank=rank)
    built = {name for name, _ in model.named_children()}
    assert built - {"bank"} == BUILT[variant] | {"swin", "image_projection", "language_model"}
    assert ("bank" in built) == (variant != "base")
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trainable} - {"language_model"} == BUILT[variant]
    in_language_model = {name for name in trainable if name.startswith("language_model.")}
    assert bool(in_language_model) == bool(rank) and all(".lora_" in name for name in in_language_model)


@pytest.mark.parametrize("variant", trrg.VARIANTS)
def test_training_moves_every_trainable_part_and_no_frozen_one(variant):
    model = tiny.model(variant=variant).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids, labels, _ = model.supervise(tiny.REPORTS[:2], 50)
    for _ in range(3):
        optimizer.zero_grad()
        model.total(model(tiny.batch(), ids, labels)).backward()
        optimizer.step()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trainable), name


def test_consistency_counts_only_where_it_is_trained():
    ids, labels, _ = tiny.model().supervise(tiny.REPORTS[:2], 50)
    model, images = tiny.model(variant="trrg"), tiny.batch()
    prompt = model.prompt(images)
    by_hand = -torch.nn.functional.cosine_similarity(prompt.e_v, prompt.e_c, dim=-1).mean(1).sum()
    assert model(images, ids, labels).dc.item() == pytest.approx(by_hand.item(), rel=1e-5) != 0
    assert tiny.model(variant="cmci")(images, ids, labels).dc == 0


@pytest.mark.parametrize("variant, visual, clue", [
    ("base", ["v_d"], []), ("dci", ["v_d"], ["c_s"]), ("cmci", ["v_d", "E^v"], ["E^c"]),
    ("trrg", ["v_d", "E^v"], ["E^c"]), ("steered", ["v_d"], ["words"])])
def test_the_prompt_is_assembled_in_the_papers_order(variant, visual, clue):
    model = tiny.model(variant=variant)
    prompt = model.prompt(tiny.batch(views=2))
    clue_part = ["<Clue>", *clue, "</Clue>"] if clue else []
    assert [name for name, _ in prompt.parts] == \
        ["<s>", "[INST] <Img>", *visual, "</Img>", *clue_part, f"{trrg.INSTRUCTION} [/INST]"]
    sizes = dict(prompt.parts)
    assert sizes["v_d"] == 2 * 49 and prompt.embeds.shape[1] == sum(sizes.values())
    if clue == ["E^c"]:
        assert sizes["E^v"] == sizes["E^c"] == 4
    # and the markers are the tokenizer's own embeddings
    start = 1 + sum(size for name, size in prompt.parts[1:2])
    ids = torch.tensor([[model.tokenizer.bos_id] + model.tokenizer.encode("[INST] <Img>", special=False)])
    assert torch.equal(prompt.embeds[0, :start], model.language_model.embed(ids)[0])


@pytest.mark.parametrize("variant", trrg.VARIANTS)
def test_every_part_of_the_prompt_holds_what_the_method_puts_there(variant):
    """v_d = W v_e + b; Eq. (2) reads v_d, not v_e; P_v for what comes from the picture, P_c for the clues."""
    model = tiny.model(variant=variant)
    prompt = model.prompt(tiny.batch(views=2))
    sizes = [size for _, size in prompt.parts]
    held = dict(zip((name for name, _ in prompt.parts), prompt.embeds.split(sizes, dim=1)))

    v_d = prompt.v_e @ model.mapper.weight.T + model.mapper.bias
    assert torch.allclose(held["v_d"], model.visual_projector(v_d), atol=1e-5)
    if variant == "dci":
        expected = model.clue_projector(prompt.clues.tokens)
        assert torch.allclose(held["c_s"][prompt.clues.mask], expected[prompt.clues.mask], atol=1e-5)
        assert not prompt.clues.mask.all() and (held["c_s"][~prompt.clues.mask] == 0).all()
    if model.config.interaction:
        e_v, e_c = model.interaction(v_d, prompt.clues.tokens, prompt.clues.mask)
        assert torch.allclose(prompt.e_v, e_v, atol=1e-5) and torch.allclose(prompt.e_c, e_c, atol=1e-5)
        assert torch.allclose(held["E^v"], model.visual_projector(e_v), atol=1e-5)
        assert torch.allclose(held["E^c"], model.clue_projector(e_c), atol=1e-5)


def test_two_views_are_concatenated_or_averaged():
    images = tiny.batch(views=2)
    one, two = (tiny.model().encode(images[:, i:i + 1]) for i in (0, 1))
    assert torch.allclose(tiny.model(views="concat").encode(images), torch.cat([one, two], 1), atol=1e-6)
    assert torch.allclose(tiny.model(views="mean").encode(images), (one + two) / 2, atol=1e-6)


def test_supervision_marks_the_report_and_counts_cuts():
    model = tiny.model()
    ids, labels, cut = model.supervise(["No pneumothorax.", tiny.REPORTS[0]], max_tokens=12)
    assert cut == 1 and ids.shape == labels.shape == (2, 13)
    short = model.tokenizer.encode("No pneumothorax.", special=False)
    assert labels[0].tolist() == short + [model.tokenizer.eos_id] + [-100] * (12 - len(short))
    assert labels[1, -1] == model.tokenizer.eos_id and (ids[1] == labels[1]).all()


def test_a_study_alone_reads_as_in_a_batch():
    model = tiny.model()
    images = tiny.batch(studies=3, views=2)
    together = model.prompt(images)
    for i in range(3):
        alone = model.prompt(images[i:i + 1])
        assert torch.allclose(alone.embeds[0], together.embeds[i], atol=1e-5)
        assert torch.equal(alone.clues.prompt[0], together.clues.prompt[i])


def test_padding_of_a_longer_report_does_not_reach_a_shorter():
    model = tiny.model()
    images = tiny.batch(studies=2)
    texts = ["No pneumothorax.", tiny.REPORTS[0]]
    ids, labels, _ = model.supervise(texts, 60)
    both = model(images, ids, labels)
    one = [model(images[i:i + 1], *model.supervise([text], 60)[:2]) for i, text in enumerate(texts)]
    assert both.ce.item() == pytest.approx(sum(loss.ce.item() for loss in one), rel=1e-5)
    assert both.dc.item() == pytest.approx(sum(loss.dc.item() for loss in one), rel=1e-4)


def test_given_clues_take_the_place_of_the_recognised_ones():
    model = tiny.model()
    images = tiny.batch()
    own = model.prompt(images)
    m = own.clues.weights.shape[1]
    disease = torch.tensor([[9, 1, 7]] * 2)
    best = torch.tensor([[int((model.bank.disease == i).nonzero()[0]) for i in range(m)]] * 2)
    other = model.prompt(images, model.bank.inject(own.clues.weights, best, disease))
    assert torch.equal(other.v_e, own.v_e) and not torch.allclose(other.e_c, own.e_c)


def test_one_batch_can_be_learnt_by_heart():
    model = tiny.model(lora_rank=4, dc_weight=0.1).train()
    model.language_model.requires_grad_(True)                    # at this size the frozen model knows no language
    images = tiny.batch(studies=4, views=2)
    ids, labels, _ = model.supervise(tiny.REPORTS, 50)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(images, ids, labels)
        model.total(loss).backward()
        optimizer.step()
    assert loss.ce / loss.tokens < 0.05
    reports, _ = model.eval().write(images, max_new_tokens=40)
    assert [report.text for report in reports] == tiny.REPORTS


# --- checkpoints


def test_a_stage_2_file_rebuilds_the_model_without_flags(tmp_path):
    model = tiny.model(variant="trrg", k=2, views="mean")
    header = {"base": {"folder": str(tmp_path / "mistral")}}
    model.language_model.requires_grad_(False)
    trrg.save(tmp_path / "ckpt.safetensors", model, header, embed_base=True)
    again = trrg.load(tmp_path / "ckpt.safetensors")
    assert again.config == model.config and not again.training
    assert (again.pictures, again.decoding) == (model.pictures, model.decoding)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    images = tiny.batch(views=2)
    assert torch.equal(again.prompt(images).embeds, model.prompt(images).embeds)
    assert again.write(images, max_new_tokens=8)[0] == model.write(images, max_new_tokens=8)[0]


def test_a_file_without_its_base_reads_it_from_the_folder_and_refuses_another(tmp_path):
    tiny.write_weights(tmp_path / "weights", seed=1)
    tiny.write_weights(tmp_path / "other", seed=2)
    aligned, config = tiny.alignment(), trrg.TRRGConfig(queries=4, heads=2, lora_rank=2)
    from model.mistral import Mistral
    language_model = Mistral.from_pretrained(tmp_path / "weights/mistral")
    model = trrg.from_alignment(aligned, language_model, tiny.pieces(), config, pictures=tiny.PICTURES).eval()
    header = {"base": {"folder": str(tmp_path / "weights/mistral")}}
    path = tmp_path / "ckpt.safetensors"
    trrg.save(path, model, header)
    assert not any(in_base(name) for name in load_file(path))
    again = trrg.load(path)
    assert torch.equal(again.prompt(tiny.batch()).embeds, model.prompt(tiny.batch()).embeds)
    (tmp_path / "weights").rename(tmp_path / "moved")
    assert trrg.load(path, weights=tmp_path / "moved")
    with pytest.raises(UserError, match="another language model"):
        trrg.load(path, weights=tmp_path / "other")
    with pytest.raises(UserError, match="weights/mistral; give the folder that holds mistral/ with --weights"):
        trrg.load(path)


def test_adapters_sit_where_the_configuration_says_and_come_back(tmp_path):
    model = tiny.model(lora_targets=("o_proj", "down_proj"))
    assert {name.rpartition(".")[2] for name in adapters(model)} == {"o_proj", "down_proj"}
    trrg.save(tmp_path / "ckpt.safetensors", model, {"base": {}}, embed_base=True)
    again = trrg.load(tmp_path / "ckpt.safetensors")
    assert again.config == model.config and adapters(again).keys() == adapters(model).keys()


def test_a_stage_1_file_comes_back_whole(tmp_path):
    model = tiny.alignment(same_sentence_positives=True)
    trrg.save_alignment(tmp_path / "stage1.safetensors", model, {})
    again = trrg.load(tmp_path / "stage1.safetensors")
    assert isinstance(again, trrg.Alignment) and again.config == model.config
    assert again.wordpiece.vocab_bytes == model.wordpiece.vocab_bytes and again.pictures == model.pictures
    images, (ids, mask) = tiny.batch()[:, 0], trrg.encode_words(model.wordpiece, tiny.REPORTS[:2], 64)
    assert all(torch.equal(a, b) for a, b in zip(again(images, ids, mask), model(images, ids, mask)))


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("foreign.safetensors", "text.safetensors", "missing.safetensors"):
        with pytest.raises(UserError, match=name):
            trrg.load(tmp_path / name)


def test_one_call_from_pictures_to_a_report(tmp_path):
    from PIL import Image
    model = tiny.model(k=2)
    report = model.report([Image.new("L", (50, 40), 90), Image.new("RGB", (40, 60), (9, 9, 9))])
    assert isinstance(report.text, str) and len(report.clues) == 2
    assert all(prompt.startswith("Clue: ") and 0 <= weight <= 1 for prompt, weight in report.clues)
    assert report.clues[0][1] >= report.clues[1][1]
