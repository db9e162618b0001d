"""Finds loops in the compiler's assembly (AT&T syntax) and gives the instructions of one turn.

A loop is found by what it must contain, not by its place: the function's name and the instructions that a turn runs, so many for
each line or step of work. Where a turn has branches, its way is the shortest one that runs exactly these: the way of full tiles,
past all checks. What is not found, or found more often than said, is an error.
"""

import re
from dataclasses import dataclass, field

JUMP = re.compile(r"j[a-z]+$")
# Calls that do not return: the end of a block.
DIVERGES = re.compile(r"panic|_fail|_Unwind_Resume|handle_error")


class LoopError(Exception):
    """The assembly is not as the table of kernels says."""


@dataclass
class Block:
    instructions: list = field(default_factory=list)
    successors: list = field(default_factory=list)


@dataclass
class Function:
    name: str
    blocks: list


@dataclass
class Loop:
    header: int
    body: set


@dataclass
class Turn:
    """One turn of a loop: what it runs, and how much work that is."""

    instructions: list
    units: int


def mnemonic(instruction):
    return instruction.partition(" ")[0]


def operands(instruction):
    return instruction.partition(" ")[2]


def parse(text, demangle):
    """All functions by name, as the linker knows them; `demangle` turns a list of such names into readable ones."""
    bodies, current = {}, None
    for line in text.splitlines():
        stripped = line.split("#", 1)[0].strip()
        declared = re.match(r"\.type\s+(\S+),@function$", stripped)
        if declared:
            current = bodies.setdefault(declared[1], [])
        elif stripped.startswith(".Lfunc_end"):
            current = None
        elif current is not None and stripped and (not stripped.startswith(".") or re.match(r"\.L\S+:$", stripped)):
            current.append(" ".join(stripped.split()))
    names = list(bodies)
    return {mangled: Function(name, _blocks(bodies[mangled])) for mangled, name in zip(names, demangle(names))}


def _blocks(lines):
    blocks, labels, jumps, falls = [Block()], {}, [], {0: True}
    for line in lines:
        if line.endswith(":"):
            if blocks[-1].instructions:
                blocks.append(Block())
            labels[line[:-1]] = len(blocks) - 1
            falls[len(blocks) - 1] = True
            continue
        blocks[-1].instructions.append(line)
        here, name = len(blocks) - 1, mnemonic(line)
        ends = name.startswith(("ret", "ud2")) or name.startswith("call") and DIVERGES.search(line)
        if JUMP.match(name) or ends:
            if JUMP.match(name):
                jumps.append((here, operands(line)))
            falls[here] = not ends and not name.startswith("jmp")
            blocks.append(Block())
            falls[here + 1] = True
    for here, target in jumps:
        if target in labels:
            blocks[here].successors.append(labels[target])
    for here, falls_through in falls.items():
        if falls_through and here + 1 < len(blocks):
            blocks[here].successors.append(here + 1)
    return blocks


def loops_of(blocks):
    """The natural loops, one for each header."""
    dominators = _dominators(blocks)
    before = [[] for _ in blocks]
    for b, block in enumerate(blocks):
        for s in block.successors:
            before[s].append(b)
    loops = {}
    for b, block in enumerate(blocks):
        for header in block.successors:
            if dominators[b] >> header & 1:
                body, todo = loops.setdefault(header, {header}), [b]
                while todo:
                    at = todo.pop()
                    if at not in body:
                        body.add(at)
                        todo += [p for p in before[at] if dominators[p] >> header & 1]
    return [Loop(header, body) for header, body in sorted(loops.items())]


def _dominators(blocks):
    """For each block the set of those that every way to it passes, as bits; none for a block that no way leads to."""
    everything = (1 << len(blocks)) - 1
    dominators = [1] + [None] * (len(blocks) - 1)
    changed = True
    while changed:
        changed = False
        for b, block in enumerate(blocks):
            if dominators[b] is None:
                continue
            for s in block.successors:
                new = (dominators[s] if dominators[s] is not None else everything) & dominators[b] | 1 << s
                if s != 0 and new != dominators[s]:
                    dominators[s], changed = new, True
    return [d or 0 for d in dominators]


def _ways(blocks, loops, start, inside, ends, watched):
    """The shortest way from `start` to a block that `ends` says is last, for each count of the watched instructions on it.

    Blocks of loops inside of this one are passed once and count nothing: they are looked at by themselves.
    """
    nested = {b for loop in loops if loop.header in inside and loop.header != start for b in loop.body}
    headers = {(b, loop.header) for loop in loops for b in loop.body if loop.header in blocks[b].successors}
    order, seen = [], set()

    def visit(b):
        stack = [(b, iter(blocks[b].successors))]
        seen.add(b)
        while stack:
            at, rest = stack[-1]
            for s in rest:
                if s in inside and s not in seen and (at, s) not in headers:
                    seen.add(s)
                    stack.append((s, iter(blocks[s].successors)))
                    break
            else:
                order.append(at)
                stack.pop()

    visit(start)
    best = {start: {_zero(watched): (0, ())}}
    found = {}
    for b in reversed(order):
        own = [] if b in nested else blocks[b].instructions
        counts = tuple(sum(1 for i in own if re.match(w, i)) for w in watched)
        arrived = {}
        for before, (length, way) in best.get(b, {}).items():
            arrived[tuple(x + y for x, y in zip(before, counts))] = (length + len(own), way + (b,))
        for s in blocks[b].successors:
            if s in inside and (b, s) not in headers:
                _keep_shortest(best.setdefault(s, {}), arrived)
        if ends(b):
            _keep_shortest(found, arrived)
    return {
        counts: [i for b in way if b not in nested for i in blocks[b].instructions] for counts, (_, way) in found.items()
    }


def _zero(watched):
    return (0,) * len(watched)


def _keep_shortest(known, new):
    for counts, way in new.items():
        if counts not in known or way < known[counts]:
            known[counts] = way


def find(functions, symbol, per_unit, absent=(), avoid=None, copies=1):
    """One turn of the loop in the function whose name ends in the pattern `symbol`.

    `per_unit` says how often instructions are run for a unit of work, `absent` which must not be: patterns of how they begin. A loop
    that has what `avoid` matches, be it off the way or in a loop inside, is another one. Of a loop and what the compiler left over
    of it, the one with the most units a turn is meant; `copies` of it are expected.
    """
    matching = [f for f in functions.values() if re.search(symbol + "$", f.name)]
    if len(matching) != 1:
        raise LoopError(f"{len(matching)} functions match {symbol}, expected 1: {[f.name for f in matching]}")
    blocks = matching[0].blocks
    watched = sorted(per_unit) + sorted(absent)
    turns = []
    loops = loops_of(blocks)
    for loop in loops:
        if avoid and any(re.match(avoid, i) for b in loop.body for i in blocks[b].instructions):
            continue
        ways = _ways(blocks, loops, loop.header, loop.body, lambda b, header=loop.header: header in blocks[b].successors, watched)
        fitting = {units: way for counts, way in ways.items() if (units := _units(watched, counts, per_unit))}
        if fitting:
            units = max(fitting)
            turns.append(Turn(fitting[units], units))
    most = max((t.units for t in turns), default=0)
    turns = [t for t in turns if t.units == most]
    if len(turns) != copies:
        raise LoopError(f"{len(turns)} loops of {matching[0].name} run {per_unit} for each unit of work, expected {copies}")
    turn = max(turns, key=lambda t: len(t.instructions))
    return Turn(_with_calls(functions, turn.instructions, matching[0].name), turn.units)


def _units(watched, counts, per_unit):
    """How many units of work have these counts, 0 if none has."""
    wanted = [per_unit.get(w, 0) for w in watched]
    units = max((c // w for c, w in zip(counts, wanted) if w), default=0)
    return units if list(counts) == [units * w for w in wanted] else 0


def _with_calls(functions, instructions, caller):
    """Calls replaced by the shortest way through the function that is called."""
    result = []
    for instruction in instructions:
        if not mnemonic(instruction).startswith("call"):
            if not mnemonic(instruction).startswith(("jmp", "ret")):
                result.append(instruction)
            continue
        callee = functions.get(operands(instruction).removesuffix("@PLT"))
        if callee is None:
            raise LoopError(f"the loop in {caller} calls what is not in this crate: {instruction}")
        blocks = callee.blocks
        last = [mnemonic(b.instructions[-1]) if b.instructions else "" for b in blocks]
        returns = lambda b, last=last: last[b].startswith("ret")
        ways = _ways(blocks, loops_of(blocks), 0, set(range(len(blocks))), returns, [])
        if not ways:
            raise LoopError(f"{callee.name}, called in the loop of {caller}, has no way to its end")
        result += _with_calls(functions, ways[()], callee.name)
    return result
