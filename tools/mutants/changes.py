"""The changes: which nodes of a syntax tree can be changed, and how."""

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Kind = TypeVar("Kind")

_COMPARISONS: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: Mapping[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_NO_STATEMENT = {"log", "say", "warnings"}
"""Calls on these are told to people, and no behaviour."""
_ENDLESS_PLACES = 30


@dataclass(frozen=True)
class Mutant:
    """One change: in which file, at which node of its syntax tree (by order of `ast.walk`), and which variant."""

    file: str
    line: int
    node: int
    variant: int
    what: str

    @property
    def name(self) -> str:
        """Text that `--only` matches."""
        return f"{self.file}:{self.line}:{self.node}:{self.variant}"


def changes_of(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], ast.AST]]]:  # noqa: PLR0912  (one per kind)
    """Every change that can be made at a node: what it is in words, and the function that makes it."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in _COMPARISONS and not _is_draw(node):
            yield f"{_sign(op)} becomes {_sign(_COMPARISONS[type(op)]())}", _swap_comparison
        case ast.BinOp(op=op) if type(op) in _ARITHMETIC and not (_is_text(node) or _is_union(node)):
            yield f"{_sign(op)} becomes {_sign(_ARITHMETIC[type(op)]())}", _swap_operator
        case ast.AugAssign(op=op) if type(op) in _ARITHMETIC:
            yield f"{_sign(op)}= becomes {_sign(_ARITHMETIC[type(op)]())}=", _swap_operator
        case ast.BoolOp(op=op):
            yield "and becomes or" if isinstance(op, ast.And) else "or becomes and", _swap_junction
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield f"without {_sign(node.op)}", lambda each: _of(each, ast.UnaryOp).operand
        case ast.Constant(value=bool() as value):
            yield f"{value} becomes {not value}", lambda each: ast.Constant(not _of(each, ast.Constant).value)
        case ast.Constant(value=int() as number):
            yield f"{number} becomes {number + 1}", lambda each: ast.Constant(number + 1)
        case ast.Constant(value=float() as number):
            yield f"{number} becomes {2 * number + 1}", lambda each: ast.Constant(2 * number + 1)
        case ast.Call(func=ast.Name(id=name)) if name in _CALLS:
            yield f"{name} becomes {_CALLS[name]}", _swap_call
        case ast.Slice(lower=None, upper=ast.expr(), step=None):
            yield "[:n] becomes [n:]", lambda each: ast.Slice(_of(each, ast.Slice).upper, None)
        case ast.Slice(lower=ast.expr(), upper=None, step=None):
            yield "[n:] becomes [:n]", lambda each: ast.Slice(None, _of(each, ast.Slice).lower)
        case ast.Expr(value=ast.Call() | ast.Await()) if _root(node.value) not in _NO_STATEMENT:
            yield "the call is left out", lambda each: ast.Pass()
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "returns None", lambda each: ast.Return(ast.Constant(None))
        case ast.If():
            yield "if always", _always
        case ast.Break():
            yield "break becomes continue", lambda each: ast.Continue()
        case ast.Continue():
            yield "continue becomes break", lambda each: ast.Break()
        case ast.Raise(exc=ast.expr()):
            yield "is not raised", lambda each: ast.Pass()
        case _:
            return


def _of(node: object, kind: type[Kind]) -> Kind:
    assert isinstance(node, kind)
    return node


def _swap_comparison(node: ast.AST) -> ast.AST:
    compare = _of(node, ast.Compare)
    return ast.Compare(compare.left, [_COMPARISONS[type(compare.ops[0])]()], compare.comparators)


def _swap_operator(node: ast.AST) -> ast.AST:
    if isinstance(node, ast.AugAssign):
        return ast.AugAssign(node.target, _ARITHMETIC[type(node.op)](), node.value)
    binary = _of(node, ast.BinOp)
    return ast.BinOp(binary.left, _ARITHMETIC[type(binary.op)](), binary.right)


def _swap_junction(node: ast.AST) -> ast.AST:
    junction = _of(node, ast.BoolOp)
    return ast.BoolOp(ast.Or() if isinstance(junction.op, ast.And) else ast.And(), junction.values)


def _swap_call(node: ast.AST) -> ast.AST:
    call = _of(node, ast.Call)
    return ast.Call(ast.Name(_CALLS[_of(call.func, ast.Name).id], ast.Load()), call.args, call.keywords)


def _always(node: ast.AST) -> ast.AST:
    branch = _of(node, ast.If)
    return ast.If(ast.Constant(True), branch.body, branch.orelse)


def _sign(node: ast.AST) -> str:
    signs = "Lt < LtE <= Gt > GtE >= Eq == NotEq != Is is IsNot is-not In in NotIn not-in Add + Sub - Mult * Div / "
    words = (signs + "FloorDiv // Mod % BitAnd & BitOr | Not not USub -").split()
    return dict(zip(words[::2], words[1::2], strict=True))[type(node).__name__]


def _is_text(node: ast.BinOp) -> bool:
    """Return whether an operand is a literal text: joining or formatting it is no arithmetic."""
    sides = (node.left, node.right)
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
        for side in sides
    )


def _is_draw(node: ast.Compare) -> bool:
    """Return whether a random draw is compared with a bound: it equals the bound once in 2⁵³ times."""
    return any(
        isinstance(side, ast.Call) and isinstance(side.func, ast.Attribute) and side.func.attr == "uniform"
        for side in (node.left, *node.comparators)
    )


def _is_union(node: ast.BinOp) -> bool:
    """Return whether types are joined: names that are written as classes are, or None."""
    sides = (node.left, node.right)
    return isinstance(node.op, ast.BitOr) and any(
        (isinstance(side, ast.Name) and side.id[:1].isupper() and not side.id.isupper())
        or (isinstance(side, ast.Constant) and side.value is None)
        for side in sides
    )


def _is_endless(node: ast.AST) -> bool:
    """Return whether it is `1 << 30` or more, a number that stands for no bound: twice as much is no bound either."""
    match node:
        case ast.BinOp(left=ast.Constant(value=1), op=ast.LShift(), right=ast.Constant(value=int() as places)):
            return places >= _ENDLESS_PLACES
        case _:
            return False


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Await | ast.Call | ast.Attribute):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def nodes_of(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may be changed, in a fixed order: code, but no annotations, texts, or types."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        for field, value in ast.iter_fields(node):
            if field in {"annotation", "returns", "decorator_list", "type_params", "bases"}:
                continue
            if (
                isinstance(node, ast.JoinedStr)
                or _is_endless(node)
                or (isinstance(node, ast.Raise) and field == "cause")
            ):
                continue
            children = value if isinstance(value, list) else [value]
            todo += [child for child in children if isinstance(child, ast.AST)]


def mutants_of(file: Path) -> list[Mutant]:
    """Every mutant of a file, by its path below the root, which is the working directory."""
    name = file.as_posix()
    found = []
    for number, node in enumerate(nodes_of(ast.parse(file.read_text()))):
        line = getattr(node, "lineno", 0)
        variants = enumerate(changes_of(node)) if line else ()
        found += [Mutant(name, line, number, variant, what) for variant, (what, _) in variants]
    return found


def mutated(mutant: Mutant) -> ast.Module:
    """The syntax tree of a file with the mutant's change."""
    tree = ast.parse(Path(mutant.file).read_text())
    target = list(nodes_of(tree))[mutant.node]
    return with_change(tree, target, list(changes_of(target))[mutant.variant][1])


def with_change(tree: ast.Module, target: ast.AST, change: Callable[[ast.AST], ast.AST]) -> ast.Module:
    """The tree with one node changed."""

    class Changer(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            if node is target:
                return ast.copy_location(change(node), node)
            return self.generic_visit(node)

    return ast.fix_missing_locations(_of(Changer().visit(tree), ast.Module))
