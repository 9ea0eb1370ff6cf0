"""Worker processes: work spread over several, and the end of those whose parent was killed."""

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
    """Yields the results of `work` on every chunk, in the order in which they come."""
    workers = min(workers, len(chunks))
    if workers <= 1:
        for chunk in chunks:
            yield from work(chunk)
        return

    # Forked workers start at once, without importing torch again. They touch nothing but numpy and Pillow.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)

    try:
        waiting, chunks = set(), iter(chunks)
        while True:
            # A few chunks per worker in flight: whatever the data set's size, results do not pile up in memory.
            with ctrl_c_later():                            # the first task forks the workers
                while len(waiting) < 4 * workers and (chunk := next(chunks, None)) is not None:
                    waiting.add(pool.submit(work, chunk))
            if not waiting:
                break
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                yield from future.result()
    except BrokenProcessPool:
        raise UserError("a worker process has died (out of memory?); the same command with fewer --workers goes on "
                        "from here") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def ctrl_c_later():
    """A Ctrl-C within the block is answered at its end.

    Needed around a fork: Python runs hooks then (logging has one), and drops whatever is raised inside of them.
    """
    if threading.current_thread() is not threading.main_thread():         # no other thread is told of signals
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)           # Ctrl-C is the parent's to answer
    end_with_parent()


def end_with_parent():
    """From now on this process ends when its parent does: one that is killed can't tell its workers."""
    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
