"""The built site in headless Chromium, as a reader sees it. `make docs` builds it into out/docs.

Skipped, with the reason, without the site, Chromium (Debian's package `chromium`) or playwright.
"""

import functools
import http.server
import itertools
import shutil
import threading
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "out" / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html") if "_static" not in path.parts)
WIDTHS, SCHEMES, PARTS = (400, 1400), ("light", "dark"), 4
CONTRAST = 7.0
"""What WCAG asks for at its level AAA."""

MEASURE = """() => {
    const of = (element, key) => getComputedStyle(element)[key].match(/[\\d.]+/g).slice(0, 3).map(x => x / 255);
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const [text, ground] = [of(document.querySelector("article") || document.body, "color"),
                            of(document.body, "backgroundColor")].map(light);
    return {
        overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        ground, contrast: (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05),
        unrendered: document.querySelectorAll(".math").length
            - document.querySelectorAll(".math mjx-container").length,
        wrong: document.querySelectorAll("mjx-merror, [data-mjx-error]").length,
        missing: [...document.images].filter(i => i.offsetParent && i.complete && !i.naturalWidth).map(i => i.src),
    };
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def home():
    """The address of a server of the site on this machine."""
    if not PAGES:
        pytest.skip("out/docs has no site: run `make docs` first")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Reader:
    """A tab that collects complaints: errors in the console, failed requests, and requests to elsewhere."""

    def __init__(self, browser, home):
        self.home, self.complaints = home, []
        self.page = browser.new_page(viewport={"width": WIDTHS[1], "height": 900})
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("response", lambda got: got.ok or self.complaints.append(f"{got.status} {got.url}"))
        self.page.route("**/*", self.asked)

    def asked(self, route):
        url = route.request.url
        if url.startswith((self.home, "data:", "blob:")):
            route.continue_()
        else:
            self.complaints.append(f"asks for {url}")
            route.abort()

    def open(self, path):
        self.page.goto(self.home + path, wait_until="load")
        if self.page.query_selector(".math"):
            self.page.evaluate("() => MathJax.startup.promise")


@pytest.mark.parametrize("part", range(PARTS))
def test_every_page(browser, home, part):
    """Loads without a complaint, with its math and pictures; is readable and fits at both widths, light and dark."""
    reader, found = Reader(browser, home), []
    for path in PAGES[part::PARTS]:
        reader.open(path)
        for scheme, width in itertools.product(SCHEMES, WIDTHS):
            reader.page.emulate_media(color_scheme=scheme)
            reader.page.set_viewport_size({"width": width, "height": 900})
            seen, where = reader.page.evaluate(MEASURE), f"{path}, {scheme}, {width} pixels wide:"
            found += [f"{where} {seen['overflow']} pixels too wide"] if seen["overflow"] > 0 else []
            found += [f"{where} {key} {seen[key]}" for key in ("unrendered", "wrong", "missing") if seen[key]]
            found += [f"{where} a contrast of {seen['contrast']:.1f}"] if seen["contrast"] < CONTRAST else []
            found += [f"{where} not {scheme}"] if (seen["ground"] > 0.5) != (scheme == "light") else []
        found += [f"{path}: {said}" for said in reader.complaints]
        reader.complaints.clear()
    assert len(PAGES) > 300 and found == []


def test_math_is_there(browser, home):
    reader = Reader(browser, home)
    reader.open("api/adamw.html")
    assert reader.page.locator("mjx-container svg").count() > 3
    assert reader.page.locator("mjx-container").first.bounding_box()["height"] > 20


def test_search_finds(browser, home):
    reader = Reader(browser, home)
    reader.open("index.html")
    reader.page.fill("input[name=q]", "weight decay")
    reader.page.press("input[name=q]", "Enter")
    reader.page.wait_for_url("**/search.html?*")
    reader.page.wait_for_function("() => document.querySelector('#search-results')?.innerText.includes('finished')")
    links = reader.page.eval_on_selector_all("#search-results ul.search li a", "all => all.map(a => a.href)")
    assert any("add_decayed_weights" in link for link in links), links
    assert reader.complaints == []


@pytest.mark.parametrize("origin", ["optax", "keras", "torch"])
def test_a_newcomer_needs_two_clicks(browser, home, origin):
    """From the first page to the table of one's library, and from there to the recipe of each task."""
    reader = Reader(browser, home)
    reader.open("index.html")
    into = reader.page.eval_on_selector_all("a", "all => all.map(a => a.href)")
    assert any(link.split("#")[0].endswith(f"coming_from/{origin}.html") for link in into), into
    reader.open(f"coming_from/{origin}.html")
    rows = reader.page.eval_on_selector_all(
        "article tr", "all => all.map(r => [r.innerText, r.querySelector('a')?.href])"
    )
    for task in ("rate", "decay", "freeze", "clip", "accumulate", "resume", "norm", "shard"):
        links = [link for text, link in rows if task in text.lower() and link]
        assert links, f"{origin}: no row with a link for {task!r}"
    targets = [link for _, link in rows if link and link.startswith(home)]
    for link in dict.fromkeys(targets):
        path, _, anchor = link.removeprefix(home).partition("#")
        assert (SITE / path).exists(), link
        assert not anchor or f'id="{anchor}"' in (SITE / path).read_text(), link
