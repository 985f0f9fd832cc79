"""The explorer in a browser, on a model that was trained by the real command."""

import shutil
import signal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from PIL import Image, ImageDraw

from conftest import SHOTS, explorer_on, small_run, without_errors

WIPED = """canvas => canvas.getContext('2d').getImageData(0, 0, 280, 280).data
    .every((value, i) => value === (i % 4 === 3 ? 255 : 0))"""
CHANGED = """([name, before]) => {
    const shown = document.querySelector(`#${name} img`);
    return shown && shown.src !== before;
}"""


@pytest.fixture
def page(tab, watched_explorer):
    with without_errors(tab, watched_explorer[0]):
        tab.locator("#decoded img").wait_for()
        yield tab


def source(page, name):
    """The picture that is shown, by its bytes; an empty one where none is."""
    pictures = page.locator(f"#{name} img")
    return pictures.first.get_attribute("src") if pictures.count() else ""


def values(page):
    return [
        float(slider.input_value()) for slider in page.locator(".latent input[type=range]").all()
    ]


def changed(page, name, before):
    """Wait until another picture is shown, and return it."""
    page.wait_for_function(CHANGED, arg=[name, before])
    return source(page, name)


def test_a_slider_that_is_dragged_changes_the_image_before_it_is_let_go(page):
    first = source(page, "decoded")
    slider = page.locator(".latent input[type=range]").first
    box = slider.bounding_box()
    across, down = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(across, down)
    page.mouse.down()
    page.mouse.move(across + box["width"] / 4, down, steps=3)
    second = changed(page, "decoded", first)
    page.mouse.move(across - box["width"] / 4, down, steps=3)
    assert changed(page, "decoded", second) != first
    page.mouse.up()
    before = source(page, "decoded")
    page.get_by_role("button", name="All latents to 0").click()
    changed(page, "decoded", before)
    page.wait_for_function(
        "first => document.querySelector('#decoded img').src === first", arg=first
    )
    assert values(page) == [0, 0, 0]


def test_sliders_that_all_stand_at_whole_numbers_change_the_image(page):
    before = source(page, "decoded")
    page.locator(".latent input[type=range]").first.press("End")
    changed(page, "decoded", before)
    assert all(value.is_integer() for value in values(page))


def test_a_click_on_the_map_shows_the_image_and_moves_the_sliders_there(page):
    before = source(page, "decoded")
    assert values(page) == [0, 0, 0]
    page.locator("#map img").click(position={"x": 120, "y": 150})
    after = changed(page, "decoded", before)
    page.locator("#image figcaption", has_text="image ").wait_for()
    assert source(page, "reconstruction") == after
    assert source(page, "image") not in ("", after)
    assert all(values(page))
    marked = page.locator("#map i").evaluate("each => [each.style.left, each.style.top]")
    assert marked != ["50%", "50%"]
    page.screenshot(path=SHOTS / "explorer_click.png", full_page=True)


def test_a_drawn_digit_comes_back_in_mnists_form_and_reconstructed(page):
    before = source(page, "decoded")
    canvas = page.locator("#canvas canvas").bounding_box()
    strokes = [
        (0.3, 0.2),
        (0.5, 0.15),
        (0.68, 0.25),
        (0.6, 0.42),
        (0.45, 0.5),
        (0.62, 0.55),
        (0.7, 0.7),
        (0.55, 0.85),
        (0.3, 0.8),
    ]
    for number, (x, y) in enumerate(strokes):
        page.mouse.move(
            canvas["x"] + x * canvas["width"], canvas["y"] + y * canvas["height"], steps=4
        )
        if number == 0:
            page.mouse.down()
    page.mouse.up()
    after = changed(page, "decoded", before)
    page.locator("#image figcaption", has_text="drawing").wait_for()
    assert source(page, "reconstruction") == after
    sides, ink = page.evaluate(
        """() => {
            const shown = document.querySelector('#image img');
            const canvas = Object.assign(document.createElement('canvas'), {width: 28, height: 28});
            const pen = canvas.getContext('2d');
            pen.drawImage(shown, 0, 0);
            const data = pen.getImageData(0, 0, 28, 28).data;
            const grey = data.filter((_, position) => position % 4 == 0);
            return [[shown.naturalWidth, shown.naturalHeight], Array.from(grey)];
        }"""
    )
    rows = [row for row in range(28) if any(ink[28 * row : 28 * row + 28])]
    assert sides == [28, 28]
    assert (len(rows), max(ink)) == (20, 255)
    page.screenshot(path=SHOTS / "explorer_drawing.png", full_page=True)
    assert page.locator("#canvas canvas").bounding_box() == canvas  # it stays under the hand
    assert not page.locator("#canvas canvas").evaluate(WIPED)
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#canvas canvas").evaluate(WIPED)


def test_a_drawing_goes_when_an_image_is_clicked(page):
    canvas, shown = page.locator("#canvas canvas"), source(page, "decoded")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 110, box["y"] + 200, steps=4)
    page.mouse.up()
    changed(page, "decoded", shown)
    assert not canvas.evaluate(WIPED)
    page.locator("#map img").click(position={"x": 120, "y": 150})
    page.locator("#image figcaption", has_text="image ").wait_for()
    assert canvas.evaluate(WIPED)


def test_a_drawing_is_read_as_grey_pictures_of_ones_own(tab, tmp_path):
    for number in range(60):
        picture = Image.new("L", (30, 20))
        ImageDraw.Draw(picture).ellipse((number % 9, 2, number % 9 + 12, 16), fill=255)
        (tmp_path / "mine").mkdir(exist_ok=True)
        picture.save(tmp_path / "mine" / f"{number}.png")
    data = ("data=folder", "data.dir=mine", "data.size=24", "data.batch_size=16")
    run = small_run(tmp_path, *data, "model.latent_dim=3", "trainer.max_epochs=3")
    (tmp_path / "explorer").mkdir()
    with (
        explorer_on(run, tmp_path / "explorer", tmp_path / "mine") as (address, _, _),
        without_errors(tab, address) as page,
    ):
        page.locator("#decoded img").wait_for()
        before, box = source(page, "decoded"), page.locator("#canvas canvas").bounding_box()
        page.mouse.move(box["x"] + 90, box["y"] + 60)
        page.mouse.down()
        page.mouse.move(box["x"] + 190, box["y"] + 200, steps=4)
        page.mouse.up()
        after = changed(page, "decoded", before)
        page.locator("#image figcaption", has_text="drawing").wait_for()
        assert source(page, "reconstruction") == after
        sides = "image => [image.naturalWidth, image.naturalHeight]"
        assert page.locator("#image img").evaluate(sides) == [24, 24]
        assert page.locator("#reconstruction img").evaluate(sides) == [24, 24]
        page.screenshot(path=SHOTS / "explorer_own.png", full_page=True)


def test_the_page_may_not_fetch_from_another_machine(tab, watched_explorer):
    policy = tab.goto(watched_explorer[0]).headers["content-security-policy"]
    assert policy.startswith("default-src 'self' ")
    assert "http" not in policy
    assert "*" not in policy


def test_the_process_talks_to_nobody_but_this_machine(page, watched_explorer):
    places = set(watched_explorer[1].read_text().split())
    assert "127.0.0.1" in places  # where it listens: so the record works
    assert places <= {"127.0.0.1", "localhost"}


def test_ctrl_c_ends_it_at_once_while_the_page_is_open_and_leaves_nothing(tab, trained, tmp_path):
    with explorer_on(trained, tmp_path) as (address, folder, running):
        tab.goto(address)
        tab.locator("#decoded img").wait_for()
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 130
    assert len((folder / "log").read_text().splitlines()) == 1
    assert {path.name for path in folder.iterdir()} == {"log", "watch", "places", "temporary"}
    of_torch = {path.name for path in (folder / "temporary").glob("torchinductor_*")}
    assert {path.name for path in (folder / "temporary").iterdir()} == of_torch


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/gradio_api/upload", 404),
        ("/gradio_api/info", 404),
        ("/gradio_api/openapi.json", 404),
        ("/openapi.json", 404),
        ("/docs", 404),
        ("/config", 404),
        ("/gradio_api/file=/etc/hostname", 404),
        ("/gradio_api/run/predict", 403),
        ("/", 403),
    ],
)
def test_another_page_gets_nothing(watched_explorer, path, status):
    headers = {"Origin": "http://example.org"} if status == 403 else {}
    data = b"{}" if path.endswith(("upload", "predict")) else None
    request = Request(f"{watched_explorer[0]}{path}", data, headers)
    with pytest.raises(HTTPError) as error:
        urlopen(request)
    assert error.value.code == status
    error.value.close()


def test_a_name_that_leads_to_this_machine_is_no_way_in(watched_explorer):
    request = Request(watched_explorer[0], headers={"Host": "example.org"})
    with pytest.raises(HTTPError) as error:
        urlopen(request)
    assert error.value.code == 400
    error.value.close()


def test_markup_in_a_runs_name_is_shown_and_not_obeyed(tab, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "<img src=x onerror=alert(1)> ![](x) **x**")
    (tmp_path / "explorer").mkdir()
    dialogs = []
    tab.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    with explorer_on(run, tmp_path / "explorer") as (address, _, _):
        tab.goto(address)
        tab.locator("#decoded img").wait_for()
        assert run.name in tab.locator("h3").inner_text()
        assert tab.locator("h3 img").count() == 0
    assert dialogs == []
