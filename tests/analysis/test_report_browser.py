"""The report in a headless Chromium, from disk. Screenshots lie in the temporary folder of the session."""

import shutil

import pytest

from analysis.report import page
from tests.analysis import capture_simulate
from tests.analysis.metric_simulate import MetricSimulation
from tests.analysis.simulate import HALF_OCTAVES, MACHINE, Simulation

PEAKS = {"copy_bytes_per_s": 1e10, "matmul_flops": {"fp32": 1e11}, "exp_per_s": 1e9}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "device_scale_factor": 2}
FIGURES = 10
DARK = DESKTOP | {"color_scheme": "dark"}

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    run = tmp_path_factory.mktemp("report")
    simulation = Simulation(
        seqlens=HALF_OCTAVES[::2], machine=MACHINE | {"peaks": PEAKS}, unavailable={"cuda": "no CUDA device"},
        out_of_memory={("llama", "hf"): 2048},
    )  # fmt: skip
    MetricSimulation(layers=2, seeds=2).write(simulation.write(run) / "metrics.jsonl")
    for arch in ("mamba", "llama"):
        capture_simulate.write(run, arch, kernel="<img src=x onerror=alert(1)>")
    return page.build([run])


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Two runs of three lengths, the second with all logits."""
    runs = [tmp_path_factory.mktemp(name) for name in ("before", "after")]
    for run, logits in zip(runs, ("last", "all"), strict=True):
        Simulation(seqlens=(128, 256, 512), rounds=2, options={"logits": logits}).write(run)
    return page.build(runs)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, report):
    """Open the report, or `path`, in a window of some kind, without a network: (options) -> page."""
    contexts, complaints, requests, opened_paths = [], [], [], set()

    def opened(path=report, **options):
        opened_paths.add(path.as_uri())
        contexts.append(browser.new_context(offline=True, **options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(path.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} == opened_paths


def draw_all(tab):
    """Scroll through the page until every figure is drawn; returns their number."""
    figures = tab.locator(".chart")
    for i in range(figures.count()):
        figures.nth(i).scroll_into_view_if_needed()
        playwright.expect(figures.nth(i).locator("svg")).to_be_visible()
    return figures.count()


def shot(tab, report, name):
    tab.evaluate("scrollTo(0, 0)")
    tab.screenshot(path=report.parent / f"{name}.png", full_page=True)


def test_figures_are_drawn_with_their_marks(open_page, report):
    tab = open_page(**DESKTOP)
    assert draw_all(tab) == FIGURES
    for figure in tab.locator(".chart").all():
        assert figure.locator("svg .role-mark path").count() >= 4
        assert not figure.locator("img").is_visible()
    shot(tab, report, "desktop")
    timing = tab.evaluate("performance.getEntriesByType('navigation')[0].duration")
    print(f"loaded in {timing:.0f} ms")


def test_hover_shows_values(open_page):
    tab = open_page(**DESKTOP)
    draw_all(tab)
    chart = tab.locator(".chart[id^=time-]")
    chart.scroll_into_view_if_needed()
    chart.locator("svg .role-mark.mark-symbol path").nth(3).hover(force=True)
    tip = tab.locator("#vg-tooltip-element")
    playwright.expect(tip).to_be_visible()
    assert "tokens" in tip.inner_text()
    assert "ms" in tip.inner_text()
    matrix = tab.locator(".chart[id^=ratio-time]")
    matrix.locator("svg .mark-rect path").first.hover(force=True)
    playwright.expect(tip).to_contain_text("llama / mamba")


def test_hover_names_the_range_that_takes_the_time(open_page):
    tab = open_page(**DESKTOP)
    chart = tab.locator("#spent-time")
    chart.scroll_into_view_if_needed()
    playwright.expect(chart.locator("svg .mark-rect path")).to_have_count(7)
    chart.locator("svg .mark-rect path").first.hover(force=True)
    tip = tab.locator("#vg-tooltip-element")
    playwright.expect(tip).to_contain_text("op/causal_attention")
    playwright.expect(tip).to_contain_text("67 %, 40.0 ms (host time)")
    tab.get_by_text("What took most of it: mamba cpu 512").click()
    kernel = tab.get_by_role("cell", name="<img src=x onerror=alert(1)>").first
    playwright.expect(kernel).to_be_visible()


def test_hover_names_the_run_of_a_comparison(open_page, comparison):
    tab = open_page(comparison, **DESKTOP)
    chart = tab.locator(".chart[id^=both-]")
    chart.scroll_into_view_if_needed()
    playwright.expect(chart.locator("svg .mark-symbol path").first).to_be_visible()
    assert len(set(chart.locator("svg .mark-line path").evaluate_all(
        "paths => paths.map((p) => p.getAttribute('stroke-dasharray'))"
    ))) >= 4  # fmt: skip
    chart.locator("svg .role-mark.mark-symbol path").last.hover(force=True)
    playwright.expect(tab.locator("#vg-tooltip-element")).to_contain_text("after")


def test_a_length_can_be_chosen(open_page):
    tab = open_page(**DESKTOP)
    draw_all(tab)
    matrix = tab.locator(".chart[id^=ratio-time]")
    texts = lambda: matrix.locator("svg .mark-text text").all_text_contents()
    before = texts()
    matrix.locator("select").select_option("128")
    playwright.expect(matrix.locator("svg .mark-text text").first).not_to_have_text(before[0])
    assert any("out of memory" in text for text in before)


def test_axes_become_linear_and_logarithmic_again(open_page):
    tab = open_page(**DESKTOP)
    draw_all(tab)
    labels = lambda: tab.locator(".chart[id^=time-] .role-axis-label text").all_text_contents()
    button = tab.locator("#linear")
    logarithmic = labels()
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    tab.wait_for_function("document.querySelector('.chart[id^=time-]').view.scale('y').type === 'linear'")  # fmt: skip
    assert labels() != logarithmic
    button.click()
    tab.wait_for_function("document.querySelector('.chart[id^=time-]').view.scale('y').type === 'log'")  # fmt: skip
    assert labels() == logarithmic


def test_dark_follows_the_system_and_the_button(open_page, report):
    background = "getComputedStyle(document.body).backgroundColor"
    tab = open_page(**DARK)
    draw_all(tab)
    assert tab.locator("#theme").get_attribute("aria-pressed") == "true"
    dark = tab.evaluate(background)
    shot(tab, report, "dark")
    tab.locator("#theme").click()
    assert tab.locator("#theme").get_attribute("aria-pressed") == "false"
    assert tab.evaluate(background) == open_page(**DESKTOP).evaluate(background) != dark


CONTRAST = """() => {  // the least of the page, by the formula of WCAG 2
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    const colour = e ? parse(getComputedStyle(e).backgroundColor) : [255, 255, 255];
    return colour.length < 4 || colour[3] ? colour : ground(e.parentElement);
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const words = document.querySelectorAll("h1, h2, p, li, a, th, td, caption, button, summary, figcaption, pre");
  return Math.min(...[...words].map((e) => ratio(light(parse(getComputedStyle(e).color)), light(ground(e)))));
}"""


@pytest.mark.parametrize("options", [DESKTOP, DARK], ids=["light", "dark"])
def test_text_has_contrast(open_page, options):
    assert open_page(**options).evaluate(CONTRAST) >= 4.5


def test_the_keyboard_reaches_everything_in_order(open_page):
    tab = open_page(**DESKTOP)
    order = []
    for _ in range(5):
        tab.keyboard.press("Tab")
        order.append(tab.evaluate("document.activeElement.id || document.activeElement.hash"))
    assert order == ["#main", "theme", "linear", "#headline", "#ratio-matrix"]
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.locator("#theme").focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#theme").get_attribute("aria-pressed") == "true"
    summary = tab.locator("summary").first
    summary.focus()
    tab.keyboard.press("Enter")
    playwright.expect(tab.locator("details").first.locator("table").first).to_be_visible()


def test_it_fits_a_phone(open_page, report):
    tab = open_page(**PHONE)
    assert draw_all(tab) == FIGURES
    tab.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    tab.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = false))")
    shot(tab, report, "phone")


def test_it_prints_pictures_on_white(open_page, report):
    tab = open_page(**DARK)
    draw_all(tab)
    tab.emulate_media(media="print")
    assert all(image.is_visible() for image in tab.locator(".chart img").all())
    assert not any(live.is_visible() for live in tab.locator(".chart .live").all())
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.pdf(path=report.parent / "print.pdf", format="A4")
    shot(tab, report, "print")


def test_without_scripts_the_pictures_stand(browser, report):
    context = browser.new_context(java_script_enabled=False, **DESKTOP)
    tab = context.new_page()
    tab.goto(report.as_uri())
    assert tab.locator(".chart img").count() == FIGURES
    assert all(image.is_visible() for image in tab.locator(".chart img").all())
    assert not tab.locator("#theme").is_visible()
    context.close()


def test_data_can_be_downloaded(open_page, report):
    tab = open_page(**DESKTOP)
    with tab.expect_download() as download:
        tab.get_by_role("link", name="cells.csv").click()
    text = download.value.path().read_text()
    assert text.splitlines()[0].startswith("arch,impl,preset,seqlen")
    assert len(text.splitlines()) == 1 + 4 * 5 + 2 * 5
