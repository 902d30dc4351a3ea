import asyncio
import inspect

import hypothesis
import pytest

# The same examples each time: a run says something of the change that it runs for, and of nothing else.
hypothesis.settings.register_profile("vifd", max_examples=60, derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("vifd")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine in a loop of its own: asyncio's, unless a fixture `run` gives another."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    pyfuncitem.funcargs.get("run", asyncio.run)(pyfuncitem.obj(**arguments))
    return True
