"""The examples in docstrings run: first the package's, then each of the others with the names that it defines."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import deap_prune as dp
from deap_prune.criteria import CRITERIA
from deap_prune.fitness.objectives import OBJECTIVES

MODULES = [importlib.import_module(m.name) for m in pkgutil.walk_packages(dp.__path__, "deap_prune.")]
FIND = doctest.DocTestFinder(exclude_empty=True, recurse=True)
EXAMPLES = {t.name: t for m in MODULES for t in FIND.find(m, globs={}) if t.examples}
MAIN = (dp.trace, dp.score, dp.cluster, dp.Genome, dp.Masks, dp.flops, dp.params, dp.slim, dp.masked, dp.make_toolbox)


def run(test, names):
    """Run one docstring's examples in a dictionary of names, which they extend."""
    test.globs = names
    report = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append, clear_globs=False)
    assert not report, "".join(report)


@pytest.fixture
def names(tmp_path, monkeypatch):
    """The names that the package's docstring defines, new for each test."""
    monkeypatch.chdir(tmp_path)
    for registry in (CRITERIA, OBJECTIVES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    (first,) = FIND.find(dp, "deap_prune", globs={})[:1]
    defined = {}
    run(first, defined)
    return defined


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, names):
    if "torch_pruning" in EXAMPLES[name].docstring:
        pytest.importorskip("torch_pruning")
    run(EXAMPLES[name], names)


def test_the_main_functions_have_an_example():
    assert {f"{inspect.getmodule(main).__name__}.{main.__qualname__}" for main in MAIN} <= EXAMPLES.keys()
