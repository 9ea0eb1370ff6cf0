"""Worker processes: distributing work over them, and ending them with their parent."""

import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from data.files import UserError


def in_workers(work, chunks, workers):
    """Yields the results of `work(chunk)` (an iterable) for every chunk, in the order in which chunks are finished.

    With `workers` 1 the work is done in this process. Raises UserError if a worker dies.
    """
    workers = min(workers, len(chunks))
    if workers <= 1:
        for chunk in chunks:
            yield from work(chunk)
        return

    # Forked workers start at once, without importing torch again. Forking is safe: they use only numpy and Pillow.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)

    try:
        waiting, chunks = set(), iter(chunks)
        while True:
            # Only a few chunks per worker are submitted at a time, so that results do not pile up in memory.
            with ctrl_c_later():                            # the first task forks the workers
                while len(waiting) < 4 * workers and (chunk := next(chunks, None)) is not None:
                    waiting.add(pool.submit(work, chunk))
            if not waiting:
                break
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                yield from future.result()
    except BrokenProcessPool:
        raise UserError("a worker process has died (out of memory?); the same command with fewer --workers continues "
                        "from here") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def ctrl_c_later():
    """Delays the effect of Ctrl-C within the block until the block's end.

    Needed around a fork: Python then runs hooks (logging has one) and ignores exceptions raised in them, so a Ctrl-C
    during a hook would be lost.
    """
    if threading.current_thread() is not threading.main_thread():         # only the main thread receives signals
        yield
        return
    came = []
    handler = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        signal.raise_signal(signal.SIGINT)


def start_worker():
    """Run first in every worker: ignores Ctrl-C, and ends the worker with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)           # the parent reacts to Ctrl-C
    end_with_parent()


def end_with_parent():
    """From now on this process ends when its parent ends, even if the parent is killed and cannot stop its workers."""
    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
