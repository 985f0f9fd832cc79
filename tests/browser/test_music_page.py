"""The explorer of a model of music, in a browser: it plays, morphs, and takes a MIDI file."""

import base64
import io

import mido
import pytest

import vae_lightning
from conftest import SHOTS, explorer_on, small_run, without_errors
from vae_lightning.data.music.datamodule import MELODIES
from vae_lightning.runs.checkpoints import load_model

PLAYS = """name => {
    const player = document.querySelector(`#${name} audio`);
    return player && player.readyState > 2 && player.duration;
}"""
CHANGED = """before => {
    const shown = document.querySelector('#decoded img');
    return shown && shown.src !== before;
}"""

IS = "expected => document.querySelector('#decoded img').src === expected"


@pytest.fixture(scope="module")
def melodies(tmp_path_factory):
    """The run of a small MusicVAE."""
    sizes = [f"model.{each}_dim=32" for each in ("latent", "encoder", "decoder", "step")]
    settings = ["model=musicvae", "data=melodies", "data.collections=[exercises]", *sizes]
    settings += ["trainer.max_epochs=40", "optimizer.learning_rate=1e-2"]
    settings += ["model.kl_weight=0.01", "callbacks.best.monitor=val/onset_accuracy"]
    return small_run(tmp_path_factory.mktemp("melodies"), *settings)


@pytest.fixture(scope="module")
def address(tmp_path_factory, melodies):
    with explorer_on(melodies, tmp_path_factory.mktemp("music")) as (found, _, _):
        yield found


@pytest.fixture
def page(tab, address):
    with without_errors(tab, address):
        tab.wait_for_function(PLAYS, arg="decoded")
        yield tab


def source(page, name, element="img"):
    return page.locator(f"#{name} {element}").first.get_attribute("src")


def changed(page, before):
    page.wait_for_function(CHANGED, arg=before)
    return source(page, "decoded")


def pick(page, across, down):
    box = page.locator("#map img").bounding_box()
    position = {"x": across * box["width"], "y": down * box["height"]}
    page.locator("#map img").click(position=position)


def test_what_a_slider_moves_plays_at_once(page):
    before, sound = source(page, "decoded"), source(page, "decoded", "audio")
    for slider in page.locator(".latent input[type=range]").all()[:8]:
        slider.press("End")  # a melody may stay the same where one latent alone moves
    changed(page, before)
    page.wait_for_function(PLAYS, arg="decoded")
    seconds = page.evaluate(PLAYS, "decoded")
    assert seconds == pytest.approx(4.06, abs=0.1)  # two bars and the last note's end
    assert source(page, "decoded", "audio") != sound
    assert page.locator("#decoded audio").evaluate("each => each.autoplay")


def test_a_morph_from_the_origin_to_what_the_sliders_show(page):
    slider = page.locator(".latent input[type=range]").first
    page.get_by_role("button", name="Keep as A").click()  # the origin
    page.wait_for_function(PLAYS, arg="endA")
    slider.press("End")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Keep as B").click()
    page.wait_for_function(PLAYS, arg="endB")
    share = page.locator("#morph input[type=range]")
    share.press("End")
    page.wait_for_function("each => each.value === each.max", arg=slider.element_handle())
    share.press("Home")
    page.wait_for_function("each => Number(each.value) === 0", arg=slider.element_handle())


def test_a_number_that_is_typed_beside_a_slider_is_kept_within_its_ends(page):
    slider = page.locator(".latent input[type=range]").first
    number = page.locator(".latent input[type=number]").first
    for typed in ("99", ""):
        number.fill(typed)
        number.press("Tab")
        page.wait_for_timeout(500)
    slider.press("End")
    slider_ends = [slider.get_attribute("max"), slider.input_value()]
    assert slider_ends[0] == slider_ends[1]
    assert page.get_by_text("Error").count() == 0


def test_two_melodies_are_kept_and_morphed(page):
    before = source(page, "decoded")
    pick(page, 0.3, 0.5)
    first = changed(page, before)
    page.get_by_role("button", name="Keep as A").click()
    page.wait_for_function(PLAYS, arg="endA")
    pick(page, 0.75, 0.45)
    last = changed(page, first)
    page.get_by_role("button", name="Keep as B").click()
    page.wait_for_function(PLAYS, arg="endB")
    assert [source(page, end) for end in ("endA", "endB")] == [first, last]
    assert last != first
    slider = page.locator("#morph input[type=range]")
    slider.focus()
    slider.press("Home")
    slider.press("ArrowRight")
    slider.press("Home")
    page.wait_for_function(IS, arg=first)
    slider.press("End")
    page.wait_for_function(IS, arg=last)
    page.screenshot(path=SHOTS / "music.png", full_page=True)


def test_a_midi_file_is_dropped_and_what_is_heard_is_downloaded(page, melodies, tmp_path):
    window = load_model(melodies).sample(1, vae_lightning.SamplingNoise(1, 3))[0]
    (tmp_path / "mine.mid").write_bytes(MELODIES.formats["mid"](window))
    before = source(page, "image")
    page.locator("#drop input").set_input_files(tmp_path / "mine.mid")
    page.locator("#image figcaption", has_text="your file").wait_for()
    assert source(page, "image") != before
    page.wait_for_function(PLAYS, arg="reconstruction")
    with page.expect_download() as download:
        page.locator("#image a", has_text="MIDI").click()
    kept = mido.MidiFile(download.value.path())
    expected = mido.MidiFile(file=io.BytesIO((tmp_path / "mine.mid").read_bytes()))
    assert [str(each) for each in kept] == [str(each) for each in expected]
    link = page.locator("#decoded a").get_attribute("href")
    assert base64.b64decode(link.partition(",")[2])[:4] == b"MThd"


def test_a_file_that_is_no_midi_is_refused_in_a_line(page, tmp_path):
    (tmp_path / "mine.mid").write_bytes(b"no music")
    page.locator("#drop input").set_input_files(tmp_path / "mine.mid")
    page.locator("#refused", has_text="this file").wait_for()
