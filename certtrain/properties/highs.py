"""SciPy's HiGHS on one mixed-integer program, given as plain arrays.

HiGHS checks its time limit rarely: a large program has taken three times as long.
So this file can also run as a script, in a process of its own that can be ended at
any time. It imports nothing from certtrain, so that it starts fast.
"""

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def solved(program: Mapping[str, Any], time_limit: float | None) -> dict[str, Any]:
    """The solver's answer: its `status`, the variables `x`, their value `fun`, and a lower `bound` of all values.

    The program is: minimise cost · x for lower ≤ x ≤ upper and rows · x ≤ most, with x integer where `integrality`
    is 1. The rows are in compressed sparse form: `values`, `columns` and where each row `starts`. Parts of the answer
    that the solver does not give are None.
    """
    optimize, sparse = importlib.import_module("scipy.optimize"), importlib.import_module("scipy.sparse")
    shape = len(program["most"]), len(program["cost"])
    rows = sparse.csr_array(tuple(program[name] for name in ("values", "columns", "starts")), shape=shape)
    found = optimize.milp(
        program["cost"],
        integrality=program["integrality"],
        bounds=optimize.Bounds(program["lower"], program["upper"]),
        constraints=optimize.LinearConstraint(rows, ub=program["most"]),
        options={"mip_rel_gap": 0.0} | ({} if time_limit is None else {"time_limit": time_limit}),
    )
    x = None if found.x is None else found.x.tolist()
    return {"status": int(found.status), "x": x, "fun": found.fun, "bound": found.mip_dual_bound}


def solve_file(source: str, target: str, seconds: str) -> None:
    """Solve the program in the .npz file `source` within `seconds`, and write the answer as JSON to `target`."""
    with importlib.import_module("numpy").load(source, allow_pickle=False) as program:
        answer = solved(dict(program), float(seconds))
    Path(target).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    solve_file(*sys.argv[1:])
