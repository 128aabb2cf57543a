"""Machine code of one kernel as nvdisasm prints it, and its control flow: paths, dominators, loops."""

import functools
import re

INSTRUCTION_BYTES = 16


@functools.cache
def kinds(opcode):
    """What an opcode counts as: BAR.SYNC.DEFER as BAR, BAR.SYNC and itself."""
    words = opcode.split(".")
    return frozenset(".".join(words[:count]) for count in range(1, len(words) + 1))


class Instruction:
    __slots__ = ("index", "kinds", "opcode", "operands", "predicate")

    def __init__(self, index, described):
        self.index = index
        self.opcode = described["opcode"]
        self.kinds = kinds(self.opcode)
        self.operands = described.get("operands", "")
        self.predicate = described.get("predicate", "")

    def is_(self, *opcodes):
        """Whether it is one of these, with or without further modifiers."""
        return not self.kinds.isdisjoint(opcodes)


class Function:
    """A kernel: instructions in order of their addresses, and where each can go on."""

    def __init__(self, name, described, start):
        self.name = name
        self.instructions = [Instruction(index, each) for index, each in enumerate(described)]
        self._start = start
        self.successors = self._find_successors()
        self.predecessors = [[] for _ in self.instructions]
        for index, after in enumerate(self.successors):
            for each in after:
                self.predecessors[each].append(index)

    def count(self, *opcodes):
        return sum(each.is_(*opcodes) for each in self.instructions)

    def _target(self, instruction):
        """The place that a branch names, if it is in this function."""
        found = re.search(r"(?:^|,)0x([0-9a-f]+)$", instruction.operands)
        index = (int(found[1], 16) - self._start) // INSTRUCTION_BYTES if found else -1
        return index if 0 <= index < len(self.instructions) else None

    def _find_successors(self):
        # BSSY names the place where the paths that a branch parts meet again; BSYNC goes there.
        meetings = {}
        for each in self.instructions:
            if each.is_("BSSY"):
                meetings.setdefault(each.operands.split(",")[0], []).append(self._target(each))
        successors = []
        for each in self.instructions:
            after = set()
            falls_through = True
            if each.is_("BRA"):
                after.add(self._target(each))
                # An operand before the target is a condition, as a predicate is.
                falls_through = bool(each.predicate) or "," in each.operands
            elif each.is_("EXIT", "RET", "BRX", "BRXU", "JMX"):
                # BRX jumps by a table, which a `switch` may become. No kernel here has one in a loop that is judged.
                falls_through = bool(each.predicate)
            elif each.is_("BSYNC"):
                places = meetings.get(each.operands, [])
                if each.index + 1 not in places:
                    after.update(places)
            elif each.is_("WARPSYNC") and self._target(each) is not None:
                after.add(self._target(each))
            if falls_through:
                after.add(each.index + 1)
            successors.append(sorted(x for x in after if x is not None and x < len(self.instructions)))
        return successors

    def reverse_postorder(self, start, inside=None):
        """The instructions that `start` leads to, each before what it leads to unless that closes a loop."""
        seen, order, stack = {start}, [], [(start, iter(self.successors[start]))]
        while stack:
            node, rest = stack[-1]
            for after in rest:
                if after not in seen and (inside is None or after in inside):
                    seen.add(after)
                    stack.append((after, iter(self.successors[after])))
                    break
            else:
                stack.pop()
                order.append(node)
        return order[::-1]

    @functools.cached_property
    def order(self):
        """The position of each instruction that can be reached, in an order in which they can run."""
        return {node: position for position, node in enumerate(self.reverse_postorder(0))}

    @functools.cached_property
    def dominators(self):
        """For each instruction that can be reached, the last one before it that every path to it takes
        (Cooper, Harvey and Kennedy 2001)."""
        rank = self.order
        dominator = {0: 0}
        changed = True
        while changed:
            changed = False
            for node in list(rank)[1:]:
                best = None
                for other in self.predecessors[node]:
                    if other not in dominator:
                        continue
                    if best is None:
                        best = other
                    while best != other:
                        if rank[best] > rank[other]:
                            best = dominator[best]
                        else:
                            other = dominator[other]
                if dominator.get(node) != best:
                    dominator[node] = best
                    changed = True
        return dominator

    def dominates(self, above, node):
        """Whether every path to `node` takes `above`."""
        while node != above and self.order.get(node, 0) > self.order.get(above, 0):
            node = self.dominators[node]
        return node == above

    def loops(self):
        """Natural loops as (first instruction, set of instructions)."""
        bodies = {}
        for node in self.order:
            for head in self.successors[node]:
                if not self.dominates(head, node):
                    continue
                body = bodies.setdefault(head, {head})
                pending = [node]
                while pending:
                    each = pending.pop()
                    if each not in body:
                        body.add(each)
                        pending.extend(x for x in self.predecessors[each] if x in self.order)
        return list(bodies.items())

    def innermost_loops(self, holds):
        """Loops that hold an instruction for which `holds` is true, and no other such loop; their instructions in an
        order in which they can run."""
        found = [(head, body) for head, body in self.loops() if any(holds(self.instructions[i]) for i in body)]
        innermost = [(head, body) for head, body in found if not any(other < body for _, other in found)]
        return [[self.instructions[i] for i in self.reverse_postorder(head, body)] for head, body in innermost]

    def paths_meet(self, start, direction, wanted, unwanted):
        """Follows all paths from `start`, forwards (1) or backwards (-1), up to the first `wanted` instruction on each.
        Returns the indices of those; None if a path meets an `unwanted` one before."""
        neighbours = self.successors if direction > 0 else self.predecessors
        met, seen, pending = set(), set(), list(neighbours[start])
        while pending:
            each = pending.pop()
            if each in seen:
                continue
            seen.add(each)
            if wanted(self.instructions[each]):
                met.add(each)
            elif unwanted(self.instructions[each]):
                return None
            else:
                pending.extend(neighbours[each])
        return met
