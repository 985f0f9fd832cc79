"""The documentation is right: its links lead somewhere, its names exist, its notebook runs."""

import json
import re
from pathlib import Path

import pytest

from conftest import DATA

PROJECT = Path(__file__).parents[1]
PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
]
NOTEBOOK = PROJECT / "docs" / "walk.ipynb"
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)|<img src=\"()([^\"]+)\"")


def cells(kind):
    notebook = json.loads(NOTEBOOK.read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def prose(page):
    """Return a page's Markdown without its code blocks."""
    if page.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in cells("markdown"))
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def relative_links():
    return [
        pytest.param(page, text, target or picture, id=f"{page.name}: {target or picture} {text}")
        for page in [*PAGES, NOTEBOOK]
        for text, target, _, picture in LINK.findall(prose(page))
        if not re.match(r"\w+:", target or picture)
    ]


@pytest.mark.parametrize(("page", "text", "target"), relative_links())
def test_a_relative_link_leads_somewhere(page, text, target):
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    assert file.exists()
    assert not anchor or anchor in anchors(file)
    if (
        file.suffix == ".py"
        and (name := re.fullmatch(r"`([\w.]+)`", text))
        and not text.endswith(".py`")
    ):
        for part in name[1].split("."):
            assert re.search(
                rf"^ *(def |class ){part}\b|^{part} =", file.read_text(), flags=re.MULTILINE
            )


def test_a_picture_of_the_documentation_is_small_and_shown():
    shown = {
        Path(target).name
        for page in PAGES
        for match in LINK.findall(prose(page))
        if (target := match[1] or match[3])
    }
    for picture in (PROJECT / "docs" / "images").iterdir():
        assert picture.name in shown
        assert picture.stat().st_size < 200_000


def test_each_cell_of_the_notebook_runs(trained, tmp_path, monkeypatch):
    """Run it on a small run, without Jupyter. ``make notebook`` stores outputs of a real one."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    (tmp_path / "outputs" / "train").mkdir(parents=True)
    (tmp_path / "outputs" / "train" / "2026-01-01_00-00-00").symlink_to(trained)
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in cells("code"):
        source = "".join(cell["source"]).replace("DATA = None", f"DATA = {str(DATA)!r}")
        exec(compile(source, NOTEBOOK.name, "exec"), names)
        names["plt"].close("all")
    assert names["vae"].prior().event_shape == (3,)


def test_without_a_run_the_notebook_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="make train"):
        exec("".join(cells("code")[0]["source"]), {})


def test_the_stored_notebook_is_executed_small_and_of_no_one_machine():
    for cell in cells("code"):
        assert cell["execution_count"]
        assert not cell["metadata"]
        assert not any(output["output_type"] == "error" for output in cell["outputs"])
    text = NOTEBOOK.read_text()
    assert len(text) < 1 << 20
    assert not re.search(r"/(tmp|home|root|Users)/", text)


def test_each_tag_of_a_run_s_dashboard_is_explained(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    explained = (PROJECT / "docs" / "dashboards.md").read_text()
    # test/ is explained with val/, evaluate/ as what evaluate measured; the last is a tab.
    shorthands = ("test/", "evaluate", "_hparams_/")
    for tag in [*tags["scalars"], *tags["images"], *tags["histograms"]]:
        assert (
            f"`{tag}`" in explained
            or tag.startswith(shorthands)
            or (tag.startswith("train/") and tag.endswith("_epoch"))
        )
