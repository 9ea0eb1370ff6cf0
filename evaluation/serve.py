"""evaluate.py --serve: a web page to try a checkpoint, for a browser on the same machine.

    browser ── pictures or an example's id, and what to change ──→  Handler, a thread per connection
            ←─ report, clues, heat maps, probabilities as JSON ───  Writer, in the main thread, one request at a time

Pictures of patients do not leave the process: it listens on 127.0.0.1 only, writes nothing to disk, opens no file that
a request names, and its pages may contact no other address (Content-Security-Policy). Web pages from elsewhere cannot
use the server: requests with another Host (DNS rebinding) or another Origin (a form or script of such a page) are
refused. Limits are checked before any work: bytes, pixels, connections, time.
"""

import io
import json
import queue
import re
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer

import trrg
from data.files import UserError
from evaluation.checkpoint import decoding_of, source_of, split_of
from evaluation.labels import phantom_labeler
from evaluation.what_if import Writer

ADDRESS = "127.0.0.1"
BODY, HEAD = 64 * 2**20, 16 * 2**10    # most bytes of a request's body, and of the JSON line at its beginning
PICTURES = 4                           # views per request
CONNECTIONS, BODIES = 16, 4            # at once: connections (more wait), and bodies in memory (more wait, then 503)
SECONDS = 30                           # time limit to receive a request, and to send an answer

PAGE = {"/": ("try.html", "text/html"), "/page.css": ("page.css", "text/css"), "/try.css": ("try.css", "text/css"),
        "/page.js": ("page.js", "text/javascript"), "/try.js": ("try.js", "text/javascript")}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                               "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin"}


def serve_page(args, header, processes):
    """Serves the page of a stage-2 checkpoint until Ctrl-C. Raises UserError."""
    if processes.world > 1:
        raise UserError("--serve: runs in one process only; start it without torchrun")
    try:
        prepared, examples = split_of(header, args)
    except UserError as error:
        if args.data or args.split != "test":
            raise
        print(f"the page will offer no examples: {error}")
        prepared, examples = None, []
    model = trrg.load(args.ckpt, weights=args.weights, device=processes.device)
    model.decoding = decoding_of(header, args)
    labeler = phantom_labeler() if prepared and source_of(header, prepared) == "phantom" else None
    serve(Writer(model, args.ckpt, prepared, examples, labeler), args.port)


def serve(writer, port):
    """Serves requests until Ctrl-C. Raises UserError if the port cannot be used."""
    try:
        server = Server(writer, port)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"--port {port}: this port cannot be used ({why}); give another port, or 0 for any free "
                        "port") from None
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ends_with_ctrl_c(server)
        print(f"open http://{ADDRESS}:{server.port} in a browser on this machine; Ctrl-C stops the server", flush=True)
        server.work()


def ends_with_ctrl_c(server):
    """Makes Ctrl-C end `work` in any case. The command's own handler raises SystemExit, which Python ignores while a
    finaliser runs; the None in the queue is not lost.
    """
    command = signal.getsignal(signal.SIGINT)

    def stop(number, frame):
        server.requests.put(None)
        command(number, frame)

    signal.signal(signal.SIGINT, stop)


class Refused(Exception):
    """A refused request: (HTTP status, one line for the page)."""


class Server(ThreadingTCPServer):
    """Each connection has a thread that receives and sends; `work` computes the answers, in the thread that calls it.

    So the model runs in one thread only, the main one, which Ctrl-C interrupts between two operations.
    """

    allow_reuse_address, daemon_threads, block_on_close, request_queue_size = True, True, False, 64

    def __init__(self, writer, port):
        super().__init__((ADDRESS, port), Handler)
        self.writer, self.port = writer, self.server_address[1]
        self.facts = {**writer.facts, "body": BODY - HEAD, "pictures": PICTURES}
        self.connections, self.bodies = threading.Semaphore(CONNECTIONS), threading.Semaphore(BODIES)
        self.requests = queue.SimpleQueue()
        folder = Path(__file__).parent / "page"
        self.files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in PAGE.items()}
        # A browser leaves out HTTP's default port, 80.
        names = [f"{name}:{self.port}" for name in (ADDRESS, "localhost")]
        self.hosts = {*names, *([ADDRESS, "localhost"] if self.port == 80 else [])}

    def work(self):
        """Answers requests, one after the other, for ever."""
        while True:
            self.work_once()

    def work_once(self):
        """Answers one request, if there is one. Errors are caught here, since a stored traceback would keep the
        pictures in memory."""
        try:
            asked = self.requests.get(timeout=0.5)
        except queue.Empty:
            return          # an endless wait could miss a Ctrl-C that came just before it
        if asked is None:
            raise SystemExit(130)
        reply, request, files = asked
        try:
            answer = 200, *as_json(self.writer.answer(request, files))
        except UserError as error:
            answer = 400, *as_json({"error": " ".join(str(error).split())})
        except Exception:
            traceback.print_exc()
            answer = 500, *as_json({"error": "an error in the program; see its terminal for details"})
        reply.set_result(answer)

    def process_request(self, request, client_address):
        self.connections.acquire()                     # further connections wait; each open one has a time limit
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request, client_address):
        """Ignores clients that disconnected or were too slow; prints any other error. The server goes on."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    """One request: checks its origin and size, reads it, and sends the answer."""

    server_version, sys_version = "TRRG", ""

    def setup(self):
        super().setup()
        self.rfile = io.BufferedReader(Arriving(self.connection))

    def do_GET(self):
        self.answer(self.page)

    def do_POST(self):
        self.answer(self.report)

    def answer(self, what):
        """Sends the result of `what()`, (status, bytes, content type), if the request comes from this page."""
        try:
            self.check_asker()
            answer = what()
        except Refused as refused:
            status, why = refused.args
            answer = status, *as_json({"error": why})
        self.send(*answer)

    def page(self):
        """GET: a file of the page, or /facts, the data that the page shows at its start. Raises Refused."""
        if self.path == "/facts":
            return 200, *as_json(self.server.facts)
        if self.path not in self.server.files:
            raise Refused(404, "this server has no such page")
        return 200, *self.server.files[self.path]

    def report(self):
        """POST: passes the request to the thread that writes reports, and waits for the answer. Raises Refused."""
        if self.path != "/report":
            raise Refused(404, "this server has no such page")
        if not self.server.bodies.acquire(timeout=SECONDS / 2):
            raise Refused(503, "too many requests at once; try again in a moment")
        try:
            reply = Future()
            self.server.requests.put((reply, *self.body()))
            return reply.result()
        finally:
            self.server.bodies.release()

    def body(self):
        """(the JSON of the body's first line, the bytes of the pictures after it). Checks the length before reading."""
        lengths = self.headers.get_all("Content-Length") or ["none"]
        if len(lengths) > 1 or "Transfer-Encoding" in self.headers or not re.fullmatch("[0-9]{1,15}", lengths[0]):
            raise Refused(411, "a request must state its length exactly once")
        if (length := int(lengths[0])) > BODY:
            raise Refused(413, f"the pictures together are larger than {BODY >> 20} MB")
        body = memoryview(self.rfile.read(length))
        if len(body) < length:
            raise Refused(400, "the request was cut off")
        head, line, _ = bytes(body[:HEAD]).partition(b"\n")
        request, sizes = parsed(head)
        ends = [len(head) + 1 + sum(sizes[:number]) for number in range(len(sizes) + 1)]
        if not line or ends[-1] != length:
            raise Refused(400, "the request's length differs from the stated sizes")
        return request, [body[start:end] for start, end in zip(ends, ends[1:])]

    def check_asker(self):
        """Refuses requests, except from this server's own page or from a program on this machine (no Origin)."""
        hosts, origins = self.headers.get_all("Host") or [], self.headers.get_all("Origin") or []
        if len(hosts) != 1 or hosts[0] not in self.server.hosts:
            raise Refused(403, f"open this page as http://{ADDRESS}:{self.server.port}")
        if any(origin != f"http://{hosts[0]}" for origin in origins):
            raise Refused(403, "pages from other sites may not use this server")

    def send(self, status, data, kind):
        self.connection.settimeout(SECONDS)            # for the whole answer
        self.send_response(status)
        for name, value in {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": len(data), **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def send_error(self, code, message=None, explain=None):
        """Sends http.server's own errors, such as unknown methods, in the same JSON format."""
        self.send(code, *as_json({"error": message or self.responses[code][0]}))

    def log_message(self, *args):
        """Logs nothing, since names of pictures may be confidential."""


class Arriving(io.RawIOBase):
    """The input of a connection, with a time limit of `SECONDS` in total; a limit per read would let a slow client hold
    the connection for ever.
    """

    def __init__(self, connection):
        self.connection, self.end = connection, time.monotonic() + SECONDS

    def readable(self):
        return True

    def readinto(self, buffer):
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


def parsed(head):
    """The JSON line of a request → (the request for Writer.answer, the pictures' sizes in bytes). Raises Refused."""
    try:
        request = json.loads(head)
        pictures = request.get("pictures", [])
        names, sizes = [name for name, _ in pictures], [size for _, size in pictures]
        good = all(isinstance(name, str) for name in names) and all(type(size) is int and size >= 0 for size in sizes)
    except (ValueError, TypeError, AttributeError, RecursionError):
        good = False
    if not good or ("example" in request) == bool(names) or len(names) > PICTURES:
        raise Refused(400, f"a request must hold an example or 1 to {PICTURES} pictures, in the format that this page "
                            f"sends")
    return {**request, "pictures": names}, sizes


def as_json(value):
    return json.dumps(value, allow_nan=False).encode(), "application/json"
