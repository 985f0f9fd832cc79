"""TensorBoard in a browser, on a run of the real command: what its tabs show is this run's."""

import json
import time

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import SHOTS


@pytest.fixture(scope="module")
def written(trained):
    """What the run's event file holds."""
    return EventAccumulator(str(trained / "tensorboard")).Reload()


def shown(tab, kind, tags):
    """Filter a tab's cards by what all tags share; return their cards once only they are there."""
    tab.locator("tf-tag-filterer input").fill(f"^{tags[0].partition('/')[0]}/")
    # The groups stay on the page below the result.
    cards = tab.locator("tf-category-paginated-view").first.locator(kind)
    found = [cards.filter(has=tab.get_by_text(tag, exact=True)) for tag in tags]
    for card in found:
        card.wait_for()
    assert cards.count() == len(tags)
    return found


def ticks(card):
    return [float(tick) for tick in card.locator("svg text").all_text_contents()]


def test_the_scalars_tab_shows_this_runs_tags_on_axes_that_fit_their_values(
    tab, dashboard, written
):
    tags = [tag for tag in written.Tags()["scalars"] if tag.startswith("val/")]
    assert "val/elbo" in tags
    tab.goto(f"{dashboard}/#scalars")
    # With it, TensorBoard 2.21 leaves the axes of filtered charts of two points at 0 to 1.
    tab.get_by_role("checkbox", name="Ignore outliers in chart scaling").click()
    end = time.monotonic() + 60
    for tag, card in zip(tags, shown(tab, "tf-scalar-card", tags), strict=True):
        values = [event.value for event in written.Scalars(tag)]
        while not any(min(values) <= tick <= max(values) for tick in ticks(card)):
            assert time.monotonic() < end, (tag, values, ticks(card))
            tab.wait_for_timeout(100)
    tab.wait_for_timeout(1000)  # for the screenshot: the curves take their places
    tab.screenshot(path=SHOTS / "dashboard_scalars.png")


def test_the_images_tab_shows_the_pictures_that_lie_in_the_run_directory(
    tab, dashboard, written, trained
):
    tags = written.Tags()["images"]
    assert {"images/reconstructions", "images/prior_samples"} <= set(tags)
    tab.goto(f"{dashboard}/#images")
    for tag, card in zip(tags, shown(tab, "tf-image-loader", tags), strict=True):
        card.scroll_into_view_if_needed()
        picture = card.locator("img").first
        size = picture.evaluate(
            "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
        )
        *_, file = sorted((trained / "images").glob(f"{tag.partition('/')[2]}_*.png"))
        with Image.open(file) as drawn:
            assert tuple(size) == drawn.size
    tab.locator("tf-tag-filterer input").scroll_into_view_if_needed()
    tab.screenshot(path=SHOTS / "dashboard_images.png")


def test_the_projector_tab_shows_each_test_images_code_with_its_picture(tab, dashboard):
    with tab.expect_response(lambda response: "sprite" in response.url) as sprites:
        tab.goto(f"{dashboard}/#projector")
    assert sprites.value.ok
    projector = tab.frame_locator("iframe").frame_locator("iframe")
    projector.get_by_text("Points: 200").wait_for()
    projector.get_by_text("Dimension: 3").wait_for()
    chosen = projector.locator("vz-projector-data-panel input[readonly]")
    assert chosen.first.input_value().startswith("posterior_means:")
    chosen.nth(2).click()
    projector.get_by_text("10 colors").click()  # so the labels came with the points
    tab.wait_for_timeout(2000)  # for the screenshot: the points take their places
    tab.screenshot(path=SHOTS / "dashboard_projector.png")


# The text of each visible cell of the table with its left edge: a column stands below a heading.
CELLS = """table => Array.from(table.querySelectorAll('vaadin-grid-cell-content'), cell => {
    const box = cell.getBoundingClientRect();
    const text = box.width && box.height ? cell.innerText.trim() : '';
    return [Math.round(box.left), Math.round(box.top), text];
}).filter(cell => cell[2])"""


def test_the_hparams_tab_shows_this_runs_hyper_parameters_and_figures(tab, dashboard, trained):
    tab.goto(f"{dashboard}/#hparams")
    chosen = ["model.latent_dim", "optimizer.learning_rate", "seed"]
    tab.get_by_role("checkbox", name=chosen[0], exact=True).wait_for()
    for box in tab.locator("tf-hparams-query-pane .hparam-checkbox[aria-checked=true]").all()[::-1]:
        box.click()  # it shows the first five, in the order of the alphabet
    for name in chosen:
        tab.get_by_role("checkbox", name=name, exact=True).click()
    table = tab.locator("tf-hparams-table-view vaadin-grid")
    table.get_by_text("optimizer.learning_rate").wait_for()
    tab.wait_for_timeout(1000)  # the columns find their places
    tab.screenshot(path=SHOTS / "dashboard_hparams.png")
    cells = sorted(table.evaluate(CELLS), key=lambda cell: cell[1])
    headings = {left: text for left, _, text in reversed(cells)}
    row = {headings[left]: text for left, _, text in cells if text != headings[left]}
    figures = json.loads((trained / "metrics.json").read_text())["figures"]
    assert float(row["model.latent_dim"]) == 3
    assert float(row["optimizer.learning_rate"]) == 1e-3
    assert float(row["seed"]) == 1
    assert float(row["test/elbo"]) == pytest.approx(figures["test/elbo"], rel=1e-4)
    assert float(row["test/kl"]) == pytest.approx(figures["test/kl"], rel=1e-4)
    assert 0 <= float(row["test/active_units"]) <= 3
