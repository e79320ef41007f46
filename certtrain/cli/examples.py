"""Examples of each command: the first two for its help, all of them for its page of the documentation."""

IN_HELP = 2

COMMAND_EXAMPLES = {
    "train": """
certtrain train --preset digits
certtrain train --preset mnist-cpu --eps 0.2 --out runs/mnist
certtrain train --preset mnist-cpu --epochs 10 --set train.batch_size=64
certtrain train --preset mnist-cpu --seeds 3 --out runs/three     # three seeds, mean and standard deviation
certtrain train --resume runs/mnist
certtrain train --resume runs/mnist --set train.epochs=30         # a finished run, with more epochs
certtrain train --preset mnist-cpu --eps 0.2 --from runs/mnist/model.safetensors    # weights to start from
""",
    "verify": """
certtrain verify runs/mnist                               # the newest run, if no run is given
certtrain verify runs/mnist --method auto --timeout 5s --time-budget 2h --out certificates.jsonl
certtrain verify runs/mnist --eps 0.05..0.3:6 --html accuracies.html    # accuracy against ε, at six radii
certtrain verify runs/mnist --pictures sheets                           # sheets of test images, as PNG files
certtrain verify runs/mnist --image seven.png --label 7   # an image of your own, of any size
certtrain verify runs/mnist/model.safetensors --eps 0.1 --pgd-steps 100 --pgd-restarts 5
certtrain verify runs/mnist/model.safetensors --limit 500 --method ibp --json
certtrain verify runs/mnist --method auto --out certificates.jsonl --workers 4
certtrain verify net.onnx --data cifar10 --eps 2/255 --mean 0.4914,0.4822,0.4465 --std 0.2471,0.2435,0.2616
certtrain verify --module my.py:MyNet --weights w.pt --data mnist --eps 0.1
""",
    "stats": """
certtrain stats runs/mnist                                # the newest run, if no run is given
certtrain stats runs/first runs/second other.safetensors --plot side-by-side.png
certtrain stats runs/first --by-epoch --csv run.csv --plot run.png
certtrain stats runs/first --html run.html
certtrain stats runs/first net.onnx --data mnist --eps 0.1
""",
    "export": """
certtrain export runs/mnist/model.safetensors                   # both files, next to the model
certtrain export runs/mnist/model.safetensors --onnx mnist.onnx
certtrain export runs/mnist --card README.md                    # the model card again
certtrain export runs/mnist/model.safetensors --onnx mnist.onnx --vnnlib properties --count 200 --eps 0.1
""",
    "init": """
certtrain init --preset cifar10-160ep                                        # the untrained network and its bounds
certtrain init --preset cifar10-160ep --compare --seeds 5 --plot growth.png  # the four initialisations side by side
certtrain init --preset digits --sweep-depth 2,4,8,16 --plot depth.png       # the same for deeper and deeper networks
""",
    "check": """
certtrain check certificates.jsonl runs/mnist/model.safetensors
certtrain check certificates.jsonl runs/mnist/model.safetensors --limit 100   # only the first 100 examples
certtrain check certificates.jsonl net.onnx
certtrain check certificates.jsonl w.pt --module my.py:MyNet
""",
    "decide": """
certtrain decide net.onnx property.vnnlib
certtrain decide net.onnx property.vnnlib --method complete --timeout 60s
certtrain decide runs/mnist/model.safetensors properties/point_00000.vnnlib
""",
    "bench": """
certtrain bench benchmarks/acasxu/instances.csv
certtrain bench benchmarks/*/instances.csv --timeout 30s --jobs 4 --out results.csv --counterexamples found
certtrain bench acasxu/instances.csv --expected other-verifier/results.csv
""",
    "compare": """
certtrain compare runs/first runs/second
certtrain compare runs/* --html compared.html
""",
    "tune": """
certtrain tune digits --space space.toml --trials 20
certtrain tune mnist-cpu --space space.toml --maximize certified --out tuning/certified
certtrain tune cifar10-8-255 --space space.toml --storage postgresql://tuner@database/study --time-budget 8h
""",
    "presets": """
certtrain presets cifar10-160ep
certtrain presets digits --json
""",
    "doctor": """
certtrain doctor --preset cifar10-160ep     # how long its training would take here
certtrain doctor --json
""",
}


def epilog(command: str) -> str:
    """The examples for the help of a command, a paragraph for each, as Typer starts a new line for a paragraph only."""
    lines = [line.partition("  #")[0].rstrip() for line in COMMAND_EXAMPLES[command].strip().splitlines()]
    return "\n\n".join(["Examples:", *lines[:IN_HELP]])
