"""A JAX function -> an ONNX model whose batch and lengths are known only when it runs.

The function is traced with symbolic dimensions, and each primitive of its jaxpr becomes ONNX nodes
by `PRIMITIVES` of `chns_jax.interop.onnx_primitives`. What depends on constants alone is computed
here, so that weights are stored as they are used.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np
import onnx
from jax.export import is_symbolic_dim
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

OPSET = 18  # onnxruntime reads it from 1.14 on
IR_VERSION = 8
FOLDED = 4096  # values of a constant that is made of smaller ones
Shape = tuple[Any, ...]  # of numbers and symbolic dimensions


@dataclass(frozen=True)
class Tensor:
    """What a graph computes. Where its shape has 1, the array in JAX may have more: ONNX repeats
    such values itself, and `Graph.whole` does for operators that do not."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class Complex:
    """Complex numbers, which few operators of ONNX know."""

    real: Tensor
    imaginary: Tensor


Operand = Tensor | Complex


def shape_of(variable: Any) -> Shape:
    """The shape of an array in JAX."""
    return tuple(variable.aval.shape)


def dtype_of(variable: Any) -> np.dtype:
    return np.dtype(variable.aval.dtype)


class Graph:
    """Nodes and constants, as they are added; names of symbolic dimensions by those of inputs."""

    def __init__(self, inputs: dict[str, jax.ShapeDtypeStruct]):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._constant_of: dict[tuple, str] = {}
        self._dimensions: dict[str, str] = {}
        for name, array in inputs.items():
            for axis, size in enumerate(array.shape):
                if is_symbolic_dim(size) and str(size) not in self._dimensions:
                    found = self.add("Shape", name, start=axis, end=axis + 1)
                    self._dimensions[str(size)] = found

    def add(self, operator: str, *operands: str, **attributes: Any) -> str:
        """The name of the one output of a new node."""
        return self.add_several(1, operator, *operands, **attributes)[0]

    def add_several(
        self, outputs: int, operator: str, *operands: str, **attributes: Any
    ) -> list[str]:
        """The names of the outputs of a new node, or of constants where it makes some of others."""
        names = [f"{operator.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
        node = helper.make_node(operator, operands, names, **attributes)
        if all(name in self.constants for name in operands):
            given = {name: self.constants[name] for name in operands}
            made = ReferenceEvaluator(node).run(None, given)
            room = max(FOLDED, sum(array.size for array in given.values()))
            if sum(np.size(array) for array in made) <= room:
                return [self.constant(array) for array in made]
        self.nodes.append(node)
        return names

    def constant(self, array: Any) -> str:
        """The name of a constant; equal ones have one."""
        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constant_of:
            name = f"constant_{len(self.constants)}"
            self.constants[name], self._constant_of[key] = array, name
        return self._constant_of[key]

    def vector(self, values: Sequence[int]) -> str:
        """The name of a constant int64, such as axes are given by."""
        return self.constant(np.array(values, np.int64))

    def whole(self, operand: Tensor, shape: Shape) -> str:
        """The name of an operand that has the shape of its array in JAX."""
        if operand.shape != tuple(shape):
            return self.add("Expand", operand.name, self.sizes(shape))
        return operand.name

    def sizes(self, shape: Sequence[Any]) -> str:
        """The name of a vector int64, of numbers and symbolic dimensions."""
        if not any(is_symbolic_dim(size) for size in shape):
            return self.vector([int(size) for size in shape])
        pieces = [self.size(size) for size in shape]
        return pieces[0] if len(pieces) == 1 else self.add("Concat", *pieces, axis=0)

    def size(self, size: Any) -> str:
        """The name of a vector int64 of one value, computed as JAX writes a dimension:
        `160*floordiv(s, 160) + 400`."""
        text = str(size)
        if text not in self._dimensions:
            self._dimensions[text] = self._computed(ast.parse(text, mode="eval").body)
        return self._dimensions[text]

    def _computed(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=int(value)):
                return self.vector([value])
            case ast.Name(id=name):
                return self._dimensions[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.add("Neg", self._computed(operand))
            case ast.BinOp(left=left, op=operation, right=right) if type(operation) in ARITHMETIC:
                operator = ARITHMETIC[type(operation)]
                return self.add(operator, self._computed(left), self._computed(right))
            case ast.Call(func=ast.Name(id=function), args=[left, right]):
                one, other = self._computed(left), self._computed(right)
                if function in ("max", "min"):
                    return self.add(function.capitalize(), one, other)
                remainder = self.add("Mod", one, other)  # of the divisor's sign, as Python's
                if function == "mod":
                    return remainder
                if function == "floordiv":
                    return self.add("Div", self.add("Sub", one, remainder), other)
        raise NotImplementedError(f"a dimension {ast.unparse(node)} is not converted")


ARITHMETIC: dict[type, str] = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}
Convert = Callable[..., Operand | list[Tensor]]


def to_onnx(
    function: Callable[..., jax.Array],
    inputs: dict[str, jax.ShapeDtypeStruct],
    output: str,
) -> onnx.ModelProto:
    """The ONNX model of a function of arrays that has one result.

    `inputs` are its arguments by name, whose shapes may have symbolic dimensions
    (`jax.export.symbolic_shape`). Raises NotImplementedError that names the primitive or the
    dimension which is not converted, and whatever JAX says of a comparison that lengths do not
    decide.
    """
    from chns_jax.interop.onnx_primitives import PRIMITIVES

    closed = jax.make_jaxpr(function)(*inputs.values())
    graph = Graph(inputs)
    given = [Tensor(name, tuple(array.shape)) for name, array in inputs.items()]
    (result,) = _convert(graph, closed.jaxpr, closed.consts, given, PRIMITIVES)
    assert isinstance(result, Tensor)
    aval = cast(jax.ShapeDtypeStruct, closed.out_avals[0])
    # The output has its name by a node that does nothing else.
    last = helper.make_node("Identity", [graph.whole(result, aval.shape)], [output])
    nodes, used = _used([*graph.nodes, last], output)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "chns_jax",
            [_value_info(name, array) for name, array in inputs.items()],
            [_value_info(output, aval)],
            [
                numpy_helper.from_array(a, name)
                for name, a in graph.constants.items()
                if name in used
            ],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="chns_jax",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _convert(
    graph: Graph,
    jaxpr: Jaxpr,
    constants: Sequence[Any],
    arguments: Sequence[Operand],
    primitives: dict[str, Convert],
) -> list[Operand]:
    """What a jaxpr returns for these arguments; adds the nodes that compute it."""
    known: dict[Var, Operand] = dict(zip(jaxpr.invars, arguments, strict=True))

    def constant(value: Any) -> Tensor:
        array = np.asarray(value)
        return Tensor(graph.constant(array), array.shape)

    known |= zip(jaxpr.constvars, map(constant, constants), strict=True)

    def read(atom: Any) -> Operand:
        if isinstance(atom, Literal):
            return constant(np.asarray(atom.val, dtype_of(atom)))
        return known[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        inner = _called(equation)
        if inner is not None:
            made = _convert(graph, inner.jaxpr, inner.consts, operands, primitives)
        elif equation.primitive.name in primitives:
            made = primitives[equation.primitive.name](graph, equation, *operands)
        else:
            raise NotImplementedError(
                f"JAX's primitive {equation.primitive.name} is not converted to ONNX: add it to "
                "chns_jax/interop/onnx_primitives.py"
            )
        made = made if isinstance(made, list) else [made]
        known |= zip(equation.outvars, made, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _called(equation: JaxprEqn) -> ClosedJaxpr | None:
    """What a primitive that only calls a function calls."""
    if equation.primitive.name not in ("jit", "pjit", "custom_jvp_call", "custom_vjp_call"):
        return None
    return equation.params.get("call_jaxpr") or equation.params["jaxpr"]


def _used(nodes: list[onnx.NodeProto], output: str) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that an output needs, and the names of all that they are given."""
    used, kept = {output}, []
    for node in reversed(nodes):
        if used.intersection(node.output):
            used.update(node.input)
            kept.append(node)
    return kept[::-1], used


def _value_info(name: str, array: Any) -> onnx.ValueInfoProto:
    """An input or output; its symbolic dimensions have names."""
    kinds = {"float32": TensorProto.FLOAT}
    shape = [str(size) if is_symbolic_dim(size) else int(size) for size in array.shape]
    return helper.make_tensor_value_info(name, kinds[str(array.dtype)], shape)
