"""The live page: live.json, the server and its token, updates in a browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from typer.testing import CliRunner

import deap_prune as dp
from deap_prune.cli import app
from deap_prune.errors import RunError
from deap_prune.report import live
from deap_prune.report.live import live_facts, served
from deap_prune.search.live_state import read_live
from tests.report.test_report import browser, watched_page  # noqa: F401  a fixture


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """A run folder, and the states of live.json after each generation."""
    folder, states = tmp_path_factory.mktemp("live") / "run", []
    data = {"calibration": digits.calibration, "validation": digits.validation, "device": "cpu"}
    dp.search(
        digits.model,
        digits.example,
        **data,
        criteria=("l1", "fpgm"),
        population=4,
        generations=1,
        refine=False,
        progress=False,
        out=folder,
        callbacks=[lambda state: states.append([individual.fitness.values for individual in state.archive])],
    )
    return folder, states


def during(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder as it is while the run goes on."""
    copy = tmp_path / "run"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("front.*", "masks"))
    return copy


def read(address: str, **headers: str) -> str:
    with urlopen(Request(address, headers=headers)) as answer:
        return answer.read().decode()


def test_live_json_is_the_archive_of_the_last_generation(run, tmp_path):
    folder, states = run
    state = read_live(folder)
    assert (state.generation, state.generations) == (1, 1)
    assert sorted(tuple(s.values.values()) for s in state.front) == sorted(states[-1])
    front = dp.ParetoFront.load(folder)
    assert [s.masks for s in state.front] == [s.masks for s in front]  # nothing was refined
    facts = live_facts(during(folder, tmp_path))
    assert facts.status.startswith("Generation 1 of 1.") and facts.layers == state.layers
    assert live_facts(folder).status == ""


def test_the_server_answers_with_its_token_alone(run, tmp_path):
    copy = during(run[0], tmp_path)
    with served(copy) as watched:
        assert watched.address.startswith("http://127.0.0.1:")
        page, facts = read(watched.address), json.loads(read(watched.address + "facts"))
        assert "connect-src 'self'" in page and facts["live"] and len(facts["solutions"]) >= 1
        root = watched.address.rsplit("/", 2)[0]
        refused = [(root + "/", {}), (root + "/wrong/facts", {}), (watched.address + "../config.yaml", {})]
        for address, headers in [*refused, (watched.address, {"Host": "evil.example:80"})]:
            with pytest.raises(HTTPError, match="404"):
                read(address, **headers)
        (copy / "live.json").write_text("{")
        with pytest.raises(HTTPError, match="503"):
            read(watched.address + "facts")


def test_a_run_that_has_not_begun(tmp_path):
    with served(tmp_path / "later") as watched:
        facts = json.loads(read(watched.address + "facts"))
    assert facts["solutions"] == [] and facts["status"].startswith("Waiting for the first generation")


def test_errors(run, tmp_path):
    copy = during(run[0], tmp_path)
    with served(copy) as watched:
        port = watched.address.split(":")[2].split("/")[0]
        refused = CliRunner().invoke(app, ["watch", str(copy), "--port", port])
    assert refused.exit_code == 2 and f"port {port} can't be used" in refused.stderr
    text = json.loads((copy / "live.json").read_text())
    text["solutions"][0]["masks"] = "00"
    (copy / "live.json").write_text(json.dumps(text))
    with pytest.raises(RunError, match=r"live\.json' can't be read"):
        read_live(copy)


def test_watch_prints_the_address(run, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(live, "wait", interrupt)
    done = CliRunner().invoke(app, ["watch", str(run[0])])
    assert done.exit_code == 0 and "open http://127.0.0.1:" in done.output and "stopped" in done.output


@pytest.mark.slow
def test_the_page_updates_itself(browser, run, tmp_path):  # noqa: F811
    from playwright import sync_api

    copy = during(run[0], tmp_path)
    state = json.loads((copy / "live.json").read_text())
    (copy / "live.json").unlink()
    with served(copy) as watched:
        page, messages, requests = watched_page(browser.new_context())
        page.goto(watched.address)
        assert "Waiting for the first generation" in page.text_content("#status")
        (copy / "live.json").write_text(json.dumps({**state, "generation": 0, "generations": 7}))
        sync_api.expect(page.locator("#status")).to_contain_text("Generation 0 of 7")
        assert page.get_by_role("radio").count() == len(state["solutions"])
        (copy / "live.json").write_text(json.dumps({**state, "generation": 1, "generations": 7}))
        sync_api.expect(page.locator("#status")).to_contain_text("Generation 1 of 7")
    assert messages == [] and all(address.startswith(watched.address) for address in requests)
