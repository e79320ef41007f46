"""Instances in processes of their own: whatever happens to one, the others go on."""

import os
import time
from pathlib import Path

import pytest

from certtrain.competition import running
from certtrain.competition.instances import Instance, Key
from certtrain.competition.running import Options, counterexample_files, run_instances

ANSWER = (
    "from pathlib import Path; Path(FOLDER, 'answer').write_text('unsat\\n'); "
    'print(\'{"by": "complete", "bound": 0.5}\')'
)
PROGRAMS = {
    "answers": ANSWER,
    "raises": f"{ANSWER}; raise MemoryError('too much')",
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "says why": "import sys; print('note: x\\nerror: no such file\\nlook again', file=sys.stderr); sys.exit(1)",
    "overruns": "import time; time.sleep(60)",
    "answers nothing": "print('{}')",
}


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small programs in place of `certtrain decide`, by the instance's network."""

    def command(process: running._Process, *given: object) -> list[str]:
        code = PROGRAMS[process.instance.key.network].replace("FOLDER", repr(process.folder.name))
        return [running.sys.executable, "-S", "-c", code]

    monkeypatch.setattr(running._Process, "_command", command)
    monkeypatch.setattr(running, "OVERTIME", 0.5)


def instances(*names: str, time_limit: float | None = None) -> list[Instance]:
    return [Instance(Key("some", name, "p.vnnlib"), Path(), time_limit) for name in names]


def test_every_end_of_a_process_is_the_result_of_its_instance() -> None:
    found = {
        done.instance.key.network: done
        for done in run_instances(instances(*PROGRAMS, time_limit=1.0), Options(), jobs=2)
    }
    words = {name: done.result.word for name, done in found.items()}
    assert words == {
        "answers": "unsat",
        "raises": "error",
        "is killed": "error",
        "says why": "error",
        "overruns": "timeout",
        "answers nothing": "error",
    }
    assert found["answers"].details == {"by": "complete", "bound": 0.5}
    assert found["raises"].details == {"message": "MemoryError: too much", "exit_code": 1}
    assert found["is killed"].details["message"] == "ended by signal 9; there may be too little memory"
    assert found["says why"].details["message"] == "no such file\nlook again"
    assert found["overruns"].result.seconds >= 1.5
    assert found["answers nothing"].details["message"] == "ended without a result"


def test_a_run_that_is_stopped_ends_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[int]()
    popen = running.subprocess.Popen

    def recorded(*words: object, **options: object) -> object:
        process = popen(*words, **options)  # type: ignore[call-overload]
        started.append(process.pid)
        return process

    monkeypatch.setattr(running.subprocess, "Popen", recorded)
    end = time.monotonic() + 0.3
    found = run_instances(
        instances("overruns", "overruns", "overruns"), Options(), jobs=2, stopped=lambda: time.monotonic() > end
    )
    assert list(found) == []
    assert len(started) == 2
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_several_jobs_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROGRAMS, "waits", f"import time; time.sleep(0.8); {ANSWER}")
    start = time.monotonic()
    assert len(list(run_instances(instances(*["waits"] * 4), Options(), jobs=4))) == 4
    assert time.monotonic() - start < 4 * 0.8


def test_counterexamples_have_names_of_their_own() -> None:
    keys = [
        Key("c", "onnx/a.onnx", "p.vnnlib.gz"),
        Key("c", "b.onnx.gz", "p.vnnlib"),
        Key("c", "x/a.onnx", "x/p.vnnlib"),
    ]
    found = counterexample_files([Instance(key, Path(), None) for key in keys], Path("f"))
    assert [str(path) for path in found] == ["f/a_p_1.counterexample", "f/b_p.counterexample", "f/a_p_3.counterexample"]
    assert counterexample_files([Instance(keys[0], Path(), None)], None) == [None]


def test_options_are_those_of_decide() -> None:
    assert Options(memory=10**9, timeout=5.0, threads=2).words() == [
        "--method=complete",
        "--memory=1000000000",
        "--pgd-steps=20",
        "--pgd-restarts=1",
        "--seed=0",
    ]
    assert running._environment(3)["OMP_NUM_THREADS"] == "3"
    assert running._environment(None).get("OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")
