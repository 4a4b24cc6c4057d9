"""Settings that every test shares: which tests run by default, what they need, and where their randomness comes from."""

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# The same examples on every run, so that a red build means a changed program; the extended sweep draws more of them.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """Processes of pytest-xdist share the cores: each gets its part of the threads."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the extended sweep out, unless the marker expression speaks of it."""
    if "extended" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("extended")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU; asked here, because nothing may touch a device while tests are collected."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU, and torch.cuda.is_available() is False")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20040515)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for the tests of a module: tiny models gain nothing from more, and lose a lot where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
