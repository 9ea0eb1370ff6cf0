"""The suite is for the CPU and does not look at a GPU; `python -m pytest -m cuda` runs the tests that need one."""

import os

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: needs a GPU; runs with -m cuda alone")
    if config.option.markexpr != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    import torch
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU, and -m cuda"))
