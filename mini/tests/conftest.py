"""The mini's tests use the fixtures and the options of the pack's."""

import conftest
from conftest import mini, rates, same_threads, server  # noqa: F401


def pytest_addoption(pluginmanager):
    """Run without the pack's tests, the mini's register what those would have."""
    if not pluginmanager.has_plugin(conftest.__file__):
        pluginmanager.register(conftest, conftest.__file__)
