"""ComfyUI's page in a real Chromium, driven as a person drives it: by mouse and keys, at what is on the screen.

The graph is a canvas, so where a node is drawn is asked of the page; what is done there is done with the mouse.
"""

import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import JavascriptException, WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "window-size=1400,900"),
)
MISSING = "no Chromium with its driver is installed here (Debian and Ubuntu: apt-get install chromium chromium-driver)"
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}  # no greeting, nothing over the graph
NOWHERE = (700, 18)  # on the page, where nothing answers the pointer
PLACE = """
    const [find, offset] = arguments, canvas = app.canvas.canvas.getBoundingClientRect()
    const node = app.graph._nodes.find(node => node.title == find)
    const at = typeof offset == "object" ? [node.pos[0] + offset[0], node.pos[1] + offset[1]]
        : node.getConnectionPos(...(node.findInputSlot(offset) >= 0
            ? [true, node.findInputSlot(offset)] : [false, node.findOutputSlot(offset)]))
    const [x, y] = app.canvas.ds.convertOffsetToCanvas(at)
    return [canvas.left + x, canvas.top + y]
"""


def browser_and_driver() -> tuple[str, str] | None:
    """Where Chromium and its driver are, if both are."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


def start(profile: Path) -> webdriver.Chrome:
    """A Chromium with a new profile."""
    browser, driver = browser_and_driver()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


class Gui:
    """One page of ComfyUI."""

    def __init__(self, driver: webdriver.Chrome, url: str, folder: Path):
        """`folder` gets a picture of the page when something that is waited for does not come."""
        self.driver = driver
        self.url = url
        self.last_seen = folder / "page.png"
        self.js = driver.execute_script

    def open(self) -> None:
        """Load the page as in a browser that has not seen it before."""
        self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": self.url, "storageTypes": "all"})
        self.driver.get(self.url)
        self.until(lambda: self.js("return Boolean(window.app?.extensionManager && app.graph)"), "ComfyUI's page")
        self.button("Templates")

    def until(self, found: Callable, what: str, seconds: float = 30):
        """What `found` gives, as soon as it gives something."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if answer := found():
                    return answer
            except (JavascriptException, WebDriverException):  # not there yet, or not there any more
                pass
            time.sleep(0.1)
        self.driver.save_screenshot(str(self.last_seen))
        raise AssertionError(f"waited {seconds:g} s for {what}; {self.last_seen} shows the page")

    def element(self, xpath: str, what: str, seconds: float = 30) -> WebElement:
        """The first element that is shown."""
        shown = lambda: next(filter(WebElement.is_displayed, self.driver.find_elements(By.XPATH, xpath)), None)  # noqa: E731
        return self.until(shown, what, seconds)

    def button(self, label: str) -> WebElement:
        return self.element(f"//button[starts-with(@aria-label, '{label}')]", f"the button {label}")

    def marked(self, identity: str) -> WebElement:
        """An element by the mark that ComfyUI's own tests use."""
        return self.element(f"//*[@data-testid='{identity}']", identity)

    def open_template(self, name: str, pack: str) -> None:
        """Choose a template of a pack in the template browser."""
        self.button("Templates").click()
        entry = self.element(
            f"//*[normalize-space()='{pack}' and (self::button or @role='button')]", f"templates of {pack}"
        )
        self.js("arguments[0].scrollIntoView()", entry)
        entry.click()
        card = self.marked(f"template-workflow-{name}")
        self.js("app.graph.clear()")  # the page may have the same template open from before
        card.click()
        self.until(self.nodes, f"the template {name}")
        self.until(lambda: not self.driver.find_elements(By.XPATH, "//*[@role='dialog']"), "the dialog to close")

    def nodes(self) -> list[list[str]]:
        return self.js("return app.graph._nodes.map(node => [node.title, node.type, String(node.id)])")

    def place(self, title: str, offset: str | tuple[float, float] = (60, -12)) -> tuple[int, int]:
        """Where something of a node is on the screen: a socket by its name, or a point; by default the title."""
        x, y = self.until(lambda: self.js(PLACE, title, offset), f"{title}: {offset}")
        return round(x), round(y)

    def point(self, place: tuple[int, int]) -> None:
        chain = ActionChains(self.driver, duration=50)
        chain.w3c_actions.pointer_action.move_to_location(*place)
        chain.perform()

    def click(self, place: tuple[int, int], double: bool = False) -> None:
        chain = ActionChains(self.driver, duration=50)
        chain.w3c_actions.pointer_action.move_to_location(*place)
        (chain.double_click() if double else chain.click()).perform()

    def drag(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        chain = ActionChains(self.driver, duration=100)
        pointer = chain.w3c_actions.pointer_action
        pointer.move_to_location(*start)
        pointer.pointer_down()
        pointer.move_to_location((start[0] + end[0]) // 2, (start[1] + end[1]) // 2)
        pointer.move_to_location(*end)
        pointer.pointer_up()
        chain.perform()

    def keys(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def select(self, title: str) -> None:
        self.click(self.place(title))
        chosen = "return Object.values(app.canvas.selected_nodes).map(node => node.title)"
        self.until(lambda: self.js(chosen) == [title], f"{title} to be selected")

    def delete(self, title: str) -> None:
        self.select(title)
        self.keys(Keys.DELETE)
        self.until(lambda: title not in [name for name, *_ in self.nodes()], f"{title} to be gone")

    def add(self, words: str, title: str, empty: tuple[int, int], place: tuple[int, int] | None = None) -> None:
        """Find a node with the search that a double click on an empty place opens, and drag it where it should be, if
        that is elsewhere."""
        self.until(lambda: self.search(empty), "the search").send_keys(words)
        hit = f"//*[@role='option'][.//*[normalize-space()='{title}']]"
        self.element(hit, f"{title} among what '{words}' finds").click()
        self.until(lambda: title in [name for name, *_ in self.nodes()], title)
        self.until(lambda: self.put_down(title, empty), f"{title} to be put down")
        if place is None:
            return
        self.drag(self.place(title), place)
        moved = lambda: max(abs(a - b) for a, b in zip(self.place(title), place, strict=True)) <= 3  # noqa: E731
        self.until(moved, f"{title} to be at {place} instead of {self.place(title)}")

    def search(self, empty: tuple[int, int]) -> WebElement | None:
        """Its field, after a double click; a slow page may take that for two clicks."""
        self.click(empty, double=True)
        try:
            return self.element("//input[@role='combobox']", "the search", seconds=5)
        except AssertionError:
            return None

    def put_down(self, title: str, place: tuple[int, int]) -> bool:
        """End the following of the pointer that a new node begins with. Slowly: this is to be no double click."""
        self.click(place)
        time.sleep(0.5)
        return self.js(NODE + "return !node.flags.ghost", title)

    def wire(self, origin: str, output: str, target: str, input: str) -> None:
        """Drag a wire from an output to an input."""
        self.drag(self.place(origin, output), self.place(target, input))
        self.until(lambda: self.js(WIRED, target, input) == origin, f"a wire from {origin} to {target}")

    def set(self, title: str, **values) -> None:
        """Give widgets values."""
        self.js(SET, title, values)

    def run(self) -> None:
        self.marked("queue-button").click()

    def pictures(self, title: str) -> list[str]:
        """Addresses of the pictures that a node shows, once they are loaded."""
        return self.js(PICTURES, title)

    def line(self, title: str) -> str | None:
        """What a node writes of itself while it is executed."""
        return self.js(LINE, title)

    def screenshot(self, name: str) -> None:
        """Save what is on the screen if screenshots are wanted, in few colours to keep them small."""
        if folder := os.environ.get("REG_SCREENSHOTS"):
            self.point(NOWHERE)
            time.sleep(1)  # for what fades and slides
            shot = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
            in_few_colours(shot).save(Path(folder, f"{name}.png"), optimize=True)


def in_few_colours(picture: Image.Image) -> Image.Image:
    """A palette of the most frequent colours as they are, which are the page's, and of others spread over the rest."""
    found = [colour for _, colour in sorted(picture.getcolors(picture.width * picture.height), reverse=True)]
    exact, rest = found[:64], Image.new("RGB", (max(1, len(found) - 64), 1))
    rest.putdata(found[64:])
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour in exact for value in colour] + rest.quantize(192).getpalette())
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


NODE = "const node = app.graph._nodes.find(node => node.title == arguments[0]);"
WIRED = (
    NODE
    + """
    const link = app.graph.links.get(node.inputs[node.findInputSlot(arguments[1])].link)
    return link ? app.graph.getNodeById(link.origin_id).title : null
"""
)
SET = (
    NODE
    + """
    for (const [name, value] of Object.entries(arguments[1])) {
        const widget = node.widgets.find(widget => widget.name == name)
        widget.value = value
        widget.callback?.(value)
    }
    app.graph.setDirtyCanvas(true, true)
"""
)
LINE = NODE + "return node.widgets.find(widget => widget.name == '$$node-text-preview')?.value"
PICTURES = (  # of the classic renderer, and of Nodes 2.0
    NODE
    + """
    const shown = node ? document.querySelectorAll(`[data-node-id="${node.id}"] img`) : []
    const all = [...(node?.imgs ?? []), ...shown].filter(image => image.naturalWidth)
    return [...new Set(all.map(image => image.src))]
"""
)
