"""ONNX graphs drawn at random over the operators that are read, and some that are not always, in many opsets.

A graph has one of four kinds of batches: of free size, of one input, of three, or none at all.
"""

import random
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSETS = range(7, 26)  # ONNX Runtime runs none that are older
FREE = "n"
Full = list[int | str]


class Drawn:
    """A graph that grows node by node; `shapes` has each value's, `FREE` standing for a free batch."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.opset = self.draw.choice(OPSETS)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.shapes: dict[str, Full] = {}
        self.kind = self.draw.choice(["free", "free", "one", "three", "none"])
        self.double = self.draw.random() < 0.1
        self.dtype = np.float64 if self.double else np.float32
        sizes = self.draw.choice([[2, 4, 5], [1, 6, 6], [3, 5, 4], [6], [12], [3, 4], [1, 8], [4, 1]])
        lead: Full = {"free": [FREE], "one": [1], "three": [3], "none": []}[self.kind]
        self.shapes["x"] = [*lead, *(sizes if lead else sizes[:1] if self.draw.random() < 0.5 else sizes[-2:])]

    # --- pieces ---

    def constant(self, values: Any) -> str:
        name = f"c{len(self.constants) + len(self.nodes)}_{len(self.shapes)}_{self.draw.randrange(10**9)}"
        array = np.asarray(values)
        array = array.astype(self.dtype) if array.dtype.kind == "f" else array.astype(np.int64)
        if self.draw.random() < 0.3:
            node = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
            if self.opset >= 12 and array.ndim == 1 and array.dtype == np.int64:
                node = helper.make_node("Constant", [], [name], value_ints=array.tolist())
            elif self.opset >= 12 and array.ndim == 0 and array.dtype == np.float32:
                node = helper.make_node("Constant", [], [name], value_float=float(array))
            self.nodes.append(node)
        else:
            self.constants.append(numpy_helper.from_array(array, name))
        return name

    def numbers(self, *shape: int) -> Any:
        return np.round(np.random.default_rng(self.draw.randrange(10**9)).normal(size=shape), 2)

    def node(self, kind: str, inputs: list[str], shape: Full, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{kind}_{name}", **attributes))
        self.shapes[name] = list(shape)
        return name

    def any_value(self) -> str:
        names = list(self.shapes)
        return names[-1] if self.draw.random() < 0.8 else self.draw.choice(names)

    def listed(self, kind: str, value: str, shape: Full, name: str, numbers: list[int], since: int, **more: Any) -> str:
        """A node whose numbers are an attribute before opset `since`, and an input from then on."""
        if self.opset < since:
            return self.node(kind, [value], shape, **{name: numbers}, **more)
        return self.node(kind, [value, self.constant(np.array(numbers))], shape, **more)

    # --- operators; each gives the new value's name, or None where it does not apply ---

    def curve(self) -> str | None:
        value = self.any_value()
        kind = self.draw.choice(["Relu", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Identity", "Neg", "Cast", "Dropout"])
        more: dict[str, Any] = {"alpha": 0.2} if kind == "LeakyRelu" else {}
        more = {"to": 11 if self.double else 1} if kind == "Cast" else more
        return self.node(kind, [value], self.shapes[value], **more)

    def smooth(self) -> str | None:
        """An activation that is one operator, of those that ONNX Runtime has in float32 alone."""
        if self.double:
            return None
        value = self.any_value()
        kind = self.draw.choice(["Elu", "Softplus", *(["Gelu"] if self.opset >= 20 else [])])
        more = {"alpha": self.draw.choice([0.3, 1.0, 2.0])} if kind == "Elu" else {}
        return self.node(kind, [value], self.shapes[value], **more)

    def gated(self) -> str | None:
        """GELU, SiLU or a Softplus with its threshold, as exporters write them; now and then of another value."""
        if self.double:
            return None
        value, kind = self.any_value(), self.draw.choice(["Sigmoid", "Erf", "Softplus"])
        shape, other = self.shapes[value], value
        if (kind == "Erf" and self.opset < 9) or (kind == "Softplus" and self.opset < 9):
            return None
        if self.draw.random() < 0.1:  # which cannot be read
            other = self.node("Neg", [value], shape) if self.draw.random() < 0.5 else self.any_value()
        if self.shapes[other] != shape:
            return None
        if kind == "Sigmoid":
            gate = self.node("Sigmoid", [value], shape)
            return self.node("Mul", self.draw.sample([other, gate], 2), shape)
        if kind == "Softplus":
            smooth = self.node("Softplus", [value], shape)
            large = self.node("Greater", [other, self.constant(np.float64(self.draw.choice([0.5, 20.0])))], shape)
            del self.shapes[large]
            return self.node("Where", [large, value, smooth], shape)
        names = [self.node("Div", [value, self.constant(np.float64(2**0.5))], shape)]
        names.append(self.node("Erf", names[-1:], shape))
        names.append(self.node("Add", [names[-1], self.constant(np.float64(1.0))], shape))
        for name in names[1:]:
            del self.shapes[name]
        last = self.node("Mul", self.draw.sample([other, names[-1]], 2), shape)
        return self.node("Mul", [last, self.constant(np.float64(0.5))], shape)

    def clip(self) -> str | None:
        value = self.any_value()
        low, high = sorted(self.draw.uniform(-1.5, 1.5) for _ in range(2))
        ends = {k: v for k, v in (("min", low), ("max", high)) if self.draw.random() < 0.8}
        if self.draw.random() < 0.3:  # one end is far, or none at all
            large = self.draw.choice([10.0, 1e3, 1e8, 1e30, 3.4028234663852886e38])
            ends |= self.draw.choice([{"min": -large}, {"max": large}, {"min": -large, "max": large}])
        if self.opset < 11:
            return None if self.double else self.node("Clip", [value], self.shapes[value], **ends)
        given = [self.constant(np.float64(ends[k])) if k in ends else "" for k in ("min", "max")]
        return self.node("Clip", [value, *given], self.shapes[value])

    def constant_arithmetic(self) -> str | None:
        value, kind = self.any_value(), self.draw.choice(["Add", "Sub", "Mul", "Div"])
        shape = [1 if side == FREE or self.draw.random() < 0.4 else side for side in self.shapes[value]]
        for _ in range(self.draw.randrange(len(shape) + 1)):
            if shape[0] == 1:
                del shape[0]
                if not shape:
                    break
        numbers = self.numbers(*shape)
        numbers = np.where(np.abs(numbers) < 0.3, 0.5, numbers)
        numbers = numbers * (self.draw.choice([30.0, 1e3, 1e30]) if self.draw.random() < 0.1 else 1.0)
        other = self.constant(numbers)
        order = [value, other] if kind == "Div" or self.draw.random() < 0.6 else [other, value]
        return self.node(kind, order, self.shapes[value])

    def two_values(self) -> str | None:
        left, right = self.any_value(), self.draw.choice(list(self.shapes))
        a, b = self.shapes[left], self.shapes[right]
        count = max(len(a), len(b))
        pairs = list(zip([1] * (count - len(a)) + a, [1] * (count - len(b)) + b, strict=True))
        if any(p != q and 1 not in (p, q) for p, q in pairs) or (FREE in a + b and pairs[0] != (FREE, FREE)):
            return None
        return self.node(self.draw.choice(["Add", "Sub"]), [left, right], [q if p == 1 else p for p, q in pairs])

    def mat_mul(self) -> str | None:
        value, out = self.any_value(), self.draw.randrange(1, 6)
        shape = self.shapes[value]
        if self.draw.random() < 0.6:
            if shape[-1] == FREE:
                return None
            return self.node("MatMul", [value, self.constant(self.numbers(shape[-1], out))], [*shape[:-1], out])
        if len(shape) == 1:
            return self.node("MatMul", [self.constant(self.numbers(out, shape[0])), value], [out])
        if shape[-2] == FREE:
            return None
        left = self.constant(self.numbers(out, shape[-2]))
        return self.node("MatMul", [left, value], [*shape[:-2], out, shape[-1]])

    def gemm(self) -> str | None:
        value, out = self.any_value(), self.draw.randrange(1, 6)
        shape = self.shapes[value]
        if len(shape) != 2:
            return None
        turned = self.draw.random() < 0.2
        rows, columns = shape[::-1] if turned else shape
        if columns == FREE:
            return None
        more = {"transA": 1} if turned else {}
        weight = self.numbers(columns, out)
        if self.draw.random() < 0.5:
            more, weight = more | {"transB": 1}, weight.T
        if self.draw.random() < 0.3:
            more |= {"alpha": 0.5, "beta": 2.0}
        bias = [self.constant(self.numbers(*self.draw.choice([(out,), (1, out), (1,)])))]
        bias = [] if self.opset >= 11 and self.draw.random() < 0.3 else bias
        return self.node("Gemm", [value, self.constant(weight), *bias], [rows, out], **more)

    def images(self) -> str | None:
        found = [name for name, shape in self.shapes.items() if len(shape) == 4]
        return self.draw.choice(found[-2:]) if found else None

    def window(self, value: str, kernel: list[int], dilations: list[int]) -> tuple[dict[str, Any], list[int]] | None:
        strides, pads = [self.draw.randint(1, 3) for _ in "hw"], [self.draw.randint(0, 2) for _ in range(4)]
        pads = [0] * 4 if self.draw.random() < 0.4 else pads
        sides = self.shapes[value][2:]
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        if self.draw.random() < 0.2:
            auto = self.draw.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
            made = [
                -(-side // s) if auto != "VALID" else (side - r) // s + 1
                for side, r, s in zip(sides, reach, strides, strict=True)
            ]
            return ({"auto_pad": auto, "strides": strides}, made) if min(made) > 0 else None
        made = [(sides[i] + pads[i] + pads[i + 2] - reach[i]) // strides[i] + 1 for i in (0, 1)]
        return ({"pads": pads, "strides": strides}, made) if min(made) > 0 else None

    def conv(self) -> str | None:
        if (value := self.images()) is None:
            return None
        channels, kernel = self.shapes[value][1], [self.draw.randint(1, 3) for _ in "hw"]
        dilations = self.draw.choice([[1, 1], [1, 1], [2, 1], [2, 3]])
        groups = channels if self.draw.random() < 0.3 else 1
        out = groups * self.draw.randint(1, 2)
        if (window := self.window(value, kernel, dilations)) is None:
            return None
        weight = self.constant(self.numbers(out, channels // groups, *kernel))
        bias = [self.constant(self.numbers(out))] if self.draw.random() < 0.7 else []
        more = window[0] | {"dilations": dilations, "group": groups}
        return self.node("Conv", [value, weight, *bias], [self.shapes[value][0], out, *window[1]], **more)

    def pool(self) -> str | None:
        if (value := self.images()) is None:
            return None
        shape, kind = self.shapes[value], self.draw.choice(["MaxPool", "AveragePool", "GlobalAveragePool"])
        if kind == "GlobalAveragePool":
            return self.node(kind, [value], [*shape[:2], 1, 1])
        kernel = [self.draw.randint(1, 3) for _ in "hw"]
        more: dict[str, Any] = {"kernel_shape": kernel}
        dilations = [2, 1] if kind == "MaxPool" and self.opset >= 10 and self.draw.random() < 0.2 else [1, 1]
        if dilations != [1, 1]:
            more |= {"dilations": dilations}
        if kind == "AveragePool" and self.draw.random() < 0.5:
            more |= {"count_include_pad": 1}
        window = self.window(value, kernel, dilations)
        if window is None or any(pad >= kernel[i % 2] for i, pad in enumerate(window[0].get("pads", [0] * 4))):
            return None
        made = window[1]
        if self.opset >= 10 and "pads" in window[0] and self.draw.random() < 0.3:
            more |= {"ceil_mode": 1}
            pads, strides = window[0]["pads"], window[0]["strides"]
            reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
            made = [-(-(shape[2 + i] + pads[i] + pads[i + 2] - reach[i]) // strides[i]) + 1 for i in (0, 1)]
        return self.node(kind, [value], [*shape[:2], *made], **window[0], **more)

    def batch_norm(self) -> str | None:
        value = self.any_value()
        shape = self.shapes[value]
        if not 2 <= len(shape) <= 4 or shape[1] == FREE:
            return None
        parts = [self.numbers(shape[1]) for _ in range(3)] + [np.abs(self.numbers(shape[1])) + 0.5]
        return self.node("BatchNormalization", [value, *map(self.constant, parts)], shape, epsilon=1e-3)

    def flatten(self) -> str | None:
        value = self.any_value()
        shape = self.shapes[value]
        axis = self.draw.randint(0, len(shape)) if FREE not in shape and self.draw.random() < 0.3 else 1
        if FREE in shape[1:] or not shape:
            return None
        return self.node("Flatten", [value], [_prod(shape[:axis]), _prod(shape[axis:])], axis=axis)

    def reshape(self) -> str | None:
        value = self.any_value()
        shape = self.shapes[value]
        keeps = FREE in shape or self.draw.random() < 0.7
        total = prod(side for side in (shape[1:] if keeps else shape) if side != FREE)
        if keeps and (FREE in shape[1:] or len(shape) < 2):
            return None
        rest = _split(self.draw, total)
        new: Full = [shape[0], *rest] if keeps else rest
        asked: list[int] = [side if isinstance(side, int) else self.draw.choice([0, -1]) for side in new]
        if -1 not in asked and self.draw.random() < 0.5:
            asked[self.draw.randrange(len(asked))] = -1
            asked = [0 if side == 0 else side for side in asked]
        more = {}
        if self.opset >= 14 and 0 not in asked and self.draw.random() < 0.5:
            more = {"allowzero": 1}
        return self.node("Reshape", [value, self.constant(np.array(asked))], new, **more)

    def squeeze(self) -> str | None:
        value = self.any_value()
        shape = self.shapes[value]
        ones = [axis for axis, side in enumerate(shape) if side == 1]
        if ones and len(shape) > 1 and self.draw.random() < 0.5:
            axis = self.draw.choice(ones)
            new = shape[:axis] + shape[axis + 1 :]
            return self.listed("Squeeze", value, new, "axes", [axis], 13)
        if len(shape) > 4:
            return None
        axis = self.draw.randint(0 if FREE not in shape else 1, len(shape))
        return self.listed("Unsqueeze", value, [*shape[:axis], 1, *shape[axis:]], "axes", [axis], 13)

    def transpose(self) -> str | None:
        value = self.any_value()
        shape = self.shapes[value]
        order = list(range(len(shape)))
        keeps = self.kind in ("free", "three") or self.draw.random() < 0.5
        rest = order[1:] if keeps else order
        self.draw.shuffle(rest)
        order = [0, *rest] if keeps else rest
        return self.node("Transpose", [value], [shape[axis] for axis in order], perm=order)

    def pad(self) -> str | None:
        value = self.any_value()
        shape = self.shapes[value]
        first = 1 if self.kind in ("free", "three") else 0
        begin, end = ([self.draw.choice([0, 0, 1, 2]) if i >= first else 0 for i in range(len(shape))] for _ in "be")
        new = [s if s == FREE else s + b + e for s, b, e in zip(shape, begin, end, strict=True)]
        number = self.draw.choice([0.0, 0.0, -0.5, 1e3, -1e30])
        if self.opset < 11:
            return self.node("Pad", [value], new, pads=begin + end, value=number)
        more = [] if number == 0 else [self.constant(np.float64(number))]
        return self.node("Pad", [value, self.constant(np.array(begin + end)), *more], new)

    def pad_and_pool(self) -> str | None:
        """A maximum over padding that is never the largest, as converters write it."""
        if (value := self.images()) is None:
            return None
        shape, number = self.shapes[value], self.draw.choice([-0.5, -1e3, -1e10, -3.4028234663852886e38])
        pads = [0, 0, 1, 1] * 2
        padded = [*shape[:2], *(side + 2 for side in shape[2:])]
        if self.opset < 11:
            around = self.node("Pad", [value], padded, pads=pads, value=number)
        else:
            given = [self.constant(np.array(pads)), self.constant(np.float64(number))]
            around = self.node("Pad", [value, *given], padded)
        del self.shapes[around]
        return self.node("MaxPool", [around], shape, kernel_shape=[3, 3], strides=[1, 1])

    def slice(self) -> str | None:
        value = self.any_value()
        shape = self.shapes[value]
        if shape[0] == FREE and self.draw.random() < 0.3:
            return self.slice_of_batch(value)
        axes = [axis for axis, side in enumerate(shape) if isinstance(side, int) and side > 1]
        axes = [axis for axis in axes if axis > 0 or self.kind in ("one", "none")]
        if not axes:
            return None
        axis = self.draw.choice(axes)
        start, step = self.draw.randrange(shape[axis] - 1), self.draw.choice([1, 1, 2])
        stop = self.draw.choice([2**31 - 1, 2**63 - 1, -1, shape[axis]])
        step = 1 if self.opset < 10 else step
        kept = range(shape[axis])[slice(start, stop, step)]
        if not kept:
            return None
        new = [*shape[:axis], len(kept), *shape[axis + 1 :]]
        axis = axis if self.draw.random() < 0.7 else axis - len(shape)
        if self.opset < 10:
            return self.node("Slice", [value], new, starts=[start], ends=[stop], axes=[axis])
        given = [self.constant(np.array([number])) for number in (start, stop, axis, step)]
        return self.node("Slice", [value, *given], new)

    def slice_of_batch(self, value: str) -> str:
        """All inputs, or a part of them, which cannot be read."""
        start, stop = self.draw.choice(
            [(0, 2**31 - 1), (0, 2**31 - 1), (0, 1), (1, 2**31 - 1), (-1, 2**31 - 1), (0, -1)]
        )
        if self.opset < 10:
            return self.node("Slice", [value], self.shapes[value], starts=[start], ends=[stop], axes=[0])
        given = [self.constant(np.array([number])) for number in (start, stop, 0)]
        return self.node("Slice", [value, *given], self.shapes[value])

    def concat(self) -> str | None:
        first = self.any_value()
        shape = self.shapes[first]
        axis = self.draw.randrange(1 if self.kind in ("free", "three") else 0, len(shape) + 1) - 1
        axis = max(axis, 0 if self.kind in ("one", "none") else 1)
        if axis >= len(shape):
            return None
        rest = shape[:axis] + shape[axis + 1 :]
        fits = [n for n, s in self.shapes.items() if len(s) == len(shape) and s[:axis] + s[axis + 1 :] == rest]
        chosen = [first, *(self.draw.choice(fits) for _ in range(self.draw.randint(0, 2)))]
        size = sum(self.shapes[name][axis] for name in chosen)
        return self.node("Concat", chosen, [*shape[:axis], size, *shape[axis + 1 :]], axis=axis)

    def mean(self) -> str | None:
        value = self.any_value()
        shape = self.shapes[value]
        first = 1 if self.kind in ("free", "three") else 0
        axes = [axis for axis in range(first, len(shape)) if self.draw.random() < 0.5]
        keeps = int(self.draw.random() < 0.6)
        if not axes or (not keeps and len(shape) - len(axes) < 1 + first):
            return None
        new = [1 if axis in axes else side for axis, side in enumerate(shape) if keeps or axis not in axes]
        return self.listed("ReduceMean", value, new, "axes", axes, 18, keepdims=keeps)

    def batch_size(self) -> str | None:
        """A flattening as torch's older exporter writes it, by the tensor's own shape."""
        value = self.any_value()
        shape = self.shapes[value]
        if len(shape) < 2 or FREE in shape[1:]:
            return None
        sizes = self.node("Shape", [value], [len(shape)])
        first = self.node("Gather", [sizes, self.constant(np.array(0))], [], axis=0)
        wide = self.listed("Unsqueeze", first, [1], "axes", [0], 13)
        both = self.node("Concat", [wide, self.constant(np.array([-1]))], [2], axis=0)
        for name in (sizes, first, wide, both):
            del self.shapes[name]
        return self.node("Reshape", [value, both], [shape[0], _prod(shape[1:])])

    STEPS = (
        curve, curve, smooth, gated, clip, constant_arithmetic, constant_arithmetic,
        two_values, two_values, mat_mul, gemm, conv, conv,
        pool, pad_and_pool, batch_norm, flatten, reshape, reshape, squeeze, transpose, pad, slice, concat, concat, mean,
        batch_size,
    )  # fmt: skip

    # --- the whole ---

    def finished(self) -> Any:
        """The ModelProto, whose output is flat."""
        for _ in range(self.draw.randint(2, 9)):
            made = None
            while made is None:
                made = self.draw.choice(self.STEPS)(self)
                if made is not None and _prod([s for s in self.shapes[made] if s != FREE]) > 2000:
                    del self.shapes[made]  # too large to go on from
                    break
        last = list(self.shapes)[-1]
        last = self.node("Flatten", [last], [1, 1], axis=1) if len(self.shapes[last]) > 1 else last
        last = self.node("Relu", [last], [1]) if last == "x" else last
        kind = 11 if self.double else 1
        ends = [helper.make_tensor_value_info("x", kind, self.shapes["x"])]
        made = [helper.make_tensor_value_info(last, kind, [f"side{i}" for i in range(len(self.shapes[last]))])]
        graph = helper.make_graph(self.nodes, "drawn", ends, made, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def _prod(shape: Full) -> Any:
    return FREE if shape == [FREE] else prod(side for side in shape if isinstance(side, int))


def _split(draw: random.Random, total: int) -> list[int]:
    """Sizes with that product."""
    sizes = []
    for size in (2, 3, 4):
        if total % size == 0 and draw.random() < 0.5:
            sizes.append(size)
            total //= size
    sizes.append(total)
    draw.shuffle(sizes)
    return sizes


def drawn(seed: int, folder: Path) -> tuple[Path, Drawn]:
    """The graph of that seed as a file."""
    made = Drawn(seed)
    path = folder / "drawn.onnx"
    path.write_bytes(made.finished().SerializeToString())
    onnx.checker.check_model(str(path))
    return path, made
