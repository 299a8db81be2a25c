"""The report: facts of a run folder, a page that loads nothing from the internet, pictures; also in a browser."""

import dataclasses
import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import deap_prune as dp
from deap_prune.blending.baselines import Table, borda
from deap_prune.cli import app
from deap_prune.errors import ConfigError, RunError
from deap_prune.plot import plot_agreement
from deap_prune.report.compare_criteria import _matrix
from deap_prune.report.facts import gather
from deap_prune.report.page import _finite, in_words, render
from deap_prune.report.page import page as html_of

PICTURES = ("agreement", "blends", "front", "kept", "progress")
UNNAMED = """[...document.querySelectorAll('button,select,[tabindex]')].filter(e => !e.innerText && !e.ariaLabel
  && !e.labels?.length && !e.getAttribute('aria-labelledby')).map(e => e.outerHTML)"""
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """A run folder and its result. Tests write reports into copies of the folder."""
    folder = tmp_path_factory.mktemp("report") / "run <b>1"
    result = dp.search(
        digits.model,
        digits.example,
        calibration=digits.calibration,
        validation=digits.validation,
        criteria=("l1", "fpgm", "bn_scale", "taylor_gate"),
        population=8,
        generations=2,
        finalists=0,
        refine_images=100,
        select=None,
        out=folder,
        device="cpu",
        progress=False,
    )
    return folder, result


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run[0], tmp_path / run[0].name))


def content(page):
    text = page.read_text(encoding="utf-8")
    start = text.index('id="facts">') + len('id="facts">')
    return json.loads(text[start : text.index("</script>", start)])


def test_page_and_pictures(copy, run):
    _, result = run
    page = dp.report(copy, result=result, singles=2)
    facts = content(page)
    assert page == copy / "report.html"
    assert [s["flops"] for s in facts["solutions"]] == [s.flops for s in result.front]
    for shown, solution in zip(facts["solutions"], result.front, strict=True):
        assert shown["values"] == solution.values
        assert dict(zip((la["name"] for la in facts["layers"]), shown["kept"], strict=True)) == {
            g.name: solution.masks[g.name].sum() for g in result.space.groups
        }
    assert facts["solutions"][2]["command"].endswith("run <b>1' --number 2 --model MODULE:FUNCTION")
    assert len(facts["progress"]["points"]) == 3 and facts["progress"]["name"] == "hypervolume"
    assert {p.name for p in (copy / "report").iterdir()} == {f"{n}.{s}" for n in PICTURES for s in ("png", "svg")}
    for name in PICTURES:
        assert (copy / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ET.parse(copy / "report" / f"{name}.svg").getroot().tag.endswith("svg")


def test_names_are_text_not_markup(copy):
    text = dp.report(copy, network=False).read_text(encoding="utf-8")
    assert "<b>1" not in text and "run &lt;b&gt;1" in text


def test_single_criteria_are_evaluated_like_the_blends(copy, run):
    _, result = run
    facts = gather(copy, result=result, singles=2, network=True, progress=False)
    singles = facts.insight.singles
    assert {s.criterion for s in singles} == set(result.scores.criteria)
    one = singles[-1]
    share = max(s.flops for s in result.front) / result.space.flops
    genome = dp.Genome(result.space, result.scores, result.clusters, allocation="uniform", max_flops=share)
    masks = genome.decode(genome.single(one.criterion))
    assert (one.flops, one.params) == (dp.flops(result.space, masks), dp.params(result.space, masks))
    assert tuple(one.values.values()) == result.evaluator(masks)


def test_baselines_are_random_filters_and_the_mean_rank(copy, run):
    _, result = run
    baselines = gather(copy, result=result, singles=2, network=True, progress=False).insight.baselines
    assert {s.criterion for s in baselines} == {"random filters", "borda"}
    one = next(s for s in baselines if s.criterion == "borda")
    share = min(s.flops for s in result.front) / result.space.flops
    genome = borda(result.space, result.scores, result.clusters, allocation="uniform", max_flops=share)
    masks = genome.decode(genome.single("borda"))
    assert one.flops == dp.flops(result.space, masks) and tuple(one.values.values()) == result.evaluator(masks)


def test_other_runs_share_the_axes(copy, run, tmp_path):
    other = Path(shutil.copytree(run[0], tmp_path / "legr"))
    _, config = (other / "config.yaml").read_text().split("\n", 1)  # without the checksum
    (other / "config.yaml").write_text(config.replace("population: 8", "population: 12"))
    done = CliRunner().invoke(app, ["report", str(copy), str(other), "--no-network", "--quiet"])
    assert done.exit_code == 0, done.output
    text = (copy / "report.html").read_text(encoding="utf-8")
    assert '<tr><th scope="row">search.population</th><td>8</td><td>12</td></tr>' in text
    assert text.count(f"<td>{run[1].front.hypervolume():.4f}</td>") == 2 and "<td>0%</td></tr>" in text
    (beside,) = content(copy / "report.html")["beside"]
    assert beside["name"] == "legr" and [s["flops"] for s in beside["solutions"]] == [s.flops for s in run[1].front]
    front = json.loads((other / "front.json").read_text())
    del front["sha256"]
    for change, message in (
        ({"dense": {**front["dense"], "flops": 7}}, "has 7 multiply-adds"),
        ({"objectives": front["objectives"][:1]}, r"solution 0 has values of \['accuracy', 'flops'\], not of"),
    ):
        (other / "front.json").write_text(json.dumps({**front, **change}))
        with pytest.raises(RunError, match=message):
            dp.report(copy, network=False, beside=[other])


def test_runs_of_one_name_are_told_apart_by_their_paths(copy, run, tmp_path):
    others = [shutil.copytree(run[0], tmp_path / parent / copy.name) for parent in ("a", "b")]
    page = dp.report(copy, network=False, beside=others)
    assert [one["name"] for one in content(page)["beside"]] == [str(other) for other in others]
    with pytest.raises(RunError, match="is given twice; give another run"):
        dp.report(copy, network=False, beside=[copy.parent / "." / copy.name])


def test_criteria_without_a_common_layer_are_blank(tmp_path):
    """Their correlation is unknown, not 0."""
    up = np.arange(4.0)
    clusters = dp.cluster(Table({"g": {"a": up, "b": up, "d": -up}, "h": {"a": up, "c": up}}))
    assert _finite(clusters.correlation()[1].tolist())[1][3] is None
    line = next(line for line in _matrix(clusters).splitlines() if line.split()[1:2] == ["b"])
    assert line.split()[2:] == ["1.00", "1.00", "-1.00", "-"]
    plot_agreement(clusters, tmp_path / "agreement.svg")
    text = (tmp_path / "agreement.svg").read_text(encoding="utf-8")
    assert "<!-- 1.00 -->" in text and "nan" not in text


def test_mean_shares_and_kept(copy, run):
    _, result = run
    facts = gather(copy, result=result, singles=0, network=True, progress=False)
    names, shares = facts.shares()
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert set(names) == set(result.scores.criteria) and facts.insight.singles == []
    masks = result.front[0].masks
    np.testing.assert_allclose(facts.kept()[:, 0], [masks[g.name].mean() for g in result.space.groups])


def test_an_incomplete_folder(copy, tmp_path):
    """Without network, history, config, versions, settings or dense values, the page shows the rest."""
    for name in ("history.csv", "versions.json", "config.yaml"):
        (copy / name).unlink()
    front = json.loads((copy / "front.json").read_text())
    front["settings"] = {}
    del front["dense"]["values"], front["sha256"]
    (copy / "front.json").write_text(json.dumps(front))
    page = dp.report(copy)
    facts, text = content(page), page.read_text(encoding="utf-8")
    assert facts["progress"]["points"] == [] and facts["agreement"] == [] and len(facts["solutions"]) > 1
    assert "No criteria in this report: no config at" in text and "the run stored none" in text
    assert {p.stem for p in (copy / "report").iterdir()} == {"front", "kept"}


def test_one_objective(digits, tmp_path):
    folder = tmp_path / "one"
    data = {"calibration": digits.calibration, "validation": digits.validation, "device": "cpu"}
    options = {
        "objectives": ("loss",),
        "max_flops": 0.5,
        "population": 4,
        "generations": 1,
        "criteria": ("l1", "l2"),
        "refine": False,
    }
    result = dp.search(digits.model, digits.example, **data, **options, out=folder, progress=False)
    facts = content(dp.report(folder, result=result, singles=1))
    assert facts["progress"]["name"] == "loss" and len(facts["solutions"]) == 1


def test_a_run_of_mean_ranks(digits, tmp_path):
    """Its genome has one criterion, Borda; the single criteria are the scored ones."""
    data = {"calibration": digits.calibration, "validation": digits.validation, "device": "cpu"}
    options = {"algorithm": "borda", "population": 4, "refine": False, "criteria": ("l1", "fpgm")}
    result = dp.search(digits.model, digits.example, **data, **options, out=tmp_path / "run", progress=False)
    facts = gather(tmp_path / "run", result=result, singles=1, network=True, progress=False)
    assert {s.criterion for s in facts.insight.singles} == {"l1", "fpgm"}
    assert all(blend == {"borda": 1.0} for blend in facts.insight.blends[0].values())


def test_errors(copy, tmp_path):
    with pytest.raises(RunError, match="there is no folder"):
        dp.report(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="singles is -1"):
        dp.report(copy, singles=-1)
    versions = (copy / "versions.json").read_text()
    (copy / "versions.json").write_text(versions[:-5])
    with pytest.raises(RunError, match=r"versions\.json' can't be read .*; remove it"):
        dp.report(copy, network=False)
    (copy / "versions.json").write_text(versions)
    refused = CliRunner().invoke(app, ["report", str(tmp_path / "nothing")])
    assert refused.exit_code == 2 and "there is no folder" in refused.stderr


def watched_page(context):
    """A page, its console messages, and the addresses that it asks for."""
    page, messages, requests = context.new_page(), [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    return page, messages, requests


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_in_a_browser(browser, copy, run, width, scheme):
    """No console messages, no further requests, no horizontal scrolling; every point can be clicked."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, messages, requests = watched_page(context)
    path = dp.report(copy, result=run[1], singles=2).resolve().as_uri()
    page.goto(path)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    page.locator("#front").scroll_into_view_if_needed()
    for number, solution in enumerate(run[1].front):
        box = page.locator(f'#front [data-number="{number}"]').bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert f"--number {number} " in page.text_content("#command")
        assert f"{solution.flops:,}" in page.text_content("#costs")
        assert page.locator('#front [aria-checked="true"]').get_attribute("data-number") == str(number)
    page.locator('#front [aria-checked="true"]').focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert "--number 1 " in page.text_content("#command")
    assert page.evaluate("document.activeElement.dataset.number") == "1"
    page.click("#solutions button >> nth=0")
    assert "--number 0 " in page.text_content("#command")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") != scheme
    page.select_option("#layer", "1")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert messages == [] and requests == [path]


@pytest.mark.slow
def test_what_a_screen_reader_finds(browser, copy, run):
    page, *_ = watched_page(browser.new_context())
    page.goto(dp.report(copy, result=run[1], singles=2).resolve().as_uri())
    best = run[1].front[0]
    assert page.get_by_role("radio").count() == len(run[1].front)
    name = f"solution 0, accuracy {best.values['accuracy']:.4f}".rstrip("0")
    assert page.get_by_role("radio").first.get_attribute("aria-label").startswith(name)
    assert page.get_by_role("region", name="Kept filters").first.is_visible()
    assert page.evaluate(UNNAMED) == []


@pytest.mark.slow
def test_an_incomplete_page_in_a_browser(browser, copy):
    (copy / "history.csv").unlink()
    page, messages, _ = watched_page(browser.new_context())
    page.goto(dp.report(copy, network=False).resolve().as_uri())
    page.wait_for_selector("#kept td")
    assert messages == [] and not page.is_visible("#progress-section") and not page.is_visible("#agreement-section")


def test_render_needs_only_facts(copy, tmp_path):
    facts = gather(copy, result=None, singles=0, network=False, progress=False)
    assert content(render(facts, tmp_path / "page.html"))["tiles"]["solutions"] == str(len(facts.front))


def test_figures_are_those_of_the_front(copy, run):
    """Tiles, and the end of the curve, follow from front.json; the history holds values before refinement."""
    front, facts = run[1].front, content(dp.report(copy, network=False))
    assert facts["tiles"]["hypervolume"] == f"{front.hypervolume():.4f}"
    assert facts["progress"]["final"] == pytest.approx(front.hypervolume())
    assert facts["tiles"]["accuracy at ≤ 50% FLOPs"] == f"{front.best(max_flops=0.5).values['accuracy']:.4f}"


def test_flops_of_layers(copy, run):
    """Those of a layer's group are what the network saves, were the whole group gone."""
    _, result = run
    facts = content(dp.report(copy, result=result, singles=0))
    space = result.space
    dense, solutions = facts["layer_flops"]["dense"], facts["layer_flops"]["solutions"]
    for number, solution in enumerate(result.front):
        kept = space.kept_counts(solution.masks)
        for place in range(len(kept)):
            without = kept.copy()
            without[place] = 0
            saved = int(space.flops_of(kept) - space.flops_of(without))
            assert saved == pytest.approx(solutions[number][place], abs=1)
    assert len(dense) == len(space.groups) and all(d >= s for d, s in zip(dense, solutions[0], strict=True))


def test_the_page_says_what_selected_the_filters(copy, run):
    facts = gather(copy, result=run[1], singles=0, network=True, progress=False)
    assert "\n  select: null\n" in facts.config and "Refinement selected" not in html_of(facts)
    selected = dataclasses.replace(facts, config=facts.config.replace("select: null", "select: sequential"))
    assert "Refinement selected the filters of these networks" in html_of(selected)


def test_settings_are_said_in_words() -> None:
    settings = {"recalibrate": "closed_form", "compensate": "auto", "refine": True, "refine_images": 500}
    settings |= {"refine_rows": 64, "select": False, "recover": 0, "moment_memory": 2048, "refine_memory": 1.0}
    text = in_words(settings | {"batch_size": 250, "seed": 3})
    assert text == (
        "layers re-fitted in closed form (matrices as memory allows, at most 2048 MB), BN statistics computed from "
        "moments, refined on at most 500 images, 64 positions each, in 1 GB, batch size 250, seed 3"
    )
    plain = in_words(settings | {"recalibrate": "data", "compensate": None, "refine": False})
    assert plain == "layers not re-fitted, BN statistics measured on the calibration images, not refined"
    assert in_words({}) == ""


def test_the_caption_names_the_symbols_that_are_there(copy):
    facts = gather(copy, result=None, singles=0, network=False, progress=False)
    assert "Open symbols" not in html_of(facts) and "Green" not in html_of(facts)
    beside = dataclasses.replace(facts, beside={"other": facts.front})
    assert "Green: other runs." in html_of(beside) and "Open symbols" not in html_of(beside)
