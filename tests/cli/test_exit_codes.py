"""What a command ends with: exit codes, and what to type instead."""

import importlib
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from certtrain.bounds.checks import shape_errors_as_data_errors
from certtrain.cli.exit_codes import EXPLANATIONS, ExitCode, exit_code, summary
from certtrain.errors import CerttrainError, FailedCheck, SoundnessError, is_out_of_memory
from helpers.command_line import QUICK, Run


def test_every_error_has_one_of_the_exit_codes() -> None:
    def kinds(error: type[CerttrainError]) -> list[type[CerttrainError]]:
        return [error, *(kind for below in error.__subclasses__() for kind in kinds(below))]

    found = {kind: exit_code(kind("why")) for kind in kinds(CerttrainError)}
    assert found.pop(FailedCheck) == 3
    assert found.pop(SoundnessError) == 4
    assert set(found.values()) == {1}
    assert set(EXPLANATIONS) == set(ExitCode)


def test_the_help_lists_the_exit_codes(run: Run) -> None:
    text = " ".join(run("--help").out.split())
    assert summary() in text
    assert all(f"{code} {explanation.short}" in text for code, explanation in EXPLANATIONS.items())


def test_a_fault_in_certtrain_has_an_exit_code(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("certtrain.verification.verify")

    def contradicted(*values: object, **named: object) -> None:
        raise SoundnessError("a certified example was attacked")

    monkeypatch.setattr(module, "verify", contradicted)
    done = run("verify", model, "--limit", "5")
    assert (done.code, done.out, done.err) == (4, "", "error: a certified example was attacked\n")


INSTEAD = {
    "verify m.safetensors --check c.jsonl": "check c.jsonl m.safetensors",
    "verify --check c.jsonl --limit 7 --json m.safetensors --eps 0.1": "check c.jsonl m.safetensors --limit 7 --json",
    "verify m.safetensors --check 'my file.jsonl'": "check 'my file.jsonl' m.safetensors",
    "verify net.onnx --vnnlib p.vnnlib": "decide net.onnx p.vnnlib",
    "verify net.onnx --vnnlib p.vnnlib --method complete --timeout 1m --limit 3 --pgd-steps 5": (
        "decide net.onnx p.vnnlib --method complete --pgd-steps 5 --timeout 60"
    ),
    "check m.safetensors c.jsonl": "check c.jsonl m.safetensors",
    "decide p.vnnlib.gz net.onnx": "decide net.onnx p.vnnlib.gz",
}


@pytest.mark.parametrize("line", INSTEAD)
def test_a_command_line_of_another_form_is_answered_with_the_right_one(run: Run, line: str) -> None:
    done = run(*shlex.split(line))
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith(f"; type: certtrain {INSTEAD[line]}\n")
    assert done.err.count("\n") == 1, "it can be copied whole"


def test_an_onnx_file_that_is_exported_is_answered_with_decide(run: Run, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    done = run("export", "net.onnx", "--onnx", "other.onnx")
    assert done.code == 1
    assert "net.onnx is an ONNX file" in done.err
    assert "For a property: certtrain decide net.onnx PROPERTY" in done.err


BAD = {
    "eps not a number": (["verify", "MODEL", "--eps", "8/0"], 2, "8/255"),
    "eps negative": (["verify", "MODEL", "--eps", "-1"], 2, "outside [0, 1]"),
    "eps too large": (["train", "-p", "digits", "--eps", "2"], 2, "outside [0, 1]"),
    "unknown preset": (["train", "-p", "nope"], 1, "cifar10-160ep"),
    "no preset": (["train"], 2, "Begin with --preset digits"),
    "misspelt field": (["train", "-p", "digits", "--set", "train.epoch=3"], 1, "did you mean 'train.epochs'"),
    "field without value": (["train", "-p", "digits", "--set", "train.epochs"], 1, "field=value"),
    "missing model": (["verify", "absent.safetensors"], 1, "no model file"),
    "truncated model": (["verify", "truncated.safetensors"], 1, "not a complete safetensors file"),
    "foreign model": (["stats", "foreign.safetensors"], 1, "not written by certtrain"),
    "missing data folder": (["train", "-p", "mnist-70ep", "--data-dir", "absent"], 1, "absent"),
    "wrong data folder": (["train", "-p", "mnist-70ep", "--data-dir", "."], 1, "not found"),
    "preset and resume": (["train", "-p", "digits", "--resume", "x"], 2, "keeps its preset"),
    "resume nothing": (["train", "--resume", "absent"], 1, "no run to resume"),
    "target cannot be made": (["verify", "MODEL", "--out", "/proc/x.jsonl"], 1, "cannot write /proc/x.jsonl"),
    "a folder for certificates": (["verify", "MODEL", "--out", "."], 1, "is not a file"),
    "check of another radius": (["check", "c.jsonl", "MODEL", "--eps", "0.1"], 2, "No such option"),
    "nothing to check": (["check", "absent.jsonl", "MODEL"], 1, "does not exist; `certtrain verify MODEL"),
    "check of no certificates": (["check", "text", "MODEL"], 1, "line 1 of text is not a header of a certificate file"),
    "check against nothing": (["check", "text", "absent.safetensors"], 1, "no model file absent.safetensors"),
    "unknown method": (["verify", "MODEL", "--method", "magic"], 2, "crown-ibp"),
    "no time for a point": (["verify", "MODEL", "--timeout", "0s"], 2, "not a time above zero"),
    "several seeds of one network": (["init", "-p", "digits", "--seeds", "2"], 2, "--compare and --sweep-depth"),
    "no depths": (["init", "-p", "digits", "--sweep-depth", "two"], 2, "2,4,8,16"),
    "one depth": (["init", "-p", "digits", "--sweep-depth", "4,4"], 2, "two depths or more"),
    "depth of nothing": (["init", "-p", "digits", "--sweep-depth", "0,4"], 2, "from 1 to 512"),
    "a sweep's model": (["init", "-p", "digits", "--sweep-depth", "1,2", "--out", "m.safetensors"], 2, "--out"),
    "one model is missing": (["stats", "MODEL", "absent.safetensors"], 1, "no model file absent.safetensors"),
    "folder without a run": (["stats", "MODEL", "."], 1, "holds no run"),
    "two runs by epoch": (["stats", "MODEL", "MODEL", "--by-epoch"], 2, "give one folder"),
    "a model by epoch": (["stats", "MODEL", "--by-epoch"], 1, "is not a folder"),
    "picture of another kind": (["stats", "MODEL", "--plot", "s.pdf"], 2, ".png"),
    "folder for a model": (["verify", "."], 1, "holds no run"),
    "file for a run": (["train", "-p", "digits", "--out", "foreign.safetensors"], 1, "choose another folder (--out)"),
    "bad time": (["train", "-p", "digits", "--time-budget", "9x"], 2, "9m"),
    "no validation": (["verify", "MODEL", "--split", "validation"], 1, "--split train"),
    "no cuda": (["train", "-p", "digits", "--device", "cuda", "--out", "o"], 1, "--device cpu"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_clear_message(run: Run, model: Path, tmp_path: Path, case: str) -> None:
    if case == "no cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    (tmp_path / "truncated.safetensors").write_bytes(model.read_bytes()[:-100])
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    (tmp_path / "text").write_text("nothing\n")
    before = set(tmp_path.rglob("*"))
    words, code, message = BAD[case]
    done = run(*(str(model) if word == "MODEL" else word for word in words))
    assert done.code == code, done.err
    assert message in " ".join(done.err.replace("│", " ").split())
    assert "Traceback" not in done.err
    assert done.out == ""
    assert set(tmp_path.rglob("*")) == before


MEMORY_ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=["Python", "GPU", "CPU"])
def test_too_little_memory_is_one_message_with_the_options_that_need_less(
    run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*values: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("certtrain.verification.verify.Cascade.run", fail)
    monkeypatch.setattr("certtrain.diagnostics.comparison.model_layer_states", fail)
    for command, advice in {
        "verify": "Try a smaller --batch-size, a smaller --memory, fewer --workers, a smaller --limit, or another",
        "stats": "Try a smaller --batch-size, a smaller --limit, or another",
    }.items():
        done = run(command, str(trained))
        assert (done.code, advice in done.err) == (1, True), done.err
        assert "error: the memory of this machine is not enough" in done.err
    monkeypatch.setattr("certtrain.training.step.Stepper.run", fail)
    done = run(*QUICK, "--out", "mine")
    assert done.code == 1
    assert "does not fit into the memory of this machine. Try a smaller train.batch_size, train.micro_batch" in done.err


def test_an_allocation_that_fails_is_recognised() -> None:
    for allocate in (lambda: torch.empty(2**60), lambda: bytearray(2**62)):
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            allocate()
        assert is_out_of_memory(raised.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))


def test_too_little_memory_is_not_taken_for_a_wrong_shape() -> None:
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"), shape_errors_as_data_errors(torch.zeros(1)):
        torch.empty(2**60)
