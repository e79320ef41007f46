"""certtrain verify --image: a user's own pictures."""

import json
from pathlib import Path
from statistics import median

import pytest
from PIL import Image

from certtrain.data import load_images
from certtrain.data.pictures import write_picture
from helpers.command_line import Run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with six digits of the test set."""
    images = load_images("digits", "test").images
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        write_picture(folder / f"{number}.png", images[number])
    return folder


def test_each_picture_has_a_class_a_verdict_and_the_largest_radius(run: Run, model: Path, pictures: Path) -> None:
    words = ["verify", str(model), "--image", "pictures", "--eps", "0.01"]
    found = json.loads(run(*words, "--json").out)["images"]
    assert [each["image"] for each in found] == [f"pictures/{number}.png" for number in range(6)]
    assert all(each["class"] == each["label"] in "0123456789" for each in found)
    assert any(each["verdict"] == "certified" for each in found)
    for each in found:
        assert (each["largest_certified_eps"] >= 0.01) or each["verdict"] != "certified"
    shown = run(*words).out
    assert "pictures/0.png: class" in shown
    assert "largest certified ε: 0.0" in shown


def test_a_picture_of_another_size_is_resized_and_says_so(run: Run, model: Path, pictures: Path) -> None:
    with Image.open(pictures / "0.png") as image:
        image.resize((80, 80), Image.Resampling.NEAREST).convert("RGB").save(pictures / "large.png")
    done = run("verify", str(model), "--image", "pictures/0.png", "pictures/large.png", "--eps", "0.01")
    assert (done.code, done.err) == (0, "")
    small, large = done.out.split("pictures/large.png")
    assert "resized" not in small
    assert "  resized from 80×80 to 8×8 (bilinear, antialiased)\n" in large
    words = ("verify", str(model), "--image", "pictures/large.png", "--eps", "0.01", "--json")
    assert json.loads(run(*words).out)["images"][0]["changes"] == ["resized from 80×80 to 8×8 (bilinear, antialiased)"]


def test_ink_on_paper_is_inverted_if_that_is_asked_for_and_else_there_is_a_hint(
    run: Run, model: Path, pictures: Path
) -> None:
    words = ["verify", str(model), "--image", "pictures/0.png", "--eps", "0.01", "--json"]
    (white_on_black,) = json.loads(run(*words).out)["images"]
    write_picture(pictures / "0.png", 255 - load_images("digits", "test").images[0])
    hinted = run(*words)
    assert "its background is bright, but the images of digits are white on black: --invert swaps" in hinted.words
    assert "background is bright" not in run(*words[:2], "--image", "pictures/1.png").words
    inverted = run(*words, "--invert")
    assert inverted.err == ""
    (found,) = json.loads(inverted.out)["images"]
    assert found | {"changes": []} == white_on_black


def test_many_images_end_with_a_summary_and_say_what_their_classes_are(run: Run, model: Path, pictures: Path) -> None:
    words = ["verify", str(model), "--image", "pictures", "--eps", "0.01"]
    found = json.loads(run(*words, "--json").out)
    radii = [each["largest_certified_eps"] for each in found["images"]]
    certified = sum(each["verdict"] == "certified" for each in found["images"])
    assert found["summary"]["certified"] == certified
    assert found["summary"]["median_largest_certified_eps"] == median(radii)
    assert found["label_given"] is False
    shown = run(*words).out.splitlines()
    assert shown[-2].startswith(f"{certified} of 6 images certified at ε = 0.01")
    assert "median of the largest certified ε: 0.0" in shown[-2]
    assert shown[-1].startswith("classes are what the network predicts, right or wrong")
    one = run(*words[:3], "pictures/0.png", "--label", "3").out
    assert "images certified" not in one
    assert "predicts" not in one


def test_an_image_whose_time_ran_out_says_so(run: Run, model: Path, pictures: Path) -> None:
    words = ["verify", str(model), "--image", "pictures", "--eps", "0.08", "--attack", "none"]
    assert "--method auto tries more" in run(*words).out
    hurried = [*words, "--method", "auto", "--timeout"]
    assert "at ε = 0.08; its time ran out, and a longer --timeout may decide it" in run(*hurried, "0.000001s").out
    found = json.loads(run(*hurried, "0.000001s", "--json").out)["images"]
    assert any(each["verdict"] == "open" and each["out_of_time"] for each in found)


def test_a_counterexample_lies_beside_its_picture(run: Run, model: Path, pictures: Path) -> None:
    words = ["verify", str(model), "--image", "pictures/0.png", "--image", "pictures/1.png", "--eps", "0.5"]
    done = run(*words)
    written = sorted(path.name for path in pictures.glob("*-counterexample.png"))
    assert written == ["0-counterexample.png", "1-counterexample.png"]
    assert "counterexample: pictures/0-counterexample.png" in done.out
    with Image.open(pictures / written[0]) as image:
        assert image.size == (8, 8)
    smaller = run("verify", str(model), "--image", "pictures/0.png", "--eps", "0.001")
    assert "pictures/0-counterexample.png is from an earlier verification" in smaller.words


def test_a_second_run_replaces_its_own_pictures_and_no_others(run: Run, model: Path, pictures: Path) -> None:
    words = ["verify", str(model), "--image", "pictures/0.png", "--eps", "0.5"]
    written = pictures / "0-counterexample.png"
    write_picture(written, load_images("digits", "test").images[5])
    before = written.read_bytes()
    assert run(*words).code == 0
    assert written.read_bytes() != before
    Image.new("L", (8, 8)).save(written)  # by another program
    foreign = written.read_bytes()
    kept = run(*words)
    assert (kept.code, written.read_bytes()) == (0, foreign)
    assert "pictures/0-counterexample.png is not certtrain's and stays" in kept.words
    assert "largest certified ε" in kept.words
    assert "not certtrain's" not in run(*words[:-1], "0.001").words  # certified: there is nothing to write
    assert run(*words, "--force").code == 0
    assert written.read_bytes() != foreign


@pytest.mark.parametrize("model_first", [True, False])
def test_images_may_follow_each_other_as_a_shell_gives_them(
    run: Run, model: Path, pictures: Path, model_first: bool
) -> None:
    words = ["--image", *(f"pictures/{number}.png" for number in range(3)), "--eps", "0.5", "--json"]
    words = [str(model), *words] if model_first else [*words, str(model)]
    names = [f"pictures/{number}.png" for number in range(3)]
    for _ in range(2):  # the second time *.png has the counterexamples of the first among its files
        found = json.loads(run("verify", *words).out)["images"]
        assert [each["image"] for each in found] == names
        words.insert(words.index("pictures/0.png") + 1, "pictures/0-counterexample.png")
    other = pictures.rename(pictures.with_name("other"))
    pictures.mkdir()
    write_picture(pictures / "a.png", load_images("digits", "test").images[0])
    found = json.loads(run("verify", "--image", "pictures", str(other), str(model), "--json").out)["images"]
    assert [each["image"] for each in found] == ["pictures/a.png", *(f"{other}/{number}.png" for number in range(6))]


def test_a_model_among_the_images_is_the_model(run: Run, model: Path, trained: Path, pictures: Path) -> None:
    for named in (model, trained):
        done = run("verify", "--image", "pictures/0.png", str(named), "--json")
        assert json.loads(done.out)["model"] == str(model)
    refused = run("verify", str(model), "--image", "pictures/0.png", "notes.txt")
    assert (refused.code, "(notes.txt)" in refused.err) == (2, True)


def test_the_label_is_a_class_by_name_or_number(run: Run, model: Path, pictures: Path) -> None:
    words = ["verify", str(model), "--image", "pictures/0.png", "--eps", "0.01", "--json"]
    (found,) = json.loads(run(*words).out)["images"]
    wrong = str((int(found["class"]) + 1) % 10)
    (other,) = json.loads(run(*words, "--label", wrong).out)["images"]
    assert (other["verdict"], other["class"], other["label"]) == ("misclassified", found["class"], wrong)
    refused = run(*words, "--label", "cat")
    assert refused.code == 2
    assert "is no class of the model" in refused.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label", "3"], "it needs --image"),
        (["--invert"], "it needs --image"),
        (["--image", "pictures", "--out", "c.jsonl"], "it has no effect with --image"),
        (["--image", "pictures", "--limit", "3"], "it has no effect with --image"),
        (["--image", "none.png"], "there is no image file none.png"),
    ],
)
def test_what_does_not_fit_is_refused(run: Run, model: Path, pictures: Path, words: list[str], message: str) -> None:
    refused = run("verify", str(model), *words)
    assert refused.code != 0
    assert message in " ".join(refused.err.replace("│", " ").split())
