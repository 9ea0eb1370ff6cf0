"""Loading: strict, memory-mapped, and unshaken by damaged files."""

import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

from data.files import UserError
from model import checkpoint
from model.bert import Bert, BertConfig
from model.mistral import Mistral, MistralConfig
from model.swin import Swin, SwinConfig

ROOT = Path(__file__).resolve().parents[1]
TINY = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
                  max_position_embeddings=6)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    Bert(TINY).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, change):
    """Applies a change to the tensors of a folder."""
    state = safetensors.torch.load_file(folder / "model.safetensors")
    change(state)
    (folder / "model.safetensors").unlink()
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


# --- strictness -------------------------------------------------------------------------------------------------------

def test_missing_and_unexpected_tensors_are_both_listed(folder):
    def change(state):
        state["encoder.layer.0.novelty"] = state.pop("encoder.layer.0.output.dense.bias")
        for i in range(9):
            state[f"extra.{i}"] = torch.zeros(1)
    rewrite(folder, change)
    with pytest.raises(UserError) as error:
        Bert.from_pretrained(folder)
    message = str(error.value)
    assert "- encoder.layer.0.output.dense.bias" in message and "+ encoder.layer.0.novelty" in message
    assert "+ extra.0" in message and "5 more" in message and "model.safetensors" in message and "\n" not in message


def test_a_wrong_shape_or_type_is_named(folder):
    rewrite(folder, lambda state: state.update({"embeddings.LayerNorm.weight": torch.zeros(9)}))
    with pytest.raises(UserError, match=r"model.safetensors: embeddings.LayerNorm.weight has shape \[9\].*\[8\]"):
        Bert.from_pretrained(folder)
    rewrite(folder, lambda state: state.update({"embeddings.LayerNorm.weight": torch.zeros(8, dtype=torch.int8)}))
    with pytest.raises(UserError, match="quantised"):
        Bert.from_pretrained(folder)


def test_a_config_of_another_size_is_named(folder):
    (folder / "config.json").write_text(json.dumps({**TINY.to_json(), "num_hidden_layers": 2}))
    with pytest.raises(UserError, match="- encoder.layer.1"):
        Bert.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**TINY.to_json(), "intermediate_size": 13}))
    with pytest.raises(UserError, match="intermediate.dense"):
        Bert.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"a": ' * 10**5, "{}", '{"model_type": "bert"}'])
def test_a_broken_config_is_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json"):
        Bert.from_pretrained(folder)


NUMBERS = [0, -1, 1, 2, 3, 2**24, 2**24 + 1, 10**400, 0.0, -0.5, 0.5, 1.0, 5.0, 1e-30, 1e9, 1e30,
           float("nan"), float("inf"),
           True, None, "1", [], [1], [2**24] * 3, [0, 2], [[1]], {}]


@pytest.mark.parametrize("kind, config", [
    (Bert, TINY),
    (Swin, SwinConfig(image_size=8, patch_size=2, embed_dim=4, depths=(1, 1), num_heads=(1, 2), window_size=2)),
    (Mistral, MistralConfig(vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
                            num_attention_heads=2, num_key_value_heads=1, head_dim=4, tie_word_embeddings=True))],
    ids=["bert", "swin", "mistral"])
def test_numbers_that_no_config_can_mean_are_refused(tmp_path, kind, config):
    """Whatever stands in config.json: an error with the file's name, or a model that works."""
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path)
    whole = config.to_json()
    whole.pop("rope_parameters", None)
    for key in whole:
        for value in NUMBERS:
            (tmp_path / "config.json").write_text(json.dumps({**whole, key: value}))
            try:
                model = kind.from_pretrained(tmp_path)
            except UserError as error:
                assert str(tmp_path) in str(error)
                continue
            x = torch.ones(2, 3, dtype=torch.long)
            out = model(x, x) if kind is Bert else model(ids=x) if kind is Mistral else model(torch.ones(2, 3, 8, 8))
            assert out.isfinite().all(), (key, value)


@pytest.mark.parametrize("kind, name, value", [
    (Bert, "hidden_dropout_prob", 2.0), (Bert, "attention_probs_dropout_prob", -1),
    (Bert, "layer_norm_eps", float("nan")),
    (Swin, "mlp_ratio", 1e30), (Swin, "mlp_ratio", -1), (Swin, "drop_path_rate", 1.0), (Swin, "depths", []),
    (Mistral, "rope_theta", 0), (Mistral, "rope_theta", -1), (Mistral, "rms_norm_eps", -1),
    (Mistral, "sliding_window", 10**30)])
def test_such_a_number_is_named(tmp_path, kind, name, value):
    config = {Bert: TINY, Swin: SwinConfig(), Mistral: MistralConfig()}[kind].to_json()
    config.pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(UserError, match=f"config.json: {name} is "):
        kind.from_pretrained(tmp_path)


@pytest.mark.parametrize("settings, method", [
    ({"quant_method": "awq", "bits": 4}, "awq"), ({"quant_method": "gptq"}, "gptq"), ({"quant_method": "fp8"}, "fp8"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"load_in_8bit": True}, "does not name")])
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_quantised_weights_are_said_first(folder, settings, method, key):
    """Whatever else config.json holds, and whether or not the weights are there."""
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", key: settings}))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"config\.json: the weights are quantised \(.*{method}.*take the model"):
        Bert.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**TINY.to_json(), key: None}))
    with pytest.raises(UserError, match="holds no model.safetensors"):
        Bert.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_whose_config_is_silent_are_named(folder, dtype):
    """GPTQ's older files have their settings in a file of their own; fp8 may keep names and shapes."""
    name = "encoder.layer.0.output.dense.weight"
    new_name = name if dtype == torch.float8_e4m3fn else "encoder.layer.0.output.dense.qweight"
    rewrite(folder, lambda state: state.update({new_name: state.pop(name).to(dtype)}))
    with pytest.raises(UserError, match="quantised weights are not supported; take the model"):
        Bert.from_pretrained(folder)


def test_a_windows_editors_config_is_read(folder):
    text = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    assert Bert.from_pretrained(folder).config == TINY


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="config.json"):
        Bert.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_json()))
    with pytest.raises(UserError, match="model.safetensors"):
        Bert.from_pretrained(tmp_path)


def test_shards_missing_or_twice_or_named_outside_are_errors(tmp_path):
    config = transformers.MistralConfig(vocab_size=50, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
                                        num_attention_heads=2, num_key_value_heads=1)
    transformers.MistralForCausalLM(config).save_pretrained(tmp_path, max_shard_size="4KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    kept, index = shards[1].read_bytes(), tmp_path / "model.safetensors.index.json"
    Mistral.from_pretrained(tmp_path)
    shards[1].unlink()
    with pytest.raises(UserError, match=f"{shards[1].name}.*missing"):
        Mistral.from_pretrained(tmp_path)
    shards[1].write_bytes(kept[:-5])
    with pytest.raises(UserError, match=shards[1].name):
        Mistral.from_pretrained(tmp_path)
    shards[1].write_bytes(shards[0].read_bytes())
    with pytest.raises(UserError, match="twice"):
        Mistral.from_pretrained(tmp_path)
    for weight_map in ({"a": "../evil.safetensors"}, {"a": 3}, {}, [1], {"a": "."}, {"a": ""}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match="index.json|missing"):
            Mistral.from_pretrained(tmp_path)


def test_sharded_pickles_are_read(folder):
    whole = Bert.from_pretrained(folder).state_dict()
    names = sorted(whole)
    for number, part in enumerate((names[::2], names[1::2])):
        torch.save({name: whole[name] for name in part}, folder / f"pytorch_model-{number}.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {
        name: f"pytorch_model-{number % 2}.bin" for number, name in enumerate(names)}}))
    (folder / "model.safetensors").unlink()
    for dtype in (None, torch.bfloat16):
        found = Bert.from_pretrained(folder, dtype=dtype).state_dict()
        assert all(torch.equal(found[name], tensor.to(dtype)) for name, tensor in whole.items())
    (folder / "pytorch_model-1.bin").unlink()
    with pytest.raises(UserError, match="pytorch_model-1.bin: this shard is missing"):
        Bert.from_pretrained(folder)


def test_nothing_is_half_loaded(folder):
    """The error comes before the module gets its first weight."""
    built = []
    rewrite(folder, lambda state: state.pop("embeddings.LayerNorm.bias"))
    with pytest.raises(UserError):
        checkpoint.load(lambda: built.append(Bert(TINY)) or built[0], folder, {})
    assert all(weight.is_meta for weight in built[0].parameters())


def test_a_pickle_with_code_is_refused_and_not_run(folder, tmp_path):
    trace = tmp_path / "it-ran"

    class Code:
        def __reduce__(self):
            return os.system, (f"touch {trace}",)

    (folder / "model.safetensors").unlink()
    for write in (lambda path: torch.save({"weight": Code()}, path),
                  lambda path: path.write_bytes(pickle.dumps(Code())),
                  lambda path: torch.save({"a": torch.zeros(2), "b": Code()}, path,
                                          _use_new_zipfile_serialization=False)):
        write(folder / "pytorch_model.bin")
        with pytest.raises(UserError, match="pytorch_model.bin: refused"):
            Bert.from_pretrained(folder)
    assert not trace.exists()
    torch.save([1, 2], folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no dictionary of tensors"):
        Bert.from_pretrained(folder)


def test_rules_drop_rename_and_cut():
    rename = {r"^drop\.": None, r"^old\.": "new.", r"\.qkv$": (".q", ".k", ".v")}
    assert checkpoint.new_names("drop.x", rename) == []
    assert checkpoint.new_names("old.x", rename) == ["new.x"]
    assert checkpoint.new_names("old.qkv", rename) == ["new.q", "new.k", "new.v"]
    fused = torch.arange(12.0).view(6, 2)
    build = lambda: nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "qkv"})  # noqa: E731
    parts = {r"^qkv": ("q", "k", "v")}
    module = checkpoint.load_state(build, {"qkv.weight": fused}, "x", parts)
    assert torch.equal(module["k"].weight, fused[2:4])
    with pytest.raises(UserError, match="split into 3"):
        checkpoint.load_state(build, {"qkv.weight": fused[:5]}, "x", parts)


def test_conversion_is_exact_whatever_the_window(folder, monkeypatch):
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in Bert.from_pretrained(folder).state_dict().items()}
    for window in (1, 100, 2**20):
        monkeypatch.setattr(checkpoint, "WINDOW", window)
        found = Bert.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_training_a_mapped_model_leaves_the_file_alone(folder):
    before = (folder / "model.safetensors").read_bytes()
    model = Bert.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before


# --- our own files ----------------------------------------------------------------------------------------------------

def test_a_checkpoint_comes_back(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.tensor(2.5), "none": torch.zeros(0, 3),
               "half": torch.randn(7).to(torch.bfloat16),
               "bytes": torch.frombuffer(bytearray(b"vocab\xff"), dtype=torch.uint8),
               "turned": torch.randn(3, 5).T, "yes": torch.tensor([True, False])}
    header = {"stage": 2, "text": "é \u2028", "config": {"lr": 1e-4, "none": None}}
    checkpoint.save_file(tmp_path / "x.safetensors", tensors, header)
    found, read = checkpoint.read_file(tmp_path / "x.safetensors")
    assert read == header and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert all(found[name].dtype == tensor.dtype for name, tensor in tensors.items())
    library = safetensors.torch.load_file(tmp_path / "x.safetensors")      # the format is the library's
    assert all(torch.equal(library[name], tensor) for name, tensor in tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_foreign_truncated_and_missing_checkpoints_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        checkpoint.read_file(folder / "model.safetensors")
    with pytest.raises(UserError, match="no such file"):
        checkpoint.read_file(tmp_path / "absent.safetensors")
    checkpoint.save_file(tmp_path / "x.safetensors", {"a": torch.zeros(100)}, {})
    whole = (tmp_path / "x.safetensors").read_bytes()
    for end in (0, 3, 8, 20, len(whole) - 400, len(whole) - 1):
        (tmp_path / "x.safetensors").write_bytes(whole[:end])
        with pytest.raises(UserError, match="x.safetensors"):
            checkpoint.read_file(tmp_path / "x.safetensors")
    with pytest.raises(UserError):
        checkpoint.read_file(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save_file(path, {"a": torch.zeros(3)}, {"old": 1})
    with pytest.raises(KeyError):
        checkpoint.save_file(path, {"a": torch.zeros(3, dtype=torch.complex64)}, {})
    assert checkpoint.read_file(path)[1] == {"old": 1} and len(list(tmp_path.iterdir())) == 1


def test_a_digest_names_the_weights_and_nothing_else(tmp_path):
    torch.manual_seed(0)
    model = Mistral(MistralConfig(vocab_size=50, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
                                  num_attention_heads=2, num_key_value_heads=1, head_dim=8))
    name = checkpoint.digest(model)
    assert len(name) == 16 and int(name, 16) >= 0
    model.save_pretrained(tmp_path / "one")
    theirs = transformers.MistralForCausalLM.from_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    for folder in ("one", "shards", "half"):
        assert checkpoint.digest(Mistral.from_pretrained(tmp_path / folder)) == name
    with torch.no_grad():
        model.lm_head.weight[-1, -1] += 1
    assert checkpoint.digest(model) != name
    assert checkpoint.digest({"a": torch.zeros(2, 3)}) != checkpoint.digest({"a": torch.zeros(3, 2)})
    assert checkpoint.digest({"a": torch.zeros(2)}) != checkpoint.digest({"b": torch.zeros(2)})


# --- memory -----------------------------------------------------------------------------------------------------------

MEASURE = """
import sys; sys.path.insert(0, {root!r})
import gc, torch
from model.mistral import Mistral
def resident(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
Mistral.from_pretrained({warm!r}, dtype=torch.bfloat16); gc.collect()
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
model = Mistral.from_pretrained({folder!r}, dtype={dtype})
with torch.no_grad():
    total = sum(float(row.sum()) for w in model.parameters() for row in w.split(1000))
kept = sum(w.nbytes for w in model.parameters())
print((resident("VmHWM") - before) / kept, kept)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is measured through Linux's /proc")
@pytest.mark.parametrize("stored, dtype, pickled", [
    ("float32", None, False), ("float32", "torch.bfloat16", False), ("bfloat16", "torch.float32", False),
    ("float32", "torch.bfloat16", True)])
def test_loading_takes_no_second_copy(tmp_path, stored, dtype, pickled):
    """At most 1.1 times the weights kept, every weight touched; one tensor is a third of the whole."""
    config = MistralConfig(vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=2,
                           num_attention_heads=6, num_key_value_heads=2)
    torch.manual_seed(0)
    small = MistralConfig(vocab_size=50, hidden_size=16, intermediate_size=20, num_hidden_layers=1,
                          num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    Mistral(small).save_pretrained(tmp_path / "warm")
    with torch.device("meta"):
        model = Mistral(config)
    model.to_empty(device="cpu").to(getattr(torch, stored)).requires_grad_(False)
    for weight in model.parameters():
        weight.fill_(0.5)
    model.save_pretrained(tmp_path / "big")
    if pickled:
        torch.save(model.state_dict(), tmp_path / "big" / "pytorch_model.bin")
        (tmp_path / "big" / "model.safetensors").unlink()
    del model
    script = MEASURE.format(root=str(ROOT), folder=str(tmp_path / "big"), warm=str(tmp_path / "warm"), dtype=dtype)
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout.split()
    assert int(out[1]) > 120e6 and float(out[0]) < 1.1


# --- fuzz -------------------------------------------------------------------------------------------------------------

def mutants(data, count, rng):
    """Damaged forms of a file: bits and bytes changed, pieces cut, doubled and swapped, lengths and numbers altered."""
    for _ in range(count):
        bad = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            kind, place = rng.randrange(9), rng.randrange(max(1, len(bad)))
            if kind == 0 and bad:
                bad[place] ^= 1 << rng.randrange(8)
            elif kind == 1 and bad:
                bad[place] = rng.randrange(256)
            elif kind == 2:
                del bad[place:]
            elif kind == 3:
                del bad[place:place + rng.randrange(1, 40)]
            elif kind == 4:
                bad[place:place] = rng.randbytes(rng.randrange(1, 40))
            elif kind == 5:
                lengths = [0, 1, 7, len(bad), 2**31, 2**63, 2**64 - 1, rng.getrandbits(16)]
                bad[:8] = struct.pack("<Q", rng.choice(lengths))
            elif kind == 6:                                # another number in the header
                digits = [i for i, byte in enumerate(bad[:2000]) if 48 <= byte < 58]
                if digits:
                    spot = rng.choice(digits)
                    bad[spot:spot + 1] = rng.choice([b"9", b"0", b"-1", b"1e9", b"9" * 20, b"1.5", b"null"])
            elif kind == 7:
                words = [b"F32", b"shape", b"data_offsets", b"dtype", b"weight", b"{", b"[", b"storage"]
                for word in rng.sample(words, 2):
                    bad[:] = bad.replace(word, rng.choice([b"BF16", b"I64", b"", b"{{", b"BOOL", b"[["]), 1)
            else:
                bad[:] = rng.randbytes(rng.randrange(200)) if rng.random() < 0.3 else bad
        yield bytes(bad)


FUZZ = textwrap.dedent("""
    import random, signal, sys, warnings
    from pathlib import Path
    sys.path.insert(0, {root!r})
    warnings.simplefilter("ignore")
    import torch
    from data.files import UserError
    from model import checkpoint
    from tests.test_checkpoint import TINY, mutants
    from model.bert import Bert
    folder, rng, counts = Path({folder!r}), random.Random({seed}), {{}}
    for name in ("model.safetensors", "pytorch_model.bin", "old.bin", "own.safetensors", "config.json"):
        whole = (folder / name).read_bytes()
        for bad in mutants(whole, {count}, rng):
            (folder / "case").mkdir(exist_ok=True)
            path = folder / "case" / ("pytorch_model.bin" if name.endswith("bin") else name.replace("own", "model"))
            for good in ("config.json", "model.safetensors") if name == "config.json" else ("config.json",):
                (folder / "case" / good).write_bytes((folder / good).read_bytes())
            path.unlink(missing_ok=True)
            path.write_bytes(bad)
            signal.alarm(10)                               # a hang ends the process
            try:
                if name == "own.safetensors":
                    sum(float(t.double().sum()) for t in checkpoint.read_file(path)[0].values())
                else:
                    model = Bert.from_pretrained(path.parent)
                    sum(float(w.double().sum()) for w in model.parameters())
                    model(torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2)) if name == "config.json" else None
                result = "read"
            except UserError as error:
                result = "refused"
                assert "case" in str(error) and "\\n" not in str(error), str(error)
            counts[name, result] = counts.get((name, result), 0) + 1
            signal.alarm(0)
            path.unlink()
            (folder / "case" / "model.safetensors").unlink(missing_ok=True)
    print(sorted(counts.items()))
""")


def test_damaged_files_are_refused_or_read_and_never_crash(folder):
    """FUZZ_FILES=5000 makes it a long run: that many of each of four formats."""
    state = safetensors.torch.load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    torch.save(state, folder / "old.bin", _use_new_zipfile_serialization=False)
    checkpoint.save_file(folder / "own.safetensors", {"a": torch.zeros(4), "b": torch.zeros(3, 2).half()}, {"stage": 2})
    count = int(os.environ.get("FUZZ_FILES", 150))
    script = FUZZ.format(root=str(ROOT), folder=str(folder), count=count, seed=random.Random(count).randrange(10**6))
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))  # noqa: E731
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, preexec_fn=limit,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:] or f"ended by signal {-done.returncode}"
    counts = dict(eval(done.stdout.splitlines()[-1]))
    print(counts)
    for name in ("model.safetensors", "pytorch_model.bin", "old.bin", "own.safetensors"):
        assert counts[name, "refused"] > count / 2
