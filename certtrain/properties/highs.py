"""SciPy's HiGHS on one mixed-integer programme, given as plain arrays.

HiGHS looks at its time limit now and then; on a large programme it has taken
three times as long. So this file runs as a program as well, on a programme in
a file, which whoever waits for it can end at any moment. It imports nothing of
certtrain, and starts fast.
"""

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def solved(programme: Mapping[str, Any], time_limit: float | None) -> dict[str, Any]:
    """What the solver says: its status, the variables `x`, their value `fun`, and what no value is below, `bound`.

    `programme` is to minimise cost · x for lower ≤ x ≤ upper and rows · x ≤ most, x whole where `integrality` is 1;
    the rows are in compressed sparse form: `values`, `columns` and where each row `starts`. What there is not is None.
    """
    optimize, sparse = importlib.import_module("scipy.optimize"), importlib.import_module("scipy.sparse")
    shape = len(programme["most"]), len(programme["cost"])
    rows = sparse.csr_array(tuple(programme[name] for name in ("values", "columns", "starts")), shape=shape)
    found = optimize.milp(
        programme["cost"],
        integrality=programme["integrality"],
        bounds=optimize.Bounds(programme["lower"], programme["upper"]),
        constraints=optimize.LinearConstraint(rows, ub=programme["most"]),
        options={"mip_rel_gap": 0.0} | ({} if time_limit is None else {"time_limit": time_limit}),
    )
    x = None if found.x is None else found.x.tolist()
    return {"status": int(found.status), "x": x, "fun": found.fun, "bound": found.mip_dual_bound}


def solve_file(source: str, target: str, seconds: str) -> None:
    """Solve the programme in the file `source`, an .npz, within so many seconds, and write JSON to `target`."""
    with importlib.import_module("numpy").load(source, allow_pickle=False) as programme:
        answer = solved(dict(programme), float(seconds))
    Path(target).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    solve_file(*sys.argv[1:])
