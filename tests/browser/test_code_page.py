"""The explorer of a model with codes, in a browser: click a cell, choose another code."""

import pytest
import torch

from conftest import ROOT, SHOTS, explorer_on, small_run, without_errors
from vae_lightning.runs.checkpoints import load_model

SHOWN = """([name, before]) => {
    const shown = document.querySelector(`#${name} img`);
    return shown && shown.src && shown.src !== before;
}"""


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """The run of a small VQ-VAE."""
    data = ("data=mnist_subset", f"data.dir={ROOT / 'tests' / 'data'}", "trainer.max_epochs=10")
    settings = ("model=vqvae", "model.codes=20", "model.channels=[8,16]")
    return small_run(tmp_path_factory.mktemp("coded"), *data, *settings)


@pytest.fixture(scope="module")
def address(tmp_path_factory, coded):
    with explorer_on(coded, tmp_path_factory.mktemp("codes")) as (found, _, _):
        yield found


@pytest.fixture
def page(tab, address):
    with without_errors(tab, address):
        tab.wait_for_function(SHOWN, arg=["grid", ""])
        tab.locator("#decoded img").wait_for()
        yield tab


def source(page, name):
    return page.locator(f"#{name} img").first.get_attribute("src")


def marked(page, name):
    place = page.locator(f"#{name} i").evaluate("each => [each.style.left, each.style.top]")
    return [float(each.rstrip("%")) for each in place]


def click(page, name, across, down):
    box = page.locator(f"#{name} img").bounding_box()
    position = {"x": across * box["width"], "y": down * box["height"]}
    page.locator(f"#{name} img").click(position=position)


def test_another_code_in_a_cell_changes_the_image_there(page, coded):
    assert marked(page, "grid") == pytest.approx([50, 50])
    click(page, "grid", 0.5 / 7, 2.5 / 7)  # third row, first column
    page.wait_for_function("() => document.querySelector('#grid i').style.left[0] === '7'")
    assert marked(page, "grid") == pytest.approx([100 / 14, 250 / 7], abs=0.1)
    decoded, grid, image = (source(page, name) for name in ("decoded", "grid", "image"))
    place = marked(page, "palette")
    other = 0.5 / 16 if place[0] > 50 else 15.5 / 16
    click(page, "palette", other, 0.25)
    page.wait_for_function(SHOWN, arg=["decoded", decoded])
    assert source(page, "grid") != grid
    assert source(page, "image") == image
    assert marked(page, "palette")[0] == pytest.approx(100 * other, abs=0.1)
    page.screenshot(path=SHOTS / "codes.png", full_page=True)
    page.get_by_role("button", name="Its own codes").click()
    page.wait_for_function(
        "first => document.querySelector('#decoded img').src === first", arg=decoded
    )
    assert source(page, "grid") == grid


def test_another_image_brings_its_codes(page, coded):
    before = source(page, "image")
    slider = page.locator("input[type=range]").first
    slider.focus()
    slider.press("ArrowRight")
    page.wait_for_function(SHOWN, arg=["image", before])
    page.locator("#image figcaption", has_text="image 1").wait_for()
    assert isinstance(load_model(coded).code_vectors, torch.Tensor)
