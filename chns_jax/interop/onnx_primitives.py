"""JAX's primitives as ONNX nodes: those that the encoders and the log-mel are lowered to.

A function is given the graph, the equation of the jaxpr, and its operands.
"""

from __future__ import annotations

import numpy as np
from jax.export import is_symbolic_dim
from jax.extend.core import JaxprEqn
from jax.lax import FftType, GatherScatterMode
from onnx import TensorProto, helper

from chns_jax.interop.onnx_graph import (
    Complex,
    Convert,
    Graph,
    Operand,
    Shape,
    Tensor,
    dtype_of,
    shape_of,
)

FROM_THE_END = np.iinfo(np.int64).min


def _joint(operands: tuple[Tensor, ...]) -> Shape:
    """The shape of what an elementwise operator makes."""
    shapes = [operand.shape for operand in operands if operand.shape]  # scalars have none
    return tuple(next((d for d in sizes if d != 1), 1) for sizes in zip(*shapes, strict=True))


def _elementwise(operator: str) -> Convert:
    def convert(graph: Graph, equation: JaxprEqn, *operands: Tensor) -> Tensor:
        return Tensor(graph.add(operator, *(x.name for x in operands)), _joint(operands))

    return convert


def _same(graph: Graph, equation: JaxprEqn, operand: Operand) -> Operand:
    return operand


def _squared(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    return Tensor(graph.add("Mul", x.name, x.name), x.shape)


def _power(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    exponent = graph.constant(np.float32(equation.params["y"]))
    return Tensor(graph.add("Pow", x.name, exponent), x.shape)


def _reciprocal_root(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    return Tensor(graph.add("Reciprocal", graph.add("Sqrt", x.name)), x.shape)


def _complementary_error(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    one = graph.constant(np.ones((), dtype_of(equation.outvars[0])))
    return Tensor(graph.add("Sub", one, graph.add("Erf", x.name)), x.shape)


def _select(graph: Graph, equation: JaxprEqn, which: Tensor, no: Tensor, yes: Tensor) -> Tensor:
    made = graph.add("Where", which.name, yes.name, no.name)
    return Tensor(made, _joint((which, no, yes)))


def _cast(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    before, after = dtype_of(equation.invars[0]), equation.params["new_dtype"]
    if before == after:
        return x
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(after))
    return Tensor(graph.add("Cast", x.name, to=kind), x.shape)


def _length(graph: Graph, equation: JaxprEqn) -> Tensor:
    kind = helper.np_dtype_to_tensor_dtype(dtype_of(equation.outvars[0]))
    scalar = graph.add("Squeeze", graph.size(equation.params["dim"]))
    return Tensor(graph.add("Cast", scalar, to=kind), ())


def _counted(graph: Graph, equation: JaxprEqn) -> Tensor:
    shape, axis = equation.params["shape"], equation.params["dimension"]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["dtype"]))
    end = graph.add("Squeeze", graph.size(shape[axis]))
    zero, one = (graph.constant(np.int64(value)) for value in (0, 1))
    counted = graph.add("Cast", graph.add("Range", zero, end, one), to=kind)
    others = [other for other in range(len(shape)) if other != axis]
    return _with_ones(graph, Tensor(counted, (shape[axis],)), others)


def _with_ones(graph: Graph, x: Tensor, axes: list[int]) -> Tensor:
    """`x` with axes of size 1 put in."""
    if not axes:
        return Tensor(x.name, tuple(x.shape))
    shape = list(x.shape)
    for axis in axes:
        shape.insert(axis, 1)
    return Tensor(
        graph.add("Unsqueeze", x.name, graph.vector(axes)),
        tuple(shape),
    )


def _broadcast(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    kept = equation.params["broadcast_dimensions"]
    axes = [axis for axis in range(len(equation.params["shape"])) if axis not in kept]
    return _with_ones(graph, x, axes)


def _reshape(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    shape = shape_of(equation.outvars[0])
    whole = graph.whole(x, shape_of(equation.invars[0]))
    symbolic = [axis for axis, size in enumerate(shape) if is_symbolic_dim(size)]
    sizes = list(shape)
    if symbolic:  # one size follows from the others: that which is longest to compute
        sizes[max(symbolic, key=lambda axis: len(str(shape[axis])))] = -1
    return Tensor(graph.add("Reshape", whole, graph.sizes(sizes)), shape)


def _squeeze(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    axes = equation.params["dimensions"]
    shape = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
    return Tensor(graph.add("Squeeze", x.name, graph.vector(axes)), shape)


def _transpose(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    return _permuted(graph, x, equation.params["permutation"])


def _permuted(graph: Graph, x: Tensor, permutation: tuple[int, ...]) -> Tensor:
    if list(permutation) == sorted(permutation):
        return x
    return Tensor(
        graph.add("Transpose", x.name, perm=permutation),
        tuple(x.shape[axis] for axis in permutation),
    )


def _concatenate(graph: Graph, equation: JaxprEqn, *operands: Tensor) -> Tensor:
    names = [
        graph.whole(operand, shape_of(var))
        for operand, var in zip(operands, equation.invars, strict=True)
    ]
    joined = graph.add("Concat", *names, axis=equation.params["dimension"])
    return Tensor(joined, shape_of(equation.outvars[0]))


def _split(graph: Graph, equation: JaxprEqn, x: Tensor) -> list[Tensor]:
    whole = graph.whole(x, shape_of(equation.invars[0]))
    shapes = [shape_of(var) for var in equation.outvars]
    sizes, axis = graph.sizes(equation.params["sizes"]), equation.params["axis"]
    names = graph.add_several(len(shapes), "Split", whole, sizes, axis=axis)
    return [Tensor(name, shape) for name, shape in zip(names, shapes, strict=True)]


def _slice(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    shape = shape_of(equation.invars[0])
    starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(shape)
    cut = [
        axis
        for axis, (start, limit, step) in enumerate(zip(starts, limits, steps, strict=True))
        if (start, limit, step) != (0, shape[axis], 1)
    ]
    made, whole = shape_of(equation.outvars[0]), graph.whole(x, shape)
    if not cut:
        return Tensor(whole, made)
    of_axes = (graph.sizes([given[axis] for axis in cut]) for given in (starts, limits))
    further = (graph.vector(a) for a in (cut, [steps[axis] for axis in cut]))
    return Tensor(graph.add("Slice", whole, *of_axes, *further), made)


def _reverse(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
    axes = equation.params["dimensions"]
    whole = graph.whole(x, shape_of(equation.invars[0]))
    bounds = ([-1] * len(axes), [FROM_THE_END] * len(axes), axes, [-1] * len(axes))
    names = (graph.vector(values) for values in bounds)
    return Tensor(graph.add("Slice", whole, *names), shape_of(equation.outvars[0]))


def _pad(graph: Graph, equation: JaxprEqn, x: Tensor, value: Tensor) -> Tensor:
    before, after, between = zip(*equation.params["padding_config"], strict=True)
    if any(between):
        raise NotImplementedError("padding between values is not converted to ONNX")
    whole, shape = graph.whole(x, shape_of(equation.invars[0])), shape_of(equation.outvars[0])
    if not any(size != 0 for size in (*before, *after)):
        return Tensor(whole, tuple(shape))
    padded = graph.add("Pad", whole, graph.sizes((*before, *after)), value.name)
    return Tensor(padded, tuple(shape))


def _gather(graph: Graph, equation: JaxprEqn, x: Tensor, starts: Tensor) -> Tensor:
    """Pieces of one axis, each of which begins at one of `starts`; all of the other axes."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape, mode = shape_of(equation.invars[0]), equation.params["mode"]
    places, made = shape_of(equation.invars[1]), shape_of(equation.outvars[0])
    gone = numbers.collapsed_slice_dims
    cut = [i for i, size in enumerate(sizes) if size != shape[i] or i in gone]
    cut = cut or [numbers.start_index_map[0]]
    axis = cut[0]
    if (
        mode not in (GatherScatterMode.CLIP, GatherScatterMode.PROMISE_IN_BOUNDS)
        or numbers.operand_batching_dims
        or len(cut) != 1
        or axis not in numbers.start_index_map
        or len(places) > 2
    ):
        raise NotImplementedError(f"a gather of {numbers} and {mode} is not converted to ONNX")
    whole = graph.whole(x, shape)
    column = graph.constant(np.int64(numbers.start_index_map.index(axis)))
    start = graph.add("Gather", graph.whole(starts, places), column, axis=len(places) - 1)
    start = graph.add("Cast", start, to=TensorProto.INT64)
    if mode == GatherScatterMode.CLIP:
        last = graph.add("Sub", graph.size(shape[axis]), graph.size(sizes[axis]))
        start = graph.add("Min", graph.add("Max", start, graph.vector([0])), last)
    if len(places) == 1:  # one piece
        start = graph.add("Reshape", start, graph.vector([1]))
        end = graph.add("Add", start, graph.size(sizes[axis]))
        piece = graph.add("Slice", whole, start, end, graph.vector([axis]))
        return Tensor(graph.add("Squeeze", piece, graph.vector(gone)) if gone else piece, made)
    if gone:
        index = start
    else:
        within = graph.vector(range(sizes[axis]))
        index = graph.add("Add", graph.add("Unsqueeze", start, graph.vector([1])), within)
    pieces, order = graph.add("Gather", whole, index, axis=axis), list(range(len(made)))
    # The axis has become which piece, and where in it; JAX has a place of its own for the first.
    (first,) = (i for i in range(len(made)) if i not in numbers.offset_dims)
    order.remove(axis)
    order.insert(first, axis)
    return Tensor(graph.add("Transpose", pieces, perm=order), made)


def _reduction(operator: str) -> Convert:
    def convert(graph: Graph, equation: JaxprEqn, x: Tensor) -> Tensor:
        whole = graph.whole(x, shape_of(equation.invars[0]))
        axes = graph.vector(equation.params["axes"])
        made = graph.add(operator, whole, axes, keepdims=0)
        return Tensor(made, shape_of(equation.outvars[0]))

    return convert


def _product(graph: Graph, equation: JaxprEqn, x: Tensor, y: Tensor) -> Tensor:
    """Matrix products, of each of their common axes."""
    (of_x, of_y), (batch_x, batch_y) = equation.params["dimension_numbers"]
    shape_x, shape_y = (shape_of(var) for var in equation.invars)
    free_x = [i for i in range(len(shape_x)) if i not in (*of_x, *batch_x)]
    free_y = [i for i in range(len(shape_y)) if i not in (*of_y, *batch_y)]
    # Further axes of the one are as its batch, where the other has none.
    if len(of_x) != 1 or len(free_y) != 1 or (len(free_x) != 1 and batch_x):
        raise NotImplementedError("a product of several axes is not converted to ONNX")
    left = _permuted(graph, _whole(graph, x, shape_x), (*batch_x, *free_x, *of_x))
    right = _permuted(graph, _whole(graph, y, shape_y), (*batch_y, *of_y, *free_y))
    made = graph.add("MatMul", left.name, right.name)
    return Tensor(made, shape_of(equation.outvars[0]))


def _whole(graph: Graph, x: Tensor, shape: Shape) -> Tensor:
    return Tensor(graph.whole(x, shape), tuple(shape))


def _convolution(graph: Graph, equation: JaxprEqn, x: Tensor, kernel: Tensor) -> Tensor:
    given = equation.params
    if any(step != 1 for step in given["lhs_dilation"]) or given["batch_group_count"] != 1:
        raise NotImplementedError("a transposed convolution is not converted to ONNX")
    numbers, made = given["dimension_numbers"], shape_of(equation.outvars[0])
    images = _permuted(graph, _whole(graph, x, shape_of(equation.invars[0])), numbers.lhs_spec)
    weights = _permuted(graph, kernel, numbers.rhs_spec)
    before, after = zip(*given["padding"], strict=True)
    convolved = graph.add(
        "Conv",
        images.name,
        weights.name,
        strides=given["window_strides"],
        pads=[int(size) for size in (*before, *after)],
        dilations=given["rhs_dilation"],
        group=given["feature_group_count"],
    )
    channels_second = Tensor(convolved, tuple(made[axis] for axis in numbers.out_spec))
    return _permuted(graph, channels_second, tuple(np.argsort(numbers.out_spec).tolist()))


def _fourier(graph: Graph, equation: JaxprEqn, x: Tensor) -> Complex:
    """The Fourier transform of real numbers, as products with cosines and sines."""
    (length,), kind = equation.params["fft_lengths"], equation.params["fft_type"]
    if kind != FftType.RFFT:
        raise NotImplementedError(f"a Fourier transform {kind} is not converted to ONNX")
    whole = graph.whole(x, shape_of(equation.invars[0]))
    turns = np.outer(np.arange(length), np.arange(length // 2 + 1)) % length / length
    waves = np.exp(-2j * np.pi * turns)
    shape = shape_of(equation.outvars[0])
    real, imaginary = (
        Tensor(graph.add("MatMul", whole, graph.constant(part.astype(np.float32))), shape)
        for part in (waves.real, waves.imag)
    )
    return Complex(real, imaginary)


def _real(graph: Graph, equation: JaxprEqn, x: Complex) -> Tensor:
    return x.real


def _imaginary(graph: Graph, equation: JaxprEqn, x: Complex) -> Tensor:
    return x.imaginary


ELEMENTWISE = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max",
    "min": "Min", "neg": "Neg", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh",
    "erf": "Erf", "logistic": "Sigmoid", "lt": "Less", "gt": "Greater", "le": "LessOrEqual",
    "ge": "GreaterOrEqual", "eq": "Equal",
}  # fmt: skip
PRIMITIVES: dict[str, Convert] = {
    **{name: _elementwise(operator) for name, operator in ELEMENTWISE.items()},
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "copy": _same,
    "dim_as_value": _length,
    "dot_general": _product,
    "erfc": _complementary_error,
    "fft": _fourier,
    "gather": _gather,
    "imag": _imaginary,
    "integer_pow": _power,
    "iota": _counted,
    "pad": _pad,
    "real": _real,
    "reduce_max": _reduction("ReduceMax"),
    "reduce_sum": _reduction("ReduceSum"),
    "reshape": _reshape,
    "rev": _reverse,
    "rsqrt": _reciprocal_root,
    "select_n": _select,
    "slice": _slice,
    "split": _split,
    "square": _squared,
    "squeeze": _squeeze,
    "stop_gradient": _same,
    "transpose": _transpose,
}
