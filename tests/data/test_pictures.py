"""Pictures of any size, depth and colours, brought to the form of a model."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from vae_lightning.data.pictures import Form, files_of, looks, read_picture, read_pictures

GREY, COLOUR = Form((1, 4, 4)), Form((3, 4, 4))


def saved(tmp_path, picture, name="a.png", **options):
    file = tmp_path / name
    picture.save(file, **options)
    return file


def level(mode, value, size=(4, 4)):
    return Image.new(mode, size, value)


@pytest.mark.parametrize(
    ("mode", "value", "name", "expected"),
    [
        ("L", 77, "a.png", [77, 77, 77]),
        ("1", 1, "a.png", [255, 255, 255]),
        ("RGB", (10, 20, 30), "a.png", [10, 20, 30]),
        ("RGB", (10, 20, 30), "a.webp", [10, 20, 30]),
        ("RGB", (10, 20, 30), "a.tif", [10, 20, 30]),
        ("RGB", (10, 20, 30), "A.BMP", [10, 20, 30]),
        ("RGB", (200, 100, 50), "a.jpg", [200, 100, 50]),
        ("RGBA", (200, 100, 50, 255), "a.png", [200, 100, 50]),
        ("RGBA", (200, 100, 50, 0), "a.png", [0, 0, 0]),
        ("RGBA", (200, 100, 50, 128), "a.png", [100, 50, 25]),
        ("LA", (200, 0), "a.png", [0, 0, 0]),
        ("CMYK", (0, 255, 255, 0), "a.jpg", [255, 0, 0]),
    ],
)
def test_a_mode_becomes_red_green_and_blue(tmp_path, mode, value, name, expected):
    options = {"a.webp": {"lossless": True}, "a.jpg": {"quality": 100}}.get(name, {})
    file = saved(tmp_path, level(mode, value), name, **options)
    pixels = read_picture(file, COLOUR)
    assert pixels.shape == (3, 4, 4)
    assert pixels.dtype == torch.uint8
    assert (pixels.int() - torch.tensor(expected).view(3, 1, 1)).abs().max() <= 3


def test_sixteen_bits_become_eight(tmp_path):
    levels = np.array([[0, 257, 25_700, 65_535]] * 4, dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        file = saved(tmp_path, Image.fromarray(levels), name)
        assert read_picture(file, GREY)[0, 0].tolist() == [0, 1, 100, 255]


@pytest.mark.parametrize(("mode", "kind"), [("I", np.int32), ("F", np.float32)])
def test_thirty_two_bits_are_refused(tmp_path, mode, kind):
    file = saved(tmp_path, Image.fromarray(np.ones((4, 4), kind)), "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif has 32 bits for each pixel"):
        read_picture(file, GREY)


def test_what_is_filled_up_has_the_colour_of_the_background_after_an_inversion(tmp_path):
    scan = Image.new("L", (8, 4), 250)
    file = saved(tmp_path, scan)
    assert read_picture(file, Form((1, 4, 4), "pad", "black", invert=True)).max() <= 5
    clear = saved(tmp_path, Image.new("LA", (4, 4), (0, 0)), "b.png")
    assert read_picture(clear, Form((1, 4, 4), invert=True)).max() == 0


def test_a_palette_and_its_transparent_colour_are_resolved(tmp_path):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 10, 200, 30])
    assert read_picture(saved(tmp_path, picture), COLOUR)[:, 0, 0].tolist() == [10, 200, 30]
    clear = saved(tmp_path, picture, "b.png", transparency=1)
    assert read_picture(clear, COLOUR).max() == 0
    assert read_picture(clear, Form((3, 4, 4), background="white")).min() == 255


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [level("L", 10), level("L", 200)]
    file = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert read_picture(file, GREY).unique().tolist() == [10]


def test_a_picture_is_turned_as_the_camera_says(tmp_path):
    picture = level("L", 0)
    picture.paste(255, (0, 0, 4, 1))  # its first row
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the first row is on the right
    pixels = read_picture(saved(tmp_path, picture, exif=exif), GREY)[0]
    assert pixels[:, 3].min() == 255
    assert pixels[:, :3].max() == 0


def test_the_three_ways_to_fit_a_picture_of_other_proportions(tmp_path):
    picture = level("L", 0, (8, 4))
    picture.paste(255, (2, 0, 6, 4))  # the middle half is white
    file = saved(tmp_path, picture)
    assert read_picture(file, Form((1, 4, 4), "crop")).min() == 255
    padded = read_picture(file, Form((1, 4, 4), "pad", "black"))[0]
    assert padded[0].max() == padded[3].max() == 0
    assert padded[1:3, 1:3].min() > 200
    stretched = read_picture(file, Form((1, 4, 4), "stretch"))[0]
    assert (stretched[:, 0].max() < 60) & (stretched[:, 1:3].min() > 200)


def test_inverted_is_255_less_the_level(tmp_path):
    file = saved(tmp_path, level("L", 200))
    assert read_picture(file, Form((1, 4, 4), invert=True)).unique().tolist() == [55]


def test_files_of_subfolders_are_found_and_others_left_out(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in ("b/c/1.PNG", "b/2.jpeg", "z.tif", ".hidden/3.png", ".4.png"):
        saved(tmp_path, level("L", 1), name)
    (tmp_path / "notes.txt").touch()
    found = [str(file.relative_to(tmp_path)) for file in files_of(tmp_path)]
    assert found == ["b/2.jpeg", "b/c/1.PNG", "z.tif"]


def test_a_link_within_the_folder_is_read_and_one_out_of_it_refused(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    saved(folder, level("L", 1))
    (folder / "b.png").symlink_to("a.png")
    assert len(files_of(folder)) == 2
    saved(tmp_path, level("L", 1), "private.png")
    (folder / "c.png").symlink_to("../private.png")
    with pytest.raises(ValueError, match=r"c\.png is a link out of the folder"):
        files_of(folder)
    (folder / "c.png").unlink()
    (folder / "d").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="d is a link out of the folder"):
        files_of(folder)


def test_what_can_not_be_read_is_named_and_counted(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    saved(tmp_path, level("L", 1), "5.png")
    with pytest.raises(ValueError, match=r"0\.png is no picture.*2\.png.*, and 2 more: take"):
        read_pictures(files_of(tmp_path), GREY)


def written(paper, ink):
    """Return a page with a stroke on it."""
    page = Image.new("RGB" if isinstance(paper, tuple) else "L", (64, 64), paper)
    ImageDraw.Draw(page).line((20, 10, 40, 50), ink, 6)
    return page


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (written(250, 20), (False, True)),
        (written(5, 240), (False, False)),
        (written((245, 245, 240), (30, 30, 34)), (False, True)),
        (written((40, 120, 200), (250, 250, 20)), (True, False)),
        (level("L", 255, (64, 64)), (False, False)),
    ],
)
def test_colours_and_dark_ink_on_paper_are_seen(tmp_path, picture, expected):
    for number in range(20):
        saved(tmp_path, picture, f"{number}.png")
    assert looks(files_of(tmp_path), "black") == expected


def test_pictures_that_are_only_partly_dark_on_bright_stay(tmp_path):
    for number in range(20):
        saved(tmp_path, written(*((250, 20) if number % 5 else (5, 240))), f"{number}.png")
    assert looks(files_of(tmp_path), "black") == (False, False)
