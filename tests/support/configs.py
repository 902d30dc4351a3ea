"""Configurations, read as vifd reads them."""

from __future__ import annotations

from vifd import config
from vifd.drivers import catalog
from vifd.errors import ConfigError

BUILT_IN = catalog.load()


def parse(text: str) -> config.Config:
    """Read a configuration with the built-in network drivers."""
    options = {name: driver.options for name, driver in BUILT_IN.items()}
    return config.parse(text, options, lambda name, values: catalog.check_options(BUILT_IN, name, values))


def problems(text: str) -> dict[str, str]:
    """Read a wrong configuration: what is wrong, by key."""
    try:
        parse(text)
    except ConfigError as error:
        return dict(error.problems)
    raise AssertionError("the configuration is right")
