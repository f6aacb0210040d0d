"""The page in a real browser; run with ``pytest -m browser``.

See chromium.py for what it needs. SwiftShader draws, so no GPU is needed.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
import trimesh
from chromium import chromium
from painted import red_ball
from PIL import Image
from splats import asset, axes

from psd_gs.cameras import orbit
from psd_gs.export.page import Pane, make_page
from psd_gs.gaussians import Gaussians
from psd_gs.live import LiveView
from psd_gs.render import render
from psd_gs.viewer.serve import page_server

pytestmark = pytest.mark.browser

BLANK = "about:blank"
SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chromium")
    with chromium(folder, *SOFTWARE) as driver:
        driver.folder = folder
        yield driver


def run(driver, code: str, *arguments):
    """Value of a JavaScript expression, awaited; its arguments are ``a[0]``, ``a[1]`` ..."""
    script = "const a = arguments, done = a[a.length - 1];"
    script += f"(async () => {code})().then(value => done([value]), error => done(`${{error}}`));"
    done = driver.execute_async_script(script, *arguments)
    assert isinstance(done, list), done
    return done[0]


def eventually(test: Callable[[], object]) -> None:
    limit = time.monotonic() + 60
    while not test():
        assert time.monotonic() < limit, test
        time.sleep(0.1)


def show(driver, tmp_path, *panes: Pane) -> None:
    """Opens a page with these from disk, and waits until it is ready."""
    page = tmp_path / "page.html"
    page.write_text(make_page(panes, "a page"), encoding="utf-8")
    driver.get(page.as_uri())
    run(driver, "psdgs.ready")


def picture(driver, width: int, height: int, pane: int = 0) -> np.ndarray:
    """sRGB in [0, 1], [H, W, 3]."""
    address = run(driver, "psdgs.picture(a[0], a[1], a[2])", pane, width, height)
    return np.asarray(Image.open(BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB")) / 255


def requests(driver) -> list[str]:
    """Addresses that were asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def place(image: np.ndarray, channel: int) -> np.ndarray:
    """Where a colour is, mean row and column in [0, 1]."""
    others = np.delete(image, channel, axis=2).max(2)
    where = np.argwhere(image[..., channel] - others > 0.3)
    assert len(where) > 20
    return where.mean(0) / image.shape[:2]


def box(textured: bool = False) -> bytes:
    """A tall box, green in its upper and red in its lower half."""
    mesh = trimesh.creation.box((0.4, 0.8, 0.2)).subdivide()
    upper = mesh.vertices[:, 1] >= 0
    if textured:
        image = Image.new("RGB", (2, 2), (255, 0, 0))
        image.paste((0, 255, 0), (0, 0, 2, 1))
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=image, metallicFactor=0.0)
        uv = np.stack([np.full(len(upper), 0.5), np.where(upper, 0.75, 0.25)], 1)
        mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    else:
        mesh.visual.vertex_colors = np.where(upper[:, None], [0, 255, 0, 255], [255, 0, 0, 255])
    return mesh.export(file_type="glb")


def soft(n: int = 400) -> Gaussians:
    """Overlapping splats with harmonics of degree 3 that stay within the colours of a screen, off centre."""
    g = asset(n, degree=3)
    return replace(g, means=0.3 * g.means + torch.tensor([0.2, -0.1, 0.4]), sh0=0.5 * g.sh0, shN=0.1 * g.shN)


def test_the_view_is_our_render(browser, tmp_path):
    g = soft()
    show(browser, tmp_path, Pane("a", g))
    azimuth, elevation = torch.tensor([0.0, 70.0, 200.0]), torch.tensor([15.0, -20.0, 60.0])
    cameras = orbit(azimuth, elevation, torch.full((3,), 2.5), torch.full((3,), 50.0), 200, 160)
    rendered = render(g, cameras, torch.ones(3))
    for i, viewmat in enumerate(cameras.viewmats.tolist()):
        browser.execute_script("psdgs.setCamera(arguments[0], 50)", viewmat)
        mask = rendered.alpha[i, ..., 0].numpy() > 0.05
        assert 0.05 < mask.mean() < 0.9
        error = (picture(browser, 200, 160) - rendered.rgb[i].clamp(0, 1).numpy())[mask]
        assert -10 * np.log10((error**2).mean()) > 30  # the bar is 22; SPZ's harmonics of 4 bits leave 34


def test_the_first_view_is_upright_and_from_the_front(browser, tmp_path):
    show(browser, tmp_path, Pane("axes", axes()))
    image = picture(browser, 160, 160)
    (red_row, red_column), (green_row, green_column) = place(image, 0), place(image, 1)
    assert red_column > green_column + 0.1
    assert green_row < red_row - 0.1
    # What the window shows, not only what the hook gives.
    window = np.asarray(Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")) / 255
    assert place(window, 1)[0] < place(window, 0)[0]


def test_nothing_is_fetched(browser, tmp_path):
    browser.get(BLANK)
    requests(browser)
    browser.get_log("browser")
    show(browser, tmp_path, Pane("a", soft(), box(textured=True)))
    browser.execute_script("psdgs.setMode('mesh')")
    picture(browser, 64, 64)
    page, *others = requests(browser)
    assert page == (tmp_path / "page.html").as_uri()
    assert {address.split(":")[0] for address in others} <= {"blob", "data"}
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    with pytest.raises(AssertionError, match="Failed to fetch"):
        run(browser, "fetch('http://127.0.0.1:9/')")  # the page forbids it to itself


@pytest.mark.parametrize("textured", [False, True])
def test_splats_points_and_mesh(browser, tmp_path, textured):
    show(browser, tmp_path, Pane("a", axes(), box(textured)))
    counts = run(browser, "psdgs.counts[0]")
    assert (counts["n_splats"], counts["n_triangles"]) == (60, 48)
    views = {}
    for mode in ("mesh", "points", "splats"):
        browser.find_element("css selector", f"[data-mode={mode}]").click()
        pressed = browser.find_elements("css selector", "[data-mode][aria-pressed=true]")
        assert [button.get_attribute("data-mode") for button in pressed] == [mode]
        views[mode] = picture(browser, 320, 320)  # points have a fixed size in pixels
    assert place(views["mesh"], 1)[0] < place(views["mesh"], 0)[0]  # green above red
    assert place(views["points"], 0)[1] > place(views["points"], 1)[1]  # red to the right
    covered = {mode: (view.min(2) < 0.9).mean() for mode, view in views.items()}
    assert 0 < covered["points"] < covered["splats"]
    assert np.abs(views["mesh"] - views["splats"]).mean() > 0.01


def test_side_by_side_under_one_camera(browser, tmp_path):
    prompt = "a <b>bear</b>"
    show(
        browser,
        tmp_path,
        Pane("left", axes(), facts={"prompt": prompt, "scores": {"mini": 0.25}}),
        Pane("right", mesh=box()),
    )
    canvases = browser.find_elements("tag name", "canvas")
    assert canvases[0].rect["x"] + canvases[0].rect["width"] <= canvases[1].rect["x"]
    assert canvases[0].size == canvases[1].size
    assert [e.text for e in browser.find_elements("tag name", "figcaption")] == ["left", "right"]
    before = run(browser, "psdgs.camera(0)")
    for move in (drag, touch_drag, lambda d, e: d.find_element("tag name", "body").send_keys("\ue014")):  # right arrow
        move(browser, canvases[1])
        run(browser, "new Promise(done => setTimeout(done, 100))")
        cameras = run(browser, "[psdgs.camera(0), psdgs.camera(1)]")
        assert cameras[0] == pytest.approx(cameras[1])
        assert np.abs(np.subtract(cameras[0], before)).max() > 0.01
        before = cameras[0]
    browser.find_element("id", "toggle-info").click()
    text = browser.find_element("id", "info").text
    assert prompt in text
    assert "scores mini\n0.25" in text
    assert "n triangles\n48" in text
    # The mesh has no splats: it stays when the other pane shows its own.
    browser.find_element("css selector", "[data-mode=points]").click()
    assert (picture(browser, 64, 64, pane=1).min(2) < 0.9).mean() > 0.02


def drag(driver, target) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(driver).click_and_hold(target).move_by_offset(60, 20).release().perform()


def touch_drag(driver, target) -> None:
    from selenium.webdriver.common.action_chains import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    actions = ActionBuilder(driver, mouse=PointerInput("touch", "finger"))
    finger = actions.pointer_action
    finger.move_to(target).pointer_down().move_by(-50, 10).pointer_up()
    actions.perform()


def test_background_rotation_and_screenshot(browser, tmp_path):
    show(browser, tmp_path, Pane("a", axes()))
    browser.execute_script("document.getElementById('background').value = '#000000'")
    browser.execute_script("document.getElementById('background').dispatchEvent(new Event('change'))")
    assert picture(browser, 64, 64)[0, 0].max() == 0
    before = run(browser, "psdgs.camera()")
    browser.find_element("id", "rotate").click()
    run(browser, "new Promise(done => setTimeout(done, 500))")
    browser.find_element("id", "rotate").click()
    assert np.abs(np.subtract(run(browser, "psdgs.camera()"), before)).max() > 0.005
    browser.find_element("id", "screenshot").click()
    saved = browser.folder / "a page.png"
    for _ in range(100):
        if saved.exists() and saved.stat().st_size:
            break
        run(browser, "new Promise(done => setTimeout(done, 50))")
    with Image.open(saved) as image:
        assert image.size == tuple(
            browser.find_element("tag name", "canvas").size[side] for side in ("width", "height")
        )
        assert image.getpixel((0, 0))[:3] == (0, 0, 0)
        assert place(np.asarray(image.convert("RGB")) / 255, 1) is not None


def test_a_damaged_mesh_is_named_and_the_others_are_shown(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(make_page([Pane("bad.glb", mesh=box()[:200]), Pane("good", axes())], "t"), encoding="utf-8")
    browser.get(page.as_uri())
    with pytest.raises(AssertionError):
        run(browser, "psdgs.ready")
    bad, good = (caption.text for caption in browser.find_elements("tag name", "figcaption"))
    assert bad.startswith("bad.glb: cannot be shown (")
    assert good == "good"
    assert place(picture(browser, 160, 160, pane=1), 1)[0] < 0.6


def test_served(browser):
    server, address = page_server(make_page([Pane("a", axes())], "t"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser.get(BLANK)
    requests(browser)
    try:
        browser.get(address)
        run(browser, "psdgs.ready")
        assert [a for a in requests(browser) if not a.startswith(("blob:", "data:"))] == [address]
    finally:
        server.shutdown()
        server.server_close()


def test_without_webgl_there_is_a_message(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(make_page([Pane("a", axes())], "t"), encoding="utf-8")
    with chromium(tmp_path, "--disable-gpu", "--disable-3d-apis") as driver:
        driver.get(page.as_uri())
        message = driver.find_element("id", "message")
        assert message.is_displayed()
        assert "WebGL 2" in message.text
        assert "another browser" in message.text


def watched(view: LiveView, g: Gaussians, status: str, version: int) -> bool:
    """Whether the page can have this version, after an update if it is due."""
    if view.updates < version:
        view.update(g, status)
    return view.updates == version


def test_a_training_is_watched(browser):
    """Splats appear and change, the camera stays, and the buttons reach the training."""
    view = LiveView(0)
    try:
        browser.get_log("browser")  # of the pages before
        browser.get(view.address)
        run(browser, "psdgs.ready")
        ball = red_ball()
        browser.execute_script("psdgs.orbit(0.3, 0)")
        camera = run(browser, "psdgs.camera()")
        for step in (1, 2):
            status = f"step {step} of 2"
            view._history.append({"step": float(step), "gaussians": 10.0 * step})
            eventually(partial(watched, view, ball.select(torch.arange(len(ball) // step)), status, step))
            eventually(partial(run, browser, "psdgs.counts[0].n_splats === a[0]", len(ball) // step))
            assert status in browser.find_element("tag name", "figcaption").text
            assert run(browser, "psdgs.camera()") == camera
        image = picture(browser, 160, 160)
        assert (image[..., 0] - image[..., 1] > 0.3).sum() > 50
        assert browser.find_element("id", "curves").text.startswith("Gaussians")
        pause = browser.find_element("id", "pause")
        pause.click()
        eventually(view.paused.is_set)
        eventually(lambda: pause.text == "Go on")
        pause.click()
        eventually(lambda: not view.paused.is_set())
        browser.find_element("id", "keep").click()
        eventually(view.stopped.is_set)
        complaints = [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]
        assert complaints == []
    finally:
        view.close()
    eventually(lambda: "the run has ended" in browser.find_element("tag name", "figcaption").text)
    browser.get(BLANK)
