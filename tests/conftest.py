"""Fixtures shared by all tests. Nothing here reaches a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
import matplotlib

matplotlib.use("Agg")

import pytest

import memsub


@pytest.fixture(scope="session")
def pipe():
    return memsub.load_pipeline("tiny", device="cpu")


@pytest.fixture(scope="session")
def judges():
    return memsub.load_judges("tiny", device="cpu")


@pytest.fixture(scope="session")
def prompts():
    return memsub.load_prompts("tiny")
