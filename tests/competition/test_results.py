"""The results of a run: what is written, and that a run goes on where it stopped."""

import json
from pathlib import Path

import pytest

from certtrain.competition.instances import Instance, Key
from certtrain.competition.results import InstanceResult, details_of, results_file
from certtrain.competition.summary import contradictions, tallies
from certtrain.errors import BenchmarkError

OPTIONS = {"method": "complete", "timeout": 5.0}
FIRST, SECOND = Key("mnist", "a,b.onnx", "p.vnnlib"), Key("mnist", "c.onnx", 'q"1".vnnlib')


def write(path: Path, *keys: Key) -> None:
    with results_file(path, OPTIONS) as results:
        for key in keys:
            results.add(key, InstanceResult("unsat", 1.23456), {"by": "complete"})


def test_a_line_has_the_columns_of_the_competition(tmp_path: Path) -> None:
    write(tmp_path / "new" / "results.csv", FIRST, SECOND)
    assert (tmp_path / "new" / "results.csv").read_text() == (
        'mnist,"a,b.onnx",p.vnnlib,0,unsat,1.235\nmnist,c.onnx,"q""1"".vnnlib",0,unsat,1.235\n'
    )
    head, first, _ = details_of(tmp_path / "new" / "results.csv").read_text().splitlines()
    assert json.loads(head) == {"options": OPTIONS}
    assert json.loads(first) == {**FIRST._asdict(), "result": "unsat", "by": "complete"}


def test_a_run_goes_on_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write(path, FIRST)
    whole = path.read_bytes(), details_of(path).read_bytes()
    for file in (path, details_of(path)):
        with file.open("ab") as end:
            end.write(b'mnist,c.onnx,"q')
    with results_file(path, OPTIONS) as results:
        assert results.results == {FIRST: InstanceResult("unsat", 1.235)}
        assert (path.read_bytes(), details_of(path).read_bytes()) == whole


def test_other_options_are_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write(path)
    with pytest.raises(BenchmarkError, match=r"method was complete, now milp; give another --out"):  # noqa: SIM117
        with results_file(path, {**OPTIONS, "method": "milp"}):
            pass
    with pytest.raises(BenchmarkError, match="memory was None, now 5"):  # noqa: SIM117
        with results_file(path, {**OPTIONS, "memory": 5}):
            pass
    with results_file(path, {**OPTIONS, "method": "milp"}, force=True) as results:
        assert results.results == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("some notes of mine", "does not say with which options"),
        ("a.onnx,p.vnnlib,1\n", "does not say with which options"),
    ],
)
def test_a_file_that_is_no_results_stays_as_it_is(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(text)
    with pytest.raises(BenchmarkError, match=message), results_file(path, OPTIONS):
        pass
    assert path.read_text() == text


def test_lines_that_a_run_does_not_write_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write(path)
    for line, message in (("a,b\n", "does not write: a,b"), ("a,b,c,0,maybe,1\n", "the result 'maybe'")):
        path.write_text(line)
        with pytest.raises(BenchmarkError, match=message), results_file(path, OPTIONS):
            pass


def test_results_that_were_removed_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write(path, FIRST)
    path.unlink()
    with results_file(path, {"method": "milp"}) as results:
        assert results.results == {}


def test_two_runs_do_not_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with results_file(path, OPTIONS), pytest.raises(BenchmarkError, match="another process writes"):  # noqa: SIM117
        with results_file(path, OPTIONS):
            pass
    with pytest.raises(BenchmarkError, match="is a folder"), results_file(tmp_path, OPTIONS):
        pass


def instance(key: Key, folder: Path, expected: str | None) -> Instance:
    return Instance(key, folder, 5.0, expected)  # type: ignore[arg-type]


def test_results_are_counted_and_compared_by_category(tmp_path: Path) -> None:
    words = {"a": ("sat", "sat"), "b": ("unsat", "sat"), "c": ("timeout", "unsat"), "d": ("error", None)}
    words |= {"e": ("unsat", None), "f": ("sat", "unsat")}
    instances = [instance(Key("one", name, "p"), tmp_path, words[name][1]) for name in words]
    instances += [instance(Key("two", "absent.onnx", "p"), tmp_path, "sat")]
    results = {each.key: InstanceResult(words[each.key.network][0], 1.5) for each in instances[:-1]}
    one, two = tallies(instances, results)
    assert one.to_dict() == {
        "instances": 6, "sat": 2, "unsat": 2, "unknown": 0, "timeout": 1, "error": 1, "absent": 0, "expected": 3,
        "contradictions": 2, "seconds": 9.0,
    }  # fmt: skip
    assert (two.category, two.tried, two.absent, two.differing) == ("two", 0, 1, 0)
    assert [each.key.network for each in contradictions(instances, results)] == ["b", "f"]
