"""Drawing what a model has learnt, as a user types it."""

import numpy as np
import pytest
from PIL import Image

from conftest import SUBSET, typed


def drawn_by(directory):
    """Return the names of the drawings in the one run directory that ``visualize`` has made."""
    [written] = (directory / "outputs" / "visualize").iterdir()
    return sorted(path.name for path in written.iterdir() if path.is_file())


def test_visualize_draws_all_that_a_model_has(trained, tmp_path, monkeypatch):
    typed("visualize", f"checkpoint={trained}", SUBSET[1], directory=tmp_path, patch=monkeypatch)
    names = ("interpolation", "kl", "latents", "reconstructions", "samples", "traversals")
    assert drawn_by(tmp_path) == [f"{name}.{form}" for name in names for form in ("pdf", "png")]


def test_visualize_draws_what_the_training_drew_at_its_end(trained, tmp_path, monkeypatch):
    last = f"checkpoint={trained}/checkpoints/last.ckpt"
    arguments = [last, SUBSET[1], "what=[traversals,interpolation]", "formats=[png]"]
    typed("visualize", *arguments, directory=tmp_path, patch=monkeypatch)
    [written] = (tmp_path / "outputs" / "visualize").iterdir()
    for name in ("traversals", "interpolation"):
        theirs = Image.open(trained / "images" / f"{name}_002.png")
        ours = Image.open(written / f"{name}.png")
        with theirs, ours:
            width, height = theirs.size
            # The names of rows and columns are to the left and below, two pixels drawn for one.
            assert ours.width > 2 * width
            shown = np.array(ours.convert("RGB"))[: 2 * height : 2, -2 * width :: 2]
            assert np.array_equal(shown, np.array(theirs.convert("RGB")))


def test_visualize_draws_what_is_asked_for_of_a_conditional_model(
    conditional, tmp_path, monkeypatch
):
    drawn = ["what=[manifold,latents]", "formats=[svg]", "side=3"]
    arguments = [f"checkpoint={conditional}", SUBSET[1], *drawn]
    needed = r"label=null: .* conditional; type which label to decode, label=0 to label=9"
    with pytest.raises(SystemExit, match=needed):
        typed("visualize", *arguments, directory=tmp_path, patch=monkeypatch)
    typed("visualize", *arguments, "label=4", directory=tmp_path, patch=monkeypatch)
    assert drawn_by(tmp_path) == ["latents.svg", "manifold.svg"]


def test_a_manifold_of_three_latents_is_refused_or_left_out(trained, tmp_path, monkeypatch, capsys):
    reason = "it needs two latents, and this model has 3"
    alone = [f"checkpoint={trained}", "what=[manifold]"]
    with pytest.raises(SystemExit, match=rf"what=\[manifold\]: {reason}"):
        typed("visualize", *alone, directory=tmp_path, patch=monkeypatch)
    arguments = [f"checkpoint={trained}", SUBSET[1], "what=[kl,manifold]", "formats=[png]"]
    typed("visualize", *arguments, directory=tmp_path, patch=monkeypatch)
    assert drawn_by(tmp_path) == ["kl.png"]
    assert f"No manifold: {reason}" in capsys.readouterr().out
