"""The page to try: what it tells is what the model does, what it refuses, what it survives, and a browser at it."""

import ctypes
import gc
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import trrg
from data.command import stop_in_one_line
from data.dataset import Prepared
from data.files import UserError
from data.images import augment, read
from data.reports import LABELS
from evaluation import serve
from evaluation.explain import token_probabilities
from evaluation.labels import phantom_labeler
from evaluation.what_if import Writer
from tests import runs, tiny
from tests.browser import CHROME, Browser

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny.write_run(folder, trained_on={"source": "phantom", "studies": 12, "pictures": 24, "steps": 200})
    return folder


def started(model, folder, **more):
    """A server whose two loops run in threads."""
    prepared = Prepared(folder / "data")
    server = serve.Server(Writer(model, "ckpt.safetensors", prepared, prepared.split("test"), **more), port=0)
    for loop in (server.serve_forever, server.work):
        threading.Thread(target=loop, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def server(run):
    return started(trrg.load(run / "ckpt.safetensors"), run, labeler=phantom_labeler())


def ask(server, body=None, path="/report", method="POST", **headers):
    """(status, JSON or text, headers) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if "json" in answer.headers["Content-Type"] else text, answer.headers


def body(files=(), **request):
    if files:
        request["pictures"] = [[path.name, path.stat().st_size] for path in files]
    return json.dumps(request).encode() + b"\n" + b"".join(path.read_bytes() for path in files)


def report(server, files=(), **request):
    status, answer, _ = ask(server, body(files, **request))
    assert status == 200, answer
    return answer


def text_of(answer):
    return "".join(token for sentence in answer["sentences"] for token, *_ in sentence).strip()


def written_by(model, images, clues=None):
    (of_study,), prompt = model.write(images, clues, **model.decoding)
    return of_study, prompt


# --- what it tells ----------------------------------------------------------------------------------------------------


def test_it_tells_what_the_model_does(server, run):
    model = server.writer.model
    files = [run / "frontal.png", run / "lateral.jpg"]
    answer, real = report(server, files), model.report(files)
    assert text_of(answer) == real.text and len(answer["study"]["v"]) == 2 and answer["study"]["r"] == []
    assert [prompt for prompt, _ in answer["study"]["c"]] == [prompt for prompt, _ in real.clues]
    assert [weight for _, weight in answer["study"]["c"]] == pytest.approx([w for _, w in real.clues], abs=1e-4)
    assert len(answer["study"]["m"]["clues"]) == 3 and len(answer["study"]["m"]["clues"][0][3]) == 2
    assert sum(map(len, answer["sentences"])) == 8 and answer["cut"]                # 8 tokens, no end


def test_an_example_stands_beside_its_reference(server, run):
    answer = report(server, example="test-1")
    assert " ".join(piece for piece, *_ in answer["study"]["r"]) == tiny.REPORTS[1]
    assert any(kind == "missed" for _, kind, _ in answer["study"]["f"])        # random weights see no cardiomegaly
    prepared = server.writer.prepared
    model, views = server.writer.model, prepared.pictures(prepared.split("test")[1])
    real, prompt = written_by(model, augment(views, model.pictures["crop"])[None])
    assert text_of(answer) == real.text
    tokens = [token for sentence in answer["sentences"] for token in sentence]
    ids = model.tokenizer.encode(real.text, special=False)
    if len(ids) == len(tokens):                                    # the text's own tokens, as they were written
        known = token_probabilities(model, prompt, ids)
        assert [p for _, p, _ in tokens] == pytest.approx([p for _, p, _ in known], abs=1e-3)


def read_views(model, files):
    """The encoder's input, read anew."""
    return augment(torch.stack([torch.from_numpy(read(path, model.pictures["size"])) for path in files]),
                   model.pictures["crop"])[None]


def test_what_ifs(server, run):
    """Without clues, or with another one, the model reads what ClueBank.inject gives; without a view, the other."""
    model, files = server.writer.model, [run / "frontal.png", run / "lateral.jpg"]
    images = read_views(model, files)
    own = model.recognise(model.encode(images))

    none = report(server, files, without="clues")
    assert none["study"]["c"] == [] and none["study"]["m"]["clues"] == []
    assert text_of(none) == written_by(model, images, own._replace(mask=torch.zeros_like(own.mask)))[0].text

    left_out = report(server, files, without=0)
    assert len(left_out["study"]["v"]) == 1 and text_of(left_out) == text_of(report(server, files[1:]))

    absent = next(i for i in range(14) if i not in own.disease[0].tolist())
    number = int((model.bank.disease == absent).nonzero()[0])
    other = report(server, files, clue=1, prompt=number)
    names, before = ([prompt for prompt, _ in answer["study"]["c"]] for answer in (other, report(server, files)))
    assert names == [before[0], model.bank.texts[number], before[2]]
    assert [w for _, w in other["study"]["c"]] == pytest.approx([w for _, w in model.named_clues(own, 0)], abs=1e-4)
    best = torch.zeros_like(own.weights, dtype=torch.long).scatter(1, own.disease, own.prompt)
    best[0, absent] = number
    disease = own.disease.clone()
    disease[0, 1] = absent
    assert text_of(other) == written_by(model, images, model.bank.inject(own.weights, best, disease, -1))[0].text


def test_the_base_variant_and_a_page_without_examples(run):
    model = tiny.model(variant="base")
    model.header = {"data": "nowhere"}
    writer = Writer(model, "base.safetensors")
    assert writer.facts["bank"] == [] and writer.facts["examples"] == []
    files = [memoryview((run / "frontal.png").read_bytes())]
    assert writer.answer({"pictures": ["a.png"]}, files)["study"]["c"] == []
    with pytest.raises(UserError, match="no clues to change"):
        writer.answer({"pictures": ["a.png"], "without": "clues"}, files)
    with pytest.raises(UserError, match="no such example"):
        writer.answer({"example": "test-1"}, [])


def test_what_stands_on_the_page(server):
    status, facts, _ = ask(server, path="/facts", method="GET")
    assert status == 200 and facts["notice"].startswith("research output, no medical advice; trained on 12 drawn")
    bank = server.writer.model.bank
    assert [text for _, prompts in facts["bank"] for _, text in sorted(prompts)] == list(bank.texts)
    assert all(LABELS[bank.disease[number]] == name for name, prompts in facts["bank"] for number, _ in prompts)
    assert facts["examples"] == [f"test-{i}" for i in range(5)]
    for path, (name, kind) in serve.PAGE.items():
        status, text, headers = ask(server, path=path, method="GET")
        assert status == 200 and headers["Content-Type"].startswith(kind) and len(text) > 500, name
    status, text, _ = ask(server, path="/", method="GET")
    assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:|https?:|//", text)      # its policy would forbid them
    assert re.findall(r"<script[^>]*>(.)?", text) == ["n", "<", "<"]                      # data, null; two files


# --- what it refuses --------------------------------------------------------------------------------------------------

GOOD = b'{"example": "test-0"}\n'


# (status, words of the answer, headers and the like in place of a good request's)
ASKERS = [
    (403, "open this page as http:", {"Host": "evil.example"}), (403, "open this page as http:", {"Host": "127.0.0.1"}),
    (403, "open this page as http:", {"Host": "evil.example", "method": "GET", "path": "/"}),
    (403, "other sites", {"Origin": "http://evil.example"}), (403, "other sites", {"Origin": "null"}),
    (403, "other sites", {"Origin": "http://localhost:{port}"}),                   # not its own Host's
    (404, "this server has no such page", {"path": "/../../etc/passwd", "method": "GET"}),
    (404, "this server has no such page", {"path": "/page.py", "method": "GET"}),
    (404, "this server has no such page", {"path": "/"}),
    (501, "Unsupported method", {"method": "OPTIONS"}), (501, "Unsupported method", {"method": "PUT"}),
    (411, "length", {"Transfer_Encoding": "chunked"}), (411, "length", {"Content_Length": "-1"}),
    (411, "length", {"Content_Length": "1_0"}), (413, "64 MB", {"Content_Length": str(2**26 + 1)}),
]
FORM, LENGTH = "must hold an example or", "differs from the stated sizes"
BODIES = [
    (FORM, b""), (FORM, b"[]\n"), (FORM, b"[" * 10000 + b"\n"), (FORM, b" " * 2**15 + GOOD),
    (FORM, b'{"pictures": 3}\n'),
    (FORM, b'{"pictures": [["a", -1], ["b", 1]]}\n'), (FORM, b'{"pictures": [["a", true]]}\nx'),
    (FORM, b'{"pictures": [["a", 1], ["a", 1], ["a", 1], ["a", 1], ["a", 1]]}\nxxxxx'),
    (FORM, b'{"example": "test-0", "pictures": [["a", 1]]}\nx'),
    (LENGTH, b'{"pictures": [["a", 2]]}\nx'), (LENGTH, GOOD + b"x"), (LENGTH, GOOD[:-1]),
    ("a.png: cannot be read", b'{"pictures": [["a.png", 1]]}\nx'),
    ("cannot be read", b'{"pictures": [["/etc/passwd", 0]]}\n'),
    ("no such example", b'{"example": "test-9"}\n'), ("no such example", b'{"example": ["test-0"]}\n'),
    ("no view 2", b'{"example": "test-0", "without": 2}\n'),
    ("no view True", b'{"example": "test-0", "without": true}\n'),
    ("no view 'all'", b'{"example": "test-0", "without": "all"}\n'),
    ("no clue 3", b'{"example": "test-0", "clue": 3, "prompt": 0}\n'),
    ("no clue -1", b'{"example": "test-0", "clue": -1, "prompt": 0}\n'),
    ("no prompt in the bank None", b'{"example": "test-0", "clue": 0}\n'),
    ("no prompt in the bank 10.0", b'{"example": "test-0", "clue": 0, "prompt": 1e1}\n'),
]


@pytest.mark.parametrize("status, words, change", ASKERS + [(400, words, {"body": body}) for words, body in BODIES])
def test_what_is_refused(server, status, words, change):
    change = {name: value.replace("{port}", str(server.port)) if isinstance(value, str) else value
              for name, value in change.items()}
    got, answer, headers = ask(server, **{"body": GOOD, **change})
    assert got == status and words in answer["error"] and "\n" not in answer["error"], answer
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_a_clue_is_not_given_twice(server):
    model = server.writer.model
    clues = report(server, example="test-0")["study"]["c"]
    number = model.bank.texts.index(clues[1][0])
    status, answer, _ = ask(server, body(example="test-0", clue=0, prompt=number))
    assert status == 400 and "is among the clues already" in answer["error"]
    assert report(server, example="test-0", clue=1, prompt=number)["study"]["c"][1][0] == clues[1][0]


def test_its_own_page_and_programs_may_ask(server):
    for host in ("127.0.0.1", "localhost"):
        name = f"{host}:{server.port}"
        assert ask(server, GOOD, Host=name, Origin=f"http://{name}")[0] == ask(server, GOOD, Host=name)[0] == 200


def test_an_error_of_the_program_is_told_and_ends_nothing(server, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(server.writer, "opened", lambda *_: 1 / 0)
        status, answer, _ = ask(server, GOOD)
    assert status == 500 and "an error in the program" in answer["error"]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert ask(server, GOOD)[0] == 200


# --- what it survives -------------------------------------------------------------------------------------------------


def resident():
    """Megabytes that this process holds, without the freed blocks that glibc keeps for its threads."""
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


OPENED = []                                        # while it is a list: files that this process opened for writing
sys.addaudithook(lambda event, args: OPENED is not None and event == "open" and isinstance(args[2], int)
                 and args[2] & (os.O_WRONLY | os.O_RDWR) and OPENED.append(args[0]))


def test_200_requests_with_20_broken_ones_leave_memory_flat(server, run):
    """The broken ones hold 2 MB each: cut off, no picture, a picture cut off, or gone before the answer."""
    line, good = b'{"pictures": [["a.png", 2097152]]}\n', (run / "frontal.png").read_bytes()
    head = f"POST /report HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Length: {len(line) + 2**21}\r\n\r\n"
    pictures = [b"x" * 2**20, b"x" * 2**21, good[:500].ljust(2**21, b"\0"), b"x" * 2**21]

    def broken(kind):
        if kind in (0, 3):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            connection.sendall(head.encode() + line + pictures[kind])
            connection.close()
        else:
            status, answer, _ = ask(server, line + pictures[kind])
            assert status == 400 and "cannot be read" in answer["error"]

    first, levels = report(server, example="test-2"), []
    OPENED.clear()
    for number in range(200):
        if number % 10 == 5:
            broken(number // 10 % 4)
        else:
            assert ask(server, GOOD)[0] == 200
        if number % 40 == 39:
            levels.append(resident())
    assert {**report(server, example="test-2"), "seconds": 0} == {**first, "seconds": 0}
    # 16 broken ones with 32 MB lie between: kept, they would show as 25
    assert levels[-1] - levels[0] < 8, levels
    assert OPENED == []                                                        # nothing was written to any disk


def test_slow_and_idle_clients_do_not_keep_others_out(run, monkeypatch):
    monkeypatch.setattr(serve, "SECONDS", 0.6)
    server = started(tiny_loaded(run), run)
    *idle, slow = (socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(serve.CONNECTIONS))
    slow.sendall(f"POST /report HTTP/1.1\r\nHost: localhost:{server.port}\r\n".encode())
    begun = time.monotonic()
    drip = threading.Thread(target=dripped, args=(slow,), daemon=True)         # a byte now and then
    drip.start()
    assert ask(server, GOOD)[0] == 200                                         # waited for the others' time to be over
    assert 0.3 < time.monotonic() - begun < 10
    assert [connection.recv(1) for connection in idle] == [b""] * len(idle)
    drip.join(10)
    assert not drip.is_alive()


def tiny_loaded(run):
    return trrg.load(run / "ckpt.safetensors")


def dripped(connection):
    try:
        for _ in range(200):
            connection.sendall(b"a")
            time.sleep(0.05)
    except OSError:
        return


def test_one_report_at_a_time_and_too_many_are_told(run, monkeypatch):
    """BODIES requests are taken in; one is at work; one more is turned away when it has waited."""
    monkeypatch.setattr(serve, "SECONDS", 2)
    server = started(tiny_loaded(run), run)
    go, at_work, most, answer = threading.Event(), [], [], server.writer.answer

    def slow(*request):
        at_work.append(1)
        most.append(len(at_work))
        go.wait(30)
        at_work.pop()
        return answer(*request)

    monkeypatch.setattr(server.writer, "answer", slow)
    results = []
    threads = [threading.Thread(target=lambda: results.append(ask(server, GOOD)[0])) for _ in range(serve.BODIES)]
    for thread in threads:
        thread.start()
    while len(most) < 1:
        time.sleep(0.01)
    time.sleep(0.2)
    assert ask(server, GOOD)[0] == 503
    go.set()
    for thread in threads:
        thread.join()
    assert results == [200] * serve.BODIES and max(most) == 1


def test_ctrl_c_ends_it(run, tmp_path):
    """The command itself: what it prints, a report by it, and its end."""
    before = sorted(run.rglob("*"))
    command = runs.Started("evaluate", ["--ckpt", run / "ckpt.safetensors", "--serve", "--port", 0], tmp_path,
                           hook=stop_in_one_line)
    end = time.monotonic() + 60
    while "Ctrl-C" not in command.text("out") and time.monotonic() < end:
        time.sleep(0.05)
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)", command.text("out"))[1])
    assert "trained on" in ask(SimpleNamespace(port=port), path="/facts", method="GET")[1]["notice"]
    assert report(SimpleNamespace(port=port), [run / "frontal.png"])["study"]["h"]
    os.kill(command.processes[0].pid, signal.SIGINT)
    assert command.wait() == [130] and command.text("err") == "stopped\n"
    assert sorted(run.rglob("*")) == before


def test_a_port_in_use_is_told(server):
    with pytest.raises(UserError, match=f"--port {server.port}: this port cannot be used .*in use"):
        serve.serve(server.writer, server.port)
    with pytest.raises(UserError, match="--port 70000"):
        serve.serve(server.writer, 70000)


# --- a browser --------------------------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>.png"
DONE = "document.body.ariaBusy === 'false'"


@pytest.mark.skipif(not CHROME, reason="no chromium or google-chrome to press buttons in")
def test_a_browser_at_the_page(server, run, tmp_path):
    """An example, a what-if of each kind, two files, a drop with a hostile name, the keyboard; no request elsewhere."""
    hostile = tmp_path / "bad.png"
    hostile.write_bytes(b"no picture")
    with Browser(tmp_path / "profile") as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
        browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        browser.wait_for("at('example').length === 5")
        assert "no medical advice" in browser.run("at('notice').textContent")

        # An example: its report, reference, clues, heat map over each view, a token's probability by keyboard.
        browser.run("at('example').value = 'test-2', document.querySelector('#choose button').click()")
        browser.wait_for(f"{DONE} && !at('result').hidden")
        answer = report(server, example="test-2")
        assert browser.run("document.querySelector('.tokens').innerText").split() == text_of(answer).split()
        assert tiny.REPORTS[2] in browser.run("document.querySelector('.report').innerText.trim()")
        assert browser.run("document.querySelectorAll('#card > .pictures canvas').length") == 2      # the first clue's
        browser.run("document.querySelector('button.clue.on').click()")
        assert browser.run("document.querySelectorAll('#card > .pictures canvas').length") == 0
        browser.run("document.querySelector('.token').focus()")
        browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
        second = [token for sentence in answer["sentences"] for token in sentence][1]
        assert f"{100 * second[1]:.1f} %" in browser.run("document.querySelector('.detail').textContent")

        # What if.
        browser.run("document.querySelector('#changes button').click()")
        browser.wait_for(f"{DONE} && document.querySelectorAll('.side').length === 2")
        without = report(server, example="test-2", without="clues")
        sides = browser.run("[...document.querySelectorAll('.side .tokens')].map(side => side.innerText)")
        sides = [" ".join(text.split()) for text in sides]
        assert sides == [" ".join(text_of(one).split()) for one in (answer, without)]
        same = sides[0] == sides[1]
        assert ("word for word" in browser.run("at('changed').textContent")) == same
        assert (browser.run("document.querySelectorAll('.side ins, .side del').length") == 0) == same
        browser.run("at('prompt').value = 40, at('rank').value = 2, document.querySelector('#replace button').click()")
        browser.wait_for(f"{DONE} && document.querySelector('.side + .side h3').textContent.startsWith('with “')")

        # Files, the frontal view first; then one that is no picture, dropped, with a name that is markup.
        document = browser.call("DOM.getDocument")["root"]["nodeId"]
        node = browser.call("DOM.querySelector", nodeId=document, selector="#files")["nodeId"]
        browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(run / "frontal.png"), str(run / "lateral.jpg")])
        browser.wait_for(f"{DONE} && document.querySelector('#card .id').textContent === 'frontal.png, lateral.jpg'")
        assert browser.run("document.querySelectorAll('#card > .pictures img').length") == 2
        browser.run(f"""const files = new DataTransfer(); files.items.add(new File(["x"], {json.dumps(HOSTILE)}));
            document.dispatchEvent(new DragEvent("drop", {{ dataTransfer: files, cancelable: true }}))""")
        browser.wait_for(f"{DONE} && !at('error').hidden")
        assert browser.run("at('error').textContent").startswith(f"{HOSTILE}: cannot be read")
        assert browser.run("document.querySelectorAll('img[src=x]').length") == 0

        # Nothing sideways on a phone; no error, no broken policy; nobody else was asked.
        assert browser.run("document.documentElement.scrollWidth") == 390
        errors = [entry["entry"] for entry in browser.told("Log.entryAdded") if entry["entry"]["level"] == "error"]
        assert [entry["text"] for entry in errors if "status of 400" not in entry["text"]] == []
        assert browser.told("Runtime.exceptionThrown") == []
        urls = {params["request"]["url"] for params in browser.told("Network.requestWillBeSent")}
        assert {url.partition("?")[0] for url in urls if not url.startswith("data:")} == {
            f"http://127.0.0.1:{server.port}{path}" for path in (*serve.PAGE, "/facts", "/report")}


DIFFERENCE = """
const document = { getElementById: () => ({ textContent: "null" }) }, fetch = () => new Promise(() => null);
%s
const of = text => text.split("|").map(sentence => sentence.split(/(?= )/).map(token => [token, 1, []]));
const words = set => [...set].map(([text]) => text.trim());
const cases = %s;
console.log(JSON.stringify(cases.map(([a, b]) => difference(of(a), of(b)).map(words))));
"""


def test_what_changed_is_marked():
    """Sentences in both reports count as unchanged wherever they stand; in the others, the words that differ."""
    if not shutil.which("node"):
        pytest.skip("no node to run the page's script in")
    cases = [["A b c.| D e.", "A b c.| D e."], ["A b.| C d.", "C d.| A b."], ["A small b.| C.", "A large b.| C.| D."],
             ["", "A b."], ["A.| A.", "A."]]
    scripts = "".join((ROOT / f"evaluation/page/{name}").read_text(encoding="utf-8") for name in ("page.js", "try.js"))
    program = DIFFERENCE % (scripts.replace('"use strict";', ""), json.dumps(cases))
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-300:]
    assert json.loads(done.stdout) == [
        [[], []], [[], []], [["small"], ["large", "D."]], [[""], ["A", "b."]], [["A."], []]]


def test_a_large_picture_is_refused_by_its_pixels(server, tmp_path):
    Image.new("1", (10000, 8001)).save(tmp_path / "huge.png")
    status, answer, _ = ask(server, body([tmp_path / "huge.png"]))
    assert status == 400 and "pixels" in answer["error"]


def test_odd_pictures_are_told_as_image_does(server, tmp_path):
    deep = np.random.default_rng(0).integers(0, 4096, (60, 60)).astype(np.uint16)
    deep[3, 3] = 65535                                                         # a hot pixel
    Image.fromarray(deep).save(tmp_path / "hot.png")
    assert "brighter" in report(server, [tmp_path / "hot.png"])["notes"][0]
    (tmp_path / "scan.dcm").write_bytes(bytes(600))
    status, answer, _ = ask(server, body([tmp_path / "scan.dcm"]))
    with pytest.raises(UserError) as told:
        server.writer.model.report([tmp_path / "scan.dcm"])
    assert status == 400 and f"{tmp_path}/{answer['error']}" == str(told.value) and "DICOM" in answer["error"]
